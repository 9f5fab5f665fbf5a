"""An upstream for tests: a real HTTP server on a real socket whose every byte the test decides.

A scenario is a coroutine that gets the request and an `Exchange` to answer on; the server records what it was asked and which
clients left before their answer was complete.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Request:
    """One request as it arrived. headers: lower-case names."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.body)
        return document


class Exchange:
    """The answering side of one request."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.left = asyncio.ensure_future(self._watch())

    async def _watch(self) -> None:
        if await self._reader.read(1):
            raise AssertionError("the client sent more than its request")

    async def raw(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def head(self, status: int, **headers: str) -> None:
        lines = [f"HTTP/1.1 {status} Whatever", *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items())]
        await self.raw(("\r\n".join(lines) + "\r\n\r\n").encode())

    async def json(self, status: int, document: Any, **headers: str) -> None:
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        await self.head(status, content_type="application/json", content_length=str(len(body)), **headers)
        await self.raw(body)

    async def start_stream(self) -> None:
        await self.head(200, content_type="text/event-stream; charset=utf-8", transfer_encoding="chunked")

    async def chunk(self, data: bytes) -> None:
        await self.raw(b"%x\r\n%s\r\n" % (len(data), data))

    async def events(self, *documents: Any) -> None:
        """Each document as one frame in one chunk; a str is sent as it is, as data."""
        for document in documents:
            data = document if isinstance(document, str) else json.dumps(document, separators=(",", ":"), ensure_ascii=False)
            await self.chunk(f"data: {data}\n\n".encode())

    async def end_stream(self) -> None:
        await self.raw(b"0\r\n\r\n")

    async def until_left(self) -> None:
        """Return when the client has closed the connection."""
        await asyncio.shield(self.left)

    def cut(self) -> None:
        """Close the connection, whatever has been sent."""
        self._writer.close()


Scenario = Callable[[Request, Exchange], Awaitable[None]]


@dataclass
class ScriptedUpstream:
    """scenario: how the next requests are answered; asked: what came; connections: opened so far; left: clients that left early."""

    scenario: Scenario
    port: int = 0
    asked: list[Request] = field(default_factory=list)
    connections: int = 0
    open_connections: int = 0
    left: int = 0

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open_connections += 1
        try:
            while (request := await _read_request(reader)) is not None:
                self.asked.append(request)
                exchange = Exchange(reader, writer)
                answering = asyncio.ensure_future(self.scenario(request, exchange))
                await asyncio.wait({answering, exchange.left}, return_when=asyncio.FIRST_COMPLETED)
                if not answering.done():
                    self.left += 1
                    await asyncio.wait({answering}, timeout=0.2)
                answering.cancel()
                exchange.left.cancel()
                await asyncio.gather(answering, exchange.left, return_exceptions=True)
                if writer.is_closing():
                    break
        except ConnectionError:
            pass
        finally:
            self.open_connections -= 1
            writer.close()


async def _read_request(reader: asyncio.StreamReader) -> Request | None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.decode().splitlines()
    method, path, _ = first.split()
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Request(method, path, headers, body)


@asynccontextmanager
async def scripted_upstream(scenario: Scenario) -> AsyncIterator[ScriptedUpstream]:
    upstream = ScriptedUpstream(scenario)
    tasks: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(upstream.serve(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(accept, "127.0.0.1", 0, limit=1 << 24)
    upstream.port = server.sockets[0].getsockname()[1]
    try:
        yield upstream
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def chunk(text: str | None = None, *, finish: str | None = None, model: str = "upstream-model", **delta: Any) -> dict[str, Any]:
    """One chat.completion.chunk."""
    content = {"content": text} if text is not None else {}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": model,
        "choices": [{"index": 0, "delta": {**content, **delta}, "finish_reason": finish}],
    }


def completion(text: str, **message: Any) -> dict[str, Any]:
    """One chat.completion."""
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "upstream-model",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text, **message}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
    }


def answering(*texts: str) -> Scenario:
    """A scenario that streams, or does not, as it is asked."""

    async def scenario(request: Request, exchange: Exchange) -> None:
        if not request.json.get("stream"):
            await exchange.json(200, completion("".join(texts)))
            return
        await exchange.start_stream()
        await exchange.events(chunk("", role="assistant"), *(chunk(text) for text in texts), chunk(finish="stop"), "[DONE]")
        await exchange.end_stream()

    return scenario


def failing(status: int, document: Any, **headers: str) -> Scenario:
    """A scenario that refuses every request."""

    async def scenario(request: Request, exchange: Exchange) -> None:
        await exchange.json(status, document, **headers)

    return scenario
