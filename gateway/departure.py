"""Noticing that a client has left while its answer is being made.

uvicorn cancels nothing for a handler that is not writing, so the request's own task is cancelled here, at once, wherever it waits:
in a queue, for an engine to load, for an upstream to connect or to answer.
"""

from __future__ import annotations

import asyncio
from types import TracebackType

from starlette.types import Scope

from gateway.http_protocol import cycle_of


class Departure:
    """`with Departure(scope):` cancels the current task when the client goes, and swallows that cancellation at the block's end.

    gone: whether that has happened. Use it after the request's body has been read in full.
    """

    __slots__ = ("_cycle", "_task", "gone")

    def __init__(self, scope: Scope) -> None:
        self.gone = False
        self._cycle = cycle_of(scope)

    def __enter__(self) -> Departure:
        task = asyncio.current_task()
        assert task is not None, "a request is handled in a task"
        self._task = task
        self._cycle.watch(self._left)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> bool:
        self._cycle.unwatch()  # it refers to this object: together they would keep the request alive until the collector comes
        if not self.gone:
            return False
        self._task.uncancel()
        return kind is asyncio.CancelledError

    def _left(self) -> None:
        self.gone = True
        self._task.cancel()
