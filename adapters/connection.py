"""One keep-alive HTTP/1.1 connection to an upstream, carrying one exchange at a time.

Bytes go to the receiver from the read callback itself: no task is woken for a read. Whoever holds the connection must either
see its exchange end or `abort` it; a connection whose exchange ended badly is never used again.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Protocol, cast

import httptools

from adapters.proxies import Proxy
from adapters.tunnel import open_tunnel

Headers = list[tuple[bytes, bytes]]


class Receiver(Protocol):
    """Where a reply goes. Both are called from the event loop's read callback and must not block."""

    def on_head(self, status: int, headers: Headers) -> None: ...

    def on_data(self, data: bytes) -> None: ...


class ConnectionLost(Exception):
    """The connection was closed, by the upstream or by `abort`. `untouched`: not one byte of the reply had come."""

    def __init__(self, reason: str, *, untouched: bool) -> None:
        super().__init__(reason)
        self.untouched = untouched


class ProtocolError(Exception):
    """The upstream's bytes are not HTTP/1.1."""


class UpstreamConnection(asyncio.Protocol):
    """See the module. `exchanges` counts what it has carried, so that a stale one can be told from a refused one."""

    def __init__(self, on_closed: Callable[[UpstreamConnection], None]) -> None:
        self.exchanges = 0
        self.closed = False
        self.idle_since = 0.0  # the loop's time when the pool got it back
        self._on_closed = on_closed
        self._done: asyncio.Future[None] | None = None
        self._loop = asyncio.get_running_loop()

    # -- asking -----------------------------------------------------------------------------------------------------
    def exchange(self, request: bytes, receiver: Receiver) -> asyncio.Future[None]:
        """Send `request` (head and body). The future ends with the reply; ConnectionLost or ProtocolError otherwise."""
        self.exchanges += 1
        self._receiver = receiver
        self._parser = httptools.HttpResponseParser(self)
        self._headers: Headers = []
        self._body: list[bytes] = []
        self._touched = self._head_seen = self._complete = False
        self._done = self._loop.create_future()
        self._transport.write(request)
        return self._done

    @property
    def reusable(self) -> bool:
        idle = self._done is None and not self._transport.get_write_buffer_size()  # it may answer without reading all of a request
        return idle and self._keep_alive and not self.closed

    def pause(self) -> None:
        if not self.closed and not self._transport.is_closing():
            self._transport.pause_reading()

    def resume(self) -> None:
        if not self.closed and not self._transport.is_closing():
            self._transport.resume_reading()

    def fail(self, error: Exception) -> None:
        """End the exchange with `error` and close at once: for receivers that will not have this reply."""
        done = self._let_go()
        if done is not None and not done.done():
            done.set_exception(error)
        self.closed = True
        self._transport.abort()

    def abort(self) -> None:
        """Close at once: the upstream sees the connection go and stops working. An exchange that somebody waits for is lost."""
        self.fail(ConnectionLost("closed from this side", untouched=False))

    # -- asyncio.Protocol -------------------------------------------------------------------------------------------
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._keep_alive = True

    def data_received(self, data: bytes) -> None:
        if self._done is None:  # bytes that nobody asked for: the connection cannot be trusted any more
            self.abort()
            return
        self._touched = True
        problem = None  # what is wrong with `data`; what was good before the fault has reached the callbacks below
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            problem = f"bytes that are not HTTP ({error})"
        except httptools.HttpParserUpgrade:
            problem = "an HTTP upgrade that was not asked for"
        if self._body:
            body, self._body = self._body, []
            self._receiver.on_data(body[0] if len(body) == 1 else b"".join(body))
        if self._complete:
            self._keep_alive = self._keep_alive and problem is None
            self._finish()
        elif problem is not None:
            self.fail(ProtocolError(problem))

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        if self._done is not None:
            if self._head_seen and exc is None and self._ends_at_eof:
                self._finish()
            else:
                self.fail(ConnectionLost(str(exc) if exc else "end of stream", untouched=not self._touched))
        self._on_closed(self)

    # -- httptools --------------------------------------------------------------------------------------------------
    def on_message_begin(self) -> None:
        if self._complete:
            raise ProtocolError("a second reply to one request")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200:  # 100 Continue, 103 Early Hints: the real head follows
            return
        self._head_seen = True
        self._keep_alive = self._parser.should_keep_alive()
        self._receiver.on_head(status, self._headers)

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        if self._head_seen:
            self._complete = True
        else:
            self._headers = []

    # -- ends -------------------------------------------------------------------------------------------------------
    @property
    def _ends_at_eof(self) -> bool:
        return not any(name in (b"content-length", b"transfer-encoding") for name, _ in self._headers)

    def _finish(self) -> None:
        done = self._let_go()
        if done is not None and not done.done():
            done.set_result(None)

    def _let_go(self) -> asyncio.Future[None] | None:
        """The exchange is over: a connection that waits for the next one keeps nothing of it alive. Returns its future, once."""
        done, self._done = self._done, None
        if done is not None:
            del self._receiver, self._parser
        return done


async def open_connection(
    host: str, port: int, *, tls: ssl.SSLContext | None, on_closed: Callable[[UpstreamConnection], None], proxy: Proxy | None = None
) -> UpstreamConnection:
    """A connection ready for its first exchange. Raises OSError and ssl.SSLError as asyncio does. TCP_NODELAY is asyncio's default.

    Through a proxy a TLS upstream is reached by a tunnel; one without TLS gets whole addresses in its request lines instead, so
    there the connection is the one to the proxy.
    """
    loop = asyncio.get_running_loop()
    if proxy is not None and tls is not None:
        return await _open_tunnelled(host, port, tls, on_closed, proxy)
    if proxy is not None:
        host, port = proxy.host, proxy.port
    _, connection = await loop.create_connection(lambda: UpstreamConnection(on_closed), host, port, ssl=tls)
    return connection


async def _open_tunnelled(
    host: str, port: int, tls: ssl.SSLContext, on_closed: Callable[[UpstreamConnection], None], proxy: Proxy
) -> UpstreamConnection:
    transport = await open_tunnel(proxy, host, port)
    connection = UpstreamConnection(on_closed)
    try:
        secured = await asyncio.get_running_loop().start_tls(transport, connection, tls, server_hostname=host)
    except BaseException:
        transport.abort()
        raise
    if secured is None:  # asyncio's answer where the other side went during the handshake
        raise ConnectionResetError("the proxy closed the tunnel")
    connection.connection_made(secured)
    return connection
