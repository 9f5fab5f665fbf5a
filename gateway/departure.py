"""Noticing that a client has left while its answer is being made.

uvicorn cancels nothing for a handler that is not writing, so the request's own task is cancelled here, at once, wherever it waits:
in a queue, for an engine to load, for an upstream to connect or to answer.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any

from starlette.types import Message, Receive

from gateway.stepping import Stepped


class Departure:
    """`with Departure(receive):` cancels the current task when the client goes, and swallows that cancellation at the block's end.

    gone: whether that has happened. Use it after the request's body has been read in full.
    """

    def __init__(self, receive: Receive) -> None:
        self.gone = False
        self._receive = receive

    def __enter__(self) -> Departure:
        task = asyncio.current_task()
        assert task is not None, "a request is handled in a task"
        self._task = task
        self._watch()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> bool:
        self._watching.close()
        del self._watching  # it refers to this object: together they would keep the request alive until the collector comes
        if not self.gone:
            return False
        self._task.uncancel()
        return kind is asyncio.CancelledError

    def _watch(self) -> None:
        # receive() is a coroutine in every ASGI server; the type only promises an awaitable
        coroutine: Any = self._receive()
        self._watching = Stepped(coroutine, self._received)
        self._watching.start()

    def _received(self, message: Message) -> None:
        if message["type"] == "http.disconnect":
            self.gone = True
            self._task.cancel()
        else:
            self._watch()
