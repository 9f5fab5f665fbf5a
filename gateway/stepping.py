"""Coroutines run from callbacks, without a task: what lets bytes pass from a read callback to ASGI `send` at no extra cost.

uvicorn's `send` suspends only when the client's write buffer is full, and `receive` only until the client sends or leaves. A task
for either would cost more than the work itself. A stepped coroutine must not ask for its task (no `asyncio.timeout` inside).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any


class Stepped:
    """Runs `coroutine` until it ends, then calls `on_done` with its result; an exception goes to the event loop's handler.

    waiting: what the coroutine has already yielded, for one whose first step the caller took itself.
    """

    __slots__ = ("_closed", "_coroutine", "_on_done", "_waiting")

    def __init__(self, coroutine: Coroutine[Any, Any, Any], on_done: Callable[[Any], None]) -> None:
        self._coroutine, self._on_done = coroutine, on_done
        self._waiting: asyncio.Future[Any] | None = None
        self._closed = False

    def start(self) -> None:
        self._advance()

    def wait_for(self, waiting: asyncio.Future[Any] | None) -> None:
        """Go on when `waiting` is done; None is asyncio's way to say: at the next turn of the loop."""
        self._waiting = waiting
        if waiting is None:
            asyncio.get_running_loop().call_soon(self._advance)
            return
        # What asyncio.Task does with a future it is handed: acknowledge that the await was meant for a scheduler.
        waiting._asyncio_future_blocking = False
        waiting.add_done_callback(self._advance)

    def close(self) -> None:
        """Give up: the coroutine is closed where it waits."""
        self._closed = True  # a callback may be on its way already
        if self._waiting is not None:
            self._waiting.remove_done_callback(self._advance)
        self._coroutine.close()

    def _advance(self, _: asyncio.Future[Any] | None = None) -> None:
        if self._closed:
            return
        try:
            waiting = self._coroutine.send(None)
        except StopIteration as stop:
            self._waiting = None
            self._on_done(stop.value)
        else:
            self.wait_for(waiting)
