"""How late the event loop is: a timer that says when it wanted to be called and when it was.

Nothing but one timer handle lives here, no task: after `close` nothing is left in the loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

INTERVAL_S = 0.5


class Timer(Protocol):
    """What is needed of a timer handle."""

    def cancel(self) -> None: ...


class Timers(Protocol):
    """What is needed of an event loop."""

    def time(self) -> float: ...

    def call_at(self, when: float, callback: Callable[[], object], /) -> Timer: ...


@dataclass(frozen=True, slots=True)
class Lag:
    """Seconds by which the last call came late, and the largest of them since somebody last took a reading."""

    last_s: float = 0.0
    max_s: float = 0.0


class LoopLag:
    """See the module."""

    def __init__(self, interval_s: float = INTERVAL_S) -> None:
        self._interval_s = interval_s
        self._loop: Timers | None = None
        self._timer: Timer | None = None
        self._due = self._last_s = self._max_s = 0.0

    def start(self, loop: Timers | None = None) -> None:
        """Begin to measure this loop, the running one where none is named."""
        self.close()
        self._loop = loop or asyncio.get_running_loop()
        self._arm(self._loop)

    def close(self) -> None:
        """Stop measuring. May be called again, and without a start."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def take(self) -> Lag:
        """The lag by now; the maximum begins anew. A timer that is overdue counts: a loop that was blocked shows it at once."""
        overdue_s = max(0.0, self._loop.time() - self._due) if self._loop is not None and self._timer is not None else 0.0
        lag = Lag(max(self._last_s, overdue_s), max(self._max_s, overdue_s))
        self._max_s = 0.0
        return lag

    def _arm(self, loop: Timers) -> None:
        self._due = loop.time() + self._interval_s
        self._timer = loop.call_at(self._due, lambda: self._called(loop))

    def _called(self, loop: Timers) -> None:
        self._last_s = max(0.0, loop.time() - self._due)
        self._max_s = max(self._max_s, self._last_s)
        self._arm(loop)
