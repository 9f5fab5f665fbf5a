"""The usage of this gateway: one store, one writer into it, and reads that cannot hold up anything else.

`open_usage` starts the writer and touches no database: the gateway starts, and answers, whether or not there is one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from config.schema import Settings
from gateway.record import RequestRecord
from gateway.usage_totals import Group, Spent, StoreUnavailable, Total
from gateway.usage_writer import UsageWriter

if TYPE_CHECKING:
    from gateway.usage_store import UsageStore

READERS = 2  # threads of their own: a store that hangs must not take those that look up addresses
MAX_READS = 16  # at a time; one more is refused at once
READ_S = 15.0
CLOSE_S = 5.0

T = TypeVar("T")


class UsageLedger:
    """What requests used. It is a Sink: hand it each record once its request has ended. `close` it after serving."""

    def __init__(self, store: UsageStore, writer: UsageWriter) -> None:
        self._store, self.writer = store, writer
        self._threads = ThreadPoolExecutor(READERS, "usage-reader")
        self._reads = 0

    def __call__(self, record: RequestRecord) -> None:
        self.writer(record)

    async def summary(self, since: float | None, until: float | None, by: Sequence[Group] = (), key_id: str | None = None) -> list[Total]:
        """See UsageStore.summary. Raises StoreUnavailable, after READ_S at the latest."""
        return await self._read(lambda: self._store.summary(since, until, by, key_id))

    async def spent_since(self, since: float) -> dict[str, dict[str, Spent]]:
        """See UsageStore.spent_since. Raises StoreUnavailable, after READ_S at the latest."""
        return await self._read(lambda: self._store.spent_since(since))

    async def _read(self, ask: Callable[[], T]) -> T:
        if self._reads >= MAX_READS:
            raise StoreUnavailable(f"the usage store {self._store.place} is asked {MAX_READS} times already")
        self._reads += 1
        reading = asyncio.get_running_loop().run_in_executor(self._threads, ask)
        reading.add_done_callback(self._read_ended)
        done, _ = await asyncio.wait({reading}, timeout=READ_S)
        if not done:
            raise StoreUnavailable(f"the usage store {self._store.place} has not answered for {READ_S:g} s")
        return reading.result()

    def _read_ended(self, reading: asyncio.Future[T]) -> None:
        self._reads -= 1
        if not reading.cancelled():
            reading.exception()  # whoever waited for it may have left

    def close(self, timeout_s: float = CLOSE_S) -> int:
        """Write what waits, for at most `timeout_s`, in which it blocks. Returns how many requests were lost."""
        lost = self.writer.close(timeout_s)
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._store.close()
        return lost


def open_usage(settings: Settings, data_dir: Path) -> UsageLedger:
    """The ledger of this configuration, its writer running."""
    from gateway.usage_store import store_at  # SQLAlchemy is imported when serving starts, not with the gateway's modules

    store = store_at(settings.usage, data_dir)
    writer = UsageWriter(store, queue_size=settings.usage.queue_size, retention_days=settings.usage.retention_days)
    writer.start()
    return UsageLedger(store, writer)
