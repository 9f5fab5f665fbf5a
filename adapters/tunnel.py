"""A tunnel through a forward proxy: one CONNECT, and then bytes that are the upstream's alone.

Source: RFC 9110, section 9.3.6. The proxy's answer is only read up to its head: a refusal's body would tell nobody more.
"""

from __future__ import annotations

import asyncio

import httptools

from adapters.proxies import Proxy

MAX_HEAD_BYTES = 64 << 10


class TunnelRefused(ConnectionError):
    """The proxy did not open the tunnel; the message holds its status and, where it wants credentials, where to write them."""


async def open_tunnel(proxy: Proxy, host: str, port: int) -> asyncio.Transport:
    """A transport whose other end is host:port. Raises OSError; TunnelRefused is one. Being cancelled closes it."""
    loop = asyncio.get_running_loop()
    transport, opening = await loop.create_connection(_Opening, proxy.host, proxy.port)
    authority = f"{f'[{host}]' if ':' in host else host}:{port}"
    credentials = f"proxy-authorization: {proxy.authorization}\r\n" if proxy.authorization else ""
    try:
        transport.write(f"CONNECT {authority} HTTP/1.1\r\nhost: {authority}\r\n{credentials}\r\n".encode("latin-1"))
        await opening.opened
    except BaseException:
        transport.abort()
        raise
    return transport


class _Opening(asyncio.Protocol):
    """Waits for the proxy's answer to CONNECT. `opened` ends with it."""

    def __init__(self) -> None:
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._parser = httptools.HttpResponseParser(self)
        self._size = 0
        self._status = 0

    def data_received(self, data: bytes) -> None:
        self._size += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._end(TunnelRefused("the proxy's answer is not HTTP"))
            return
        if 200 <= self._status < 300:
            self._end(None)
        elif self._status:
            self._end(_refusal(self._status))
        elif self._size > MAX_HEAD_BYTES:
            self._end(TunnelRefused("the proxy's answer has no end"))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status >= 200:
            self._status = status

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(exc or ConnectionResetError("the proxy closed the connection"))

    def _end(self, error: Exception | None) -> None:
        if self.opened.done():
            return
        if error is None:
            self.opened.set_result(None)
        else:
            self.opened.set_exception(error)


def _refusal(status: int) -> TunnelRefused:
    advice = "; write user:password@ into its address" if status == 407 else ""
    return TunnelRefused(f"the proxy refused the tunnel with HTTP {status}{advice}")
