"""From ended requests to rows in the usage store: one bounded queue, one thread that writes.

The sink never waits, whatever the store does: it appends to the queue, or counts a drop where the bound is reached. What the queue
has taken stays in it until the store has it; only `close` gives up, after the time that it was given.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from gateway.record import RequestRecord
from gateway.usage_totals import DAY_S, RowsRefused, StoreUnavailable

if TYPE_CHECKING:
    from gateway.usage_rows import Row

BATCH_ROWS = 256  # in one transaction, and in one statement; more would hold Python's lock for milliseconds
GATHER_S = 0.2  # between one batch and the next, so that a quiet gateway does not commit row by row
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 15.0
CLOSING_PAUSE_S = 0.25
REPORT_S = 60.0  # between two lines of the log about the same trouble
CLEANING_S = 3600.0

log = logging.getLogger("tandem.usage")


class Rows(Protocol):
    """Where rows go; `UsageStore` is one. Raises StoreUnavailable, RowsRefused."""

    def insert(self, rows: Sequence[Row]) -> None: ...

    def delete_before(self, time: float, limit: int = ..., /) -> int: ...


class UsageWriter:
    """A Sink. `start` it, and `close` it once no more requests end.

    queue_size: requests that may wait. retention_days: None keeps all. now: Unix time; clock: monotonic; both in seconds.
    """

    def __init__(
        self,
        store: Rows,
        *,
        queue_size: int,
        retention_days: int | None = None,
        gather_s: float = GATHER_S,
        now: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._bound, self._retention_days, self._gather_s = store, queue_size, retention_days, gather_s
        self._now, self._clock = now, clock
        self._queue: deque[RequestRecord] = deque()
        self._in_hand: list[Row] = []  # taken from the queue, not yet known to be written
        self._waiting = self._written = self._dropped = 0
        self._counts = threading.Lock()  # held for a few instructions, by whoever changes one of the three
        self._wake, self._closing, self._gave_up = threading.Event(), threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="usage-writer", daemon=True)
        self._failures = 0  # in a row
        self._told_failure = False
        self._reported_drops = 0
        self._tell_failures, self._tell_refusals, self._tell_drops = _Seldom(clock), _Seldom(clock), _Seldom(clock)
        self._clean_at = clock()

    def __call__(self, record: RequestRecord) -> None:
        """Take this record. Returns at once, in any thread; raises nothing."""
        with self._counts:
            if self._waiting >= self._bound or self._closing.is_set():
                self._dropped += 1
                return
            self._waiting += 1
        self._queue.append(record)
        if not self._wake.is_set():
            self._wake.set()

    @property
    def waiting(self) -> int:
        """Requests that are not written yet."""
        return self._waiting

    @property
    def written(self) -> int:
        return self._written

    @property
    def dropped(self) -> int:
        """Requests that will not be written: above the bound, refused by the database, or left at the end."""
        return self._dropped

    def start(self) -> None:
        self._thread.start()

    def close(self, timeout_s: float) -> int:
        """Take nothing more, and write what waits for at most `timeout_s`. Returns how many were lost; they count as dropped."""
        self._closing.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        with self._counts:
            self._gave_up.set()
            lost, self._waiting = self._waiting, 0
            self._dropped += lost
        if lost:
            log.error("%d requests were not written to the usage store before the gateway ended", lost)
        return lost

    def _count(self, *, written: int = 0, dropped: int = 0) -> None:
        """So many of those that waited wait no longer. What comes after the end was counted as lost."""
        with self._counts:
            if self._gave_up.is_set():
                return
            self._waiting -= written + dropped
            self._written += written
            self._dropped += dropped

    # --- the writer's thread ---------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._gave_up.is_set():
            idle_s = self._clean()
            if self._take():
                self._write()
                self._report_drops()
                self._pause()
            elif self._closing.is_set():
                return
            else:
                self._wake.wait(idle_s)
                self._wake.clear()

    def _take(self) -> bool:
        """Have a batch in hand. False where nothing waits."""
        from gateway.usage_rows import row_of  # with SQLAlchemy, which the store has imported by now

        while len(self._in_hand) < BATCH_ROWS and self._queue:
            record = self._queue.popleft()
            try:
                self._in_hand.append(row_of(record))
            except Exception:  # a record that cannot be one of ours must not stop the others
                log.exception("request_id=%s cannot be made a row of the usage store", record.request_id)
                self._count(dropped=1)
        return bool(self._in_hand)

    def _write(self) -> None:
        try:
            self._insert_what_is_in_hand()
        except StoreUnavailable as error:
            self._failed(str(error))
        except Exception as error:  # noqa: BLE001 - a fault of ours must not lose rows either
            self._failed(f"{type(error).__name__}: {error}")
        else:
            self._failures = 0
            if self._told_failure:
                self._told_failure = False
                log.warning("the usage store takes requests again")

    def _insert_what_is_in_hand(self) -> None:
        """Write all rows in hand but those that the database refuses, found by halving."""
        size = len(self._in_hand)
        while self._in_hand:
            part = self._in_hand[:size]
            try:
                self._store.insert(part)
            except RowsRefused as error:
                if len(part) > 1:
                    size = len(part) // 2
                    continue
                self._refused(str(error))
                size = BATCH_ROWS
            else:
                self._count(written=len(part))
            del self._in_hand[: len(part)]

    def _failed(self, reason: str) -> None:
        self._failures += 1
        if self._tell_failures():
            self._told_failure = True
            log.warning("%s; %d requests wait in memory, %d at most, and are tried again", reason, self.waiting, self._bound)

    def _refused(self, reason: str) -> None:
        self._count(dropped=1)
        if self._tell_refusals():
            log.error("the usage store refuses a request for good: %s", reason)

    def _report_drops(self) -> None:
        new = self._dropped - self._reported_drops
        if new and self._tell_drops():
            self._reported_drops += new
            log.error("%d requests were not kept in the usage store; usage.queue_size is %d", new, self._bound)

    def _pause(self) -> None:
        if self._closing.is_set():
            if self._failures:
                self._gave_up.wait(min(pause_s(self._failures), CLOSING_PAUSE_S))
        elif self._failures:
            self._closing.wait(pause_s(self._failures))
        elif len(self._queue) < BATCH_ROWS:
            self._closing.wait(self._gather_s)

    def _clean(self) -> float | None:
        """Delete what is too old, some at a time, if it is time. Returns the seconds until the next time, None for never."""
        if self._retention_days is None or self._closing.is_set():
            return None
        left = self._clean_at - self._clock()
        if left > 0:
            return left
        try:
            deleted = self._store.delete_before(self._now() - self._retention_days * DAY_S)
            pause = 0.0 if deleted else CLEANING_S
        except Exception as error:  # noqa: BLE001 - whatever it is, it can be done later
            log.warning("requests older than %d days stay in the usage store for now: %s", self._retention_days, error)
            pause = REPORT_S
        self._clean_at = self._clock() + pause
        return pause


class _Seldom:
    """True when called for the first time, then at most once in REPORT_S: for the log, which must not drown in one trouble."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._last: float | None = None

    def __call__(self) -> bool:
        now = self._clock()
        if self._last is not None and now - self._last < REPORT_S:
            return False
        self._last = now
        return True


def pause_s(failures: int) -> float:
    """Seconds to wait after so many failures in a row."""
    return float(min(FIRST_PAUSE_S * 2.0 ** min(failures - 1, 32), LONGEST_PAUSE_S))
