"""An entrant: the technique of Tandem's chat path without any of its features. BENCH_UPSTREAM names the upstream.

Bytes go from the upstream's read callback straight into ASGI `send`, whose coroutine is stepped by hand: it suspends only when the
client's buffer is full, and then the upstream is not read until it goes on. No key, no check, no time-out, no retry: not for use, but the
floor that the real path is held against.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine, Generator
from typing import Any, cast
from urllib.parse import urlsplit

import httptools
import orjson
from starlette.types import Message, Receive, Scope, Send

from bench.chat.asgi import answer_lifespan, read_whole

_PASSED_ON = (b"content-type", b"content-length", b"retry-after")


class Exchange(asyncio.Protocol):
    """One kept connection to the upstream; `carry` takes it through one request at a time."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's says so by its methods only
        self._ended: asyncio.Future[None] | None = None
        self._held: list[Message] | None = None
        self._draining: asyncio.Task[None] | None = None

    async def carry(self, request: bytes, send: Send) -> None:
        """Return when the answer has gone to `send`, but for its last, empty message. Raises ConnectionError."""
        self._send, self._headers = send, list[tuple[bytes, bytes]]()
        self._parser = httptools.HttpResponseParser(self)
        self._ended = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        await self._ended
        if self._draining is not None:
            await self._draining
            self._draining = None

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._ended is not None and not self._ended.done():
            self._ended.set_exception(exc or ConnectionResetError("the upstream closed the connection"))

    # --- called by the parser, by these names

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() in _PASSED_ON:
            self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        self._pass_on({"type": "http.response.start", "status": self._parser.get_status_code(), "headers": self._headers})

    def on_body(self, body: bytes) -> None:
        self._pass_on({"type": "http.response.body", "body": body, "more_body": True})

    def on_message_complete(self) -> None:
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)

    # ---

    def _pass_on(self, message: Message) -> None:
        if self._held is not None:  # the read that filled the client's buffer went on
            self._held.append(message)
            return
        sending: Coroutine[Any, Any, None] = self._send(message)  # type: ignore[assignment] # ASGI says awaitable, uvicorn's is a coroutine
        try:
            waits_for = sending.send(None)
        except StopIteration:
            return
        self._transport.pause_reading()
        self._held = []
        self._draining = asyncio.ensure_future(self._drain(_Rest(sending, waits_for)))

    async def _drain(self, rest: _Rest) -> None:
        await rest
        while self._held:
            await self._send(self._held.pop(0))
        self._held = None
        self._transport.resume_reading()


class _Rest:
    """What is left of a coroutine whose first step was taken by hand: it waits for a future that a task must be handed first."""

    def __init__(self, coroutine: Coroutine[Any, Any, None], waits_for: Any) -> None:
        self._coroutine, self._waits_for = coroutine, waits_for

    def __await__(self) -> Generator[Any, None, None]:
        while True:
            yield self._waits_for
            try:
                self._waits_for = self._coroutine.send(None)
            except StopIteration:
                return


class HotPath:
    """See the module."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._idle: list[Exchange] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await answer_lifespan(receive, send)
            return
        body = await read_whole(receive)
        orjson.loads(body)  # a gateway reads `model` here
        exchange = self._idle.pop() if self._idle else await self._open()
        head = b"POST %b HTTP/1.1\r\nhost: %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        await exchange.carry(head % (scope["raw_path"], self._host.encode(), len(body)) + body, send)
        self._idle.append(exchange)
        await send({"type": "http.response.body", "body": b""})

    async def _open(self) -> Exchange:
        _, exchange = await asyncio.get_running_loop().create_connection(Exchange, self._host, self._port)
        return exchange


def make_app() -> HotPath:
    """For `uvicorn --factory`."""
    parts = urlsplit(os.environ["BENCH_UPSTREAM"])
    assert parts.hostname is not None
    assert parts.port is not None
    return HotPath(parts.hostname, parts.port)
