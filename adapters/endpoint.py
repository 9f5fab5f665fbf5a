"""One HTTP address that speaks OpenAI's API: builds requests, runs exchanges.

A connection taken from the pool goes back to it or is closed, whatever happens in between. A kept connection that the
upstream had closed meanwhile is replaced once by a fresh one; nothing else is tried twice here.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any, TypeVar
from urllib.parse import urlsplit

import orjson

from adapters import errors
from adapters.base import ChatCall, Client, Timeouts
from adapters.connection import ConnectionLost, ProtocolError, UpstreamConnection
from adapters.network import DIRECT, Network
from adapters.pool import Pool
from adapters.receivers import EventReply, Reply, StreamedReply, WholeReply
from adapters.rewrite import LARGE

STALE_S = 1.0  # within this time a kept connection that the upstream had closed meanwhile says so

AnyReply = TypeVar("AnyReply", bound=Reply)


class Endpoint:
    """See the module. base_url: up to and with `/v1`; key: sent as bearer token, never shown; headers: sent with every request.

    ours: it is told a client's traceparent. To strangers that would show which of their requests belong together, and with whose.
    """

    def __init__(
        self,
        name: str,
        base_url: str,
        key: str | None,
        timeouts: Timeouts,
        headers: Mapping[str, str] | None = None,
        network: Network = DIRECT,
        *,
        ours: bool = False,
    ) -> None:
        url = urlsplit(base_url)
        if url.scheme not in ("http", "https") or not url.hostname:
            raise ValueError(f"upstream '{name}': base_url {base_url!r} is not http://… or https://…")
        self.name, self.key, self.timeouts, self._ours = name, key, timeouts, ours
        self._unusable = f"upstream '{name}': {network.problem}" if network.problem else None
        authority = url.netloc.rpartition("@")[2]
        self._where = f"{url.scheme}://{authority}"
        tls = self._tls_context(network) if url.scheme == "https" else None
        proxy = network.proxy
        self.pool = Pool(url.hostname, url.port or (443 if url.scheme == "https" else 80), timeouts.connect_s, tls, proxy)
        self._path = url.path.rstrip("/")
        if proxy is not None:
            self._where += f" through the proxy {proxy.where}"
        sent = {"host": authority, "content-type": "application/json", "accept-encoding": "identity"}
        sent |= {"authorization": f"Bearer {key}"} if key else {}
        sent |= {header.lower(): value for header, value in (headers or {}).items()}
        if proxy is not None and url.scheme == "http":  # the proxy takes the request itself, instead of a tunnel
            self._path = f"http://{authority}{self._path}"
            sent |= {"proxy-authorization": proxy.authorization} if proxy.authorization else {}
        if any("\r" in item or "\n" in item for pair in sent.items() for item in pair):
            raise ValueError(f"upstream '{name}': a header or its key holds a line break")
        self._head = "".join(f"{header}: {value}\r\n" for header, value in sent.items()).encode("latin-1")

    async def stream(self, path: str, body: bytes, call: ChatCall, client: Client) -> None:
        """POST `body`, the call's own as this upstream wants it, and write the streamed answer to `client`. Raises UpstreamError."""
        await self._exchange(path, body, self._marks(call), lambda connection: StreamedReply(self, connection, call, client))

    async def complete(self, path: str, body: bytes, call: ChatCall) -> bytes:
        """POST `body`, and return the JSON document of the answer. Raises UpstreamError."""
        reply = await self._exchange(path, body, self._marks(call), lambda connection: WholeReply(self, connection, call))
        return reply.document

    async def events(self, path: str, body: bytes, request_id: str) -> AsyncGenerator[dict[str, Any], None]:
        """POST, and yield the data of each event of the answer, parsed. Closing it closes the connection. Raises UpstreamError."""
        queue: asyncio.Queue[bytes | None] = asyncio.Queue()

        async def run() -> None:
            try:
                await self._exchange(path, body, request_id, lambda connection: EventReply(self, connection, queue))
            finally:
                queue.put_nowait(None)

        running = asyncio.create_task(run())
        try:
            while (data := await queue.get()) is not None:
                yield self._event(data)
            await running
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    def close(self) -> None:
        self.pool.close()

    def _marks(self, call: ChatCall) -> str:
        """The request's id, and further headers of this request alone."""
        return f"{call.request_id}\r\ntraceparent: {call.traceparent}" if self._ours and call.traceparent else call.request_id

    async def _exchange(self, path: str, body: bytes, request_id: str, reply_on: Callable[[UpstreamConnection], AnyReply]) -> AnyReply:
        if len(body) > LARGE:
            await asyncio.sleep(0)
        head = f"POST {self._path}{path} HTTP/1.1\r\nx-request-id: {request_id}\r\ncontent-length: {len(body)}\r\n".encode("latin-1")
        request = b"".join((head, self._head, b"\r\n", body))
        loop = asyncio.get_running_loop()
        connection = await self._connect(fresh=False)
        sent_at = loop.time()
        try:
            return await self._run(connection, request, reply_on(connection))
        except ConnectionLost as lost:
            # A kept connection that dies at once was closed by the upstream's own idle limit: the request was not taken. One that
            # dies later may have worked on it, and asking again would have the work done, and paid for, twice.
            stale = lost.untouched and connection.exchanges > 1 and loop.time() - sent_at < STALE_S
            if not stale:
                raise self._lost(lost) from lost
        connection = await self._connect(fresh=True)
        try:
            return await self._run(connection, request, reply_on(connection))
        except ConnectionLost as lost:
            raise self._lost(lost) from lost

    async def _run(self, connection: UpstreamConnection, request: bytes, reply: AnyReply) -> AnyReply:
        reply.watch()
        try:
            await connection.exchange(request, reply)
        except (ConnectionLost, ProtocolError, errors.UpstreamError) as error:
            self.pool.discard(connection)
            if reply.answered:
                return reply
            if isinstance(error, ProtocolError):
                raise errors.bad_reply(self.name, str(error)) from error
            raise
        except BaseException:
            self.pool.discard(connection)
            raise
        finally:
            reply.unwatch()
        try:
            reply.finish()
        finally:
            reply.let_go()
            self.pool.give_back(connection)
        return reply

    def _tls_context(self, network: Network) -> ssl.SSLContext | None:
        """None where its files cannot be used: the other upstreams of a gateway still can, so every request says it instead."""
        try:
            return network.tls_context()
        except OSError as error:
            self._unusable = f"upstream '{self.name}': {error}"
            return None

    async def _connect(self, *, fresh: bool) -> UpstreamConnection:
        if self._unusable is not None:
            raise errors.UpstreamError(502, self._unusable, "upstream_misconfigured")
        try:
            return await self.pool.take(fresh=fresh)
        except TimeoutError as error:
            raise errors.timed_out(self.name, f"no connection to {self._where}", self.timeouts.connect_s) from error
        except ssl.SSLCertVerificationError as error:
            reason = f"certificate verify failed: {error.verify_message}; name a private authority in ca_file"
            raise errors.unreachable(self.name, self._where, reason) from error
        except OSError as error:  # ssl.SSLError is one
            raise errors.unreachable(self.name, self._where, error.strerror or str(error)) from error

    def _event(self, data: bytes) -> dict[str, Any]:
        try:
            event: dict[str, Any] = orjson.loads(data)
        except orjson.JSONDecodeError as error:
            raise errors.bad_reply(self.name, f"an event that is not JSON: {errors.excerpt(data, self.key)}") from error
        return event

    def _lost(self, lost: ConnectionLost) -> errors.UpstreamError:
        return errors.disconnected(self.name, "before it answered" if lost.untouched else "in the middle of its reply")
