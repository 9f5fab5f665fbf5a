"""The client's end of a streamed answer: headers held back until there is something to say, then frames as they come.

While headers are held an error still gets its real status. They are held for `HOLD_S` at most: from then on comments keep proxies
and clients awake and say what the answer waits for, and an error becomes an event. Comments go between frames only, because only whole
frames are written.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

from starlette.types import Message, Send

from adapters import sse
from adapters.base import Source
from gateway.errors import GatewayError
from gateway.respond import RawHeaders
from gateway.stepping import Stepped

HOLD_S = 5.0
HEARTBEAT_S = 15.0
NEWS_S = 2.0  # between two looks at what the answer waits for

STREAM_HEADERS: RawHeaders = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class ClientStream:
    """An adapters.base.Client over ASGI `send`. push: sends one more part of a body that has begun, now; or says that it cannot.

    headers: sent in any case. answer_headers: what is known of the answer when its first content comes, if that is before the hold is over.
    waits_for: what keeps the first content from coming, such as an engine that loads; None: nothing that is known.
    """

    def __init__(
        self,
        send: Send,
        push: Callable[[bytes], bool],
        headers: RawHeaders,
        answer_headers: Callable[[], RawHeaders],
        waits_for: Callable[[], str | None],
    ) -> None:
        self.started = False  # the response's status and headers are out
        self.began = False  # content is out: nobody else may answer any more
        self.headers = headers
        self._answer_headers, self._waits_for = answer_headers, waits_for
        self._told: str | None = None  # of what it waits for, last
        self.send, self._push = send, push
        self._loop = asyncio.get_running_loop()
        self._blocked: Stepped | None = None  # a send that waits for the client
        self._pending: deque[Message] = deque()
        self._paused: Source | None = None
        self._drained: asyncio.Future[None] | None = None
        self._due = self._loop.time() + HOLD_S
        self._timer = self._loop.call_at(self._due, self._tick)

    def write(self, frames: bytes, source: Source) -> None:
        self._due = self._loop.time() + HEARTBEAT_S
        if self.began and self._blocked is None and self._push(frames):
            return
        self.began = True
        self._put(frames, None if self.started else self._answer_headers())
        if self._blocked is not None:
            self._paused = source
            source.pause()

    @property
    def blocked(self) -> bool:
        """Whether the client has yet to take what was sent."""
        return self._blocked is not None

    async def finish(self, error: GatewayError | None = None) -> None:
        """End the response, with `error` as its last event. Returns when the client has taken everything."""
        self._timer.cancel()
        if error is not None:
            self._put(sse.event(error.document))
        while self.blocked:
            self._drained = self._loop.create_future()
            await self._drained
        await self.send({"type": "http.response.body", "body": b"", "more_body": False})

    def close(self) -> None:
        """Let go of everything that still waits; for a client that has left or has been answered."""
        self._timer.cancel()
        if self._blocked is not None:
            self._blocked.close()
            self._blocked = None

    def _put(self, frames: bytes, more: RawHeaders | None = None) -> None:
        if not self.started:
            self.started = True
            self._forward({"type": "http.response.start", "status": 200, "headers": STREAM_HEADERS + self.headers + (more or [])})
        self._forward({"type": "http.response.body", "body": frames, "more_body": True})

    def _forward(self, message: Message) -> None:
        if self._blocked is not None:
            self._pending.append(message)
            return
        # send() is a coroutine in every ASGI server; the type only promises an awaitable
        step: Any = self.send(message)
        try:
            waiting = step.send(None)
        except StopIteration:
            return
        self._blocked = Stepped(step, self._unblock)
        self._blocked.wait_for(waiting)

    def _unblock(self, _: object) -> None:
        self._blocked = None
        pending, self._pending = self._pending, deque()
        for message in pending:
            self._forward(message)
        if self.blocked:
            return
        if self._paused is not None:
            source, self._paused = self._paused, None
            source.resume()
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    def _tick(self) -> None:
        now = self._loop.time()
        news = None if self.began else self._waits_for()
        if now >= self._due or (news is not None and news != self._told):
            self._due = now + HEARTBEAT_S
            self._told = news
            if self._blocked is None:
                self._put(sse.KEEP_ALIVE if news is None else sse.comment(news))
        self._timer = self._loop.call_at(self._due if news is None else min(self._due, now + NEWS_S), self._tick)
