"""Things that wait to be written, and the one thread that writes them.

Whoever puts something in is never delayed: when the backlog is full, what comes is dropped and counted. Closing takes a bounded time.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Backlog(Generic[Item]):
    """write: gets what has gathered, oldest first, at most `batch` at once, in a thread of its own; may take as long as it likes.

    limit: how many may wait; gather_s: seconds that a batch gathers before it is written, unless it is full earlier.
    rest: seconds without work after each second of processor time that `write` took. It shares the event loop's processor; while it
    rests what comes gathers, and is dropped once the backlog is full.
    What `write` raises costs its batch, no more.
    """

    def __init__(self, name: str, write: Callable[[list[Item]], None], *, limit: int, batch: int, gather_s: float, rest: float = 0) -> None:
        self._write, self._limit, self._batch, self._gather_s, self._rest = write, limit, batch, gather_s, rest
        self._waiting: deque[Item] = deque()
        self._lock = threading.Lock()
        self._some, self._enough, self._ending = threading.Event(), threading.Event(), threading.Event()
        self._closed = False
        self.dropped = 0
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)  # daemon: a write that hangs must not keep the process
        self._thread.start()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def put(self, item: Item) -> None:
        """From any thread. Returns at once."""
        with self._lock:
            if self._closed or len(self._waiting) >= self._limit:
                self.dropped += 1
                return
            self._waiting.append(item)
            many = len(self._waiting) >= self._batch
        if many:
            self._enough.set()
        if not self._some.is_set():
            self._some.set()

    def close(self, within_s: float) -> bool:
        """Write what waits, then end; give up after `within_s` seconds. Returns whether everything was written or dropped by then."""
        deadline = time.monotonic() + within_s
        with self._lock:
            self._closed = True
        for event in (self._ending, self._enough, self._some):
            event.set()
        self._thread.join(max(0.0, deadline - time.monotonic()))
        with self._lock:
            self.dropped += len(self._waiting)
            self._waiting.clear()
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            self._some.wait()
            self._enough.wait(self._gather_s)
            items = self._next()
            if items:
                begun_s = time.thread_time()
                self._write_or_drop(items)
                self._ending.wait((time.thread_time() - begun_s) * self._rest)
            elif self._closed:
                return

    def _next(self) -> list[Item]:
        with self._lock:
            items = [self._waiting.popleft() for _ in range(min(self._batch, len(self._waiting)))]
            if not self._closed:
                if len(self._waiting) < self._batch:
                    self._enough.clear()
                if not self._waiting:
                    self._some.clear()
            return items

    def _write_or_drop(self, items: list[Item]) -> None:
        try:
            self._write(items)
        except Exception:  # noqa: BLE001 - whatever it is, the next batch deserves its try, and there is nobody to tell
            with self._lock:
                self.dropped += len(items)
