"""A client that is quick enough to load a gateway from Python: one keep-alive connection, one request at a time.

It trusts nothing: an answer is whole only where HTTP says so, and the tokens of a stream are numbered.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
from dataclasses import dataclass, field
from typing import Any, cast

import httptools
import orjson

CHAT = "/v1/chat/completions"
_TOKEN = re.compile(rb'"content":"(\d+):(\d+) "')


class Closed(Exception):
    """The connection has gone in the middle of an answer."""


@dataclass
class Answer:
    """What has come so far. whole: HTTP says that it is complete."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    parts: list[bytes] = field(default_factory=list)
    whole: bool = False

    @property
    def body(self) -> bytes:
        return b"".join(self.parts)

    @property
    def numbers(self) -> list[int]:
        """The sequence numbers of the tokens, as they came."""
        return [int(number) for number, _ in _TOKEN.findall(self.body)]

    @property
    def done(self) -> bool:
        """Whether the stream ends as it should."""
        return self.whole and self.body.endswith(b"data: [DONE]\n\n")

    @property
    def error(self) -> dict[str, Any]:
        """The error in it: the document's, or that of the last event. Empty: none."""
        last = self.body.strip().rpartition(b"\n")[2].removeprefix(b"data: ")
        found = orjson.loads(last).get("error", {}) if last.startswith(b"{") else {}
        return cast(dict[str, Any], found)


class Connection(asyncio.Protocol):
    """See the module. `begun` is set when the first bytes of the current answer's body have come."""

    def __init__(self) -> None:
        self.answer = Answer()
        self.begun = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[Answer] = self._loop.create_future()
        self._ended.set_result(self.answer)

    def send(self, request: bytes) -> asyncio.Future[Answer]:
        """The future ends when the answer is whole; raises Closed."""
        assert self._ended.done(), "one request at a time"
        self.answer = Answer()
        self.begun.clear()
        self._parser = httptools.HttpResponseParser(self)
        self._ended = self._loop.create_future()
        self._transport.write(request)
        return self._ended

    def leave(self) -> None:
        """Close at once, whatever is still to come."""
        if not self._ended.done():
            self._ended.cancel()
        self._transport.abort()

    # -- asyncio.Protocol, httptools
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.begun.set()
        if not self._ended.done():
            self._ended.set_exception(Closed(str(exc) if exc else "end of stream"))

    def on_header(self, name: bytes, value: bytes) -> None:
        self.answer.headers[name.decode().lower()] = value.decode()

    def on_headers_complete(self) -> None:
        self.answer.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        self.answer.parts.append(body)
        self.begun.set()

    def on_message_complete(self) -> None:
        self.answer.whole = True
        if not self._ended.done():
            self._ended.set_result(self.answer)


@dataclass(frozen=True)
class Door:
    """Where a gateway is asked, with which key. Chat requests name the model `bench` unless told otherwise."""

    port: int
    key: str

    async def connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(Connection, "127.0.0.1", self.port)
        return connection

    def chat(self, words: str, *, model: str = "bench", stream: bool = True) -> bytes:
        """A chat request whose message is `words`, which upstream.c obeys."""
        body = {"model": model, "messages": [{"role": "user", "content": words}]} | ({"stream": True} if stream else {})
        return self.post(orjson.dumps(body))

    def post(self, body: bytes) -> bytes:
        head = f"POST {CHAT} HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer {self.key}\r\ncontent-type: application/json\r\n"
        return head.encode() + b"content-length: %d\r\n\r\n%b" % (len(body), body)

    async def get(self, path: str) -> bytes:
        """The body of the answer, which must be 200."""
        connection = await self.connect()
        request = f"GET {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer {self.key}\r\n\r\n"
        answer = await connection.send(request.encode())
        connection.leave()
        assert answer.status == 200, answer
        return answer.body

    async def json(self, path: str) -> Any:
        return json.loads(await self.get(path))

    def small_socket(self) -> socket.socket:
        """Connected, and with so little room that whoever sends to it soon has to wait."""
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", self.port))
        connection.setblocking(False)
        return connection
