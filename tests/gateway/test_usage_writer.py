"""The writer: a sink that never waits, and a store that may fail, hang, refuse or come back without a row being lost."""

from __future__ import annotations

import logging
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from gateway.cli import PROJECT
from gateway.usage_rows import REQUESTS, Row
from gateway.usage_store import FILE, UsageStore
from gateway.usage_totals import RowsRefused, StoreUnavailable
from gateway.usage_writer import BATCH_ROWS, LONGEST_PAUSE_S, REPORT_S, UsageWriter, pause_s
from tests.gateway.postgres import Cluster, cluster
from tests.gateway.usage_records import DAY, NOON, eventually, record

MODEL = [column.name for column in REQUESTS.columns].index("model")
REQUEST = [column.name for column in REQUESTS.columns].index("request_id")


class ScriptedStore:
    """Rows in memory. closed: nobody gets in. trouble: raised instead of taking rows. It refuses rows of the model 'refused'."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.batches: list[int] = []
        self.trouble: Exception | None = None
        self.tried = 0
        self.open = threading.Event()
        self.open.set()
        self.entered = threading.Event()
        self.deleted: list[float] = []
        self.old = 0

    def insert(self, rows: Sequence[Row]) -> None:
        self.tried += 1
        self.entered.set()
        self.open.wait()
        if self.trouble is not None:
            raise self.trouble
        if any(row[MODEL] == "refused" for row in rows):
            raise RowsRefused("no such model")
        self.batches.append(len(rows))
        self.rows.extend(rows)

    def delete_before(self, time: float, limit: int = 2) -> int:
        if self.trouble is not None:
            raise self.trouble
        self.deleted.append(time)
        count = min(self.old, limit)
        self.old -= count
        return count

    @property
    def names(self) -> list[object]:
        return [row[REQUEST] for row in self.rows]


@contextmanager
def writing(store: ScriptedStore | UsageStore, queue_size: int = 10_000, **options: object) -> Iterator[UsageWriter]:
    writer = UsageWriter(store, queue_size=queue_size, **{"gather_s": 0.0, **options})  # type: ignore[arg-type]
    writer.start()
    try:
        yield writer
    finally:
        if isinstance(store, ScriptedStore):
            store.open.set()
        writer.close(0)
        writer._thread.join(60)


def names(count: int, start: int = 0) -> list[str]:
    return [f"req_{number}" for number in range(start, start + count)]


def sink_all(writer: UsageWriter, count: int, start: int = 0) -> None:
    for name in names(count, start):
        writer(record(name))


class TestQueue:
    def test_every_record_is_written_once_and_in_order(self) -> None:
        store = ScriptedStore()
        with writing(store) as writer:
            sink_all(writer, 1000)
            eventually(lambda: writer.waiting == 0, "all are written")
            assert (writer.written, writer.dropped) == (1000, 0)
        assert store.names == names(1000)
        assert max(store.batches) <= BATCH_ROWS

    def test_the_sink_returns_while_the_store_hangs(self) -> None:
        store = ScriptedStore()
        store.open.clear()
        with writing(store, queue_size=500) as writer:
            writer(record("req_0"))
            store.entered.wait()
            sink_all(writer, 599, start=1)  # would never return if it waited for the store
            assert (writer.waiting, writer.written, writer.dropped) == (500, 0, 100)
            store.open.set()
            eventually(lambda: writer.waiting == 0, "all are written")
            assert (writer.written, writer.dropped) == (500, 100)
        assert store.names == names(500)  # the newest are the ones that found no place

    def test_there_is_place_again_once_rows_are_written(self) -> None:
        store = ScriptedStore()
        with writing(store, queue_size=1) as writer:
            for number in range(3):
                sink_all(writer, 1, start=number)
                eventually(lambda: writer.waiting == 0, "it is written")
            assert (writer.written, writer.dropped) == (3, 0)

    def test_requests_from_several_threads_are_all_there(self) -> None:
        store = ScriptedStore()
        with writing(store) as writer:
            threads = [threading.Thread(target=sink_all, args=(writer, 500, start)) for start in (0, 500, 1000, 1500)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            eventually(lambda: writer.waiting == 0, "all are written")
        assert sorted(map(str, store.names)) == sorted(names(2000))


class TestTrouble:
    @pytest.mark.parametrize("trouble", [StoreUnavailable("the usage store is away"), ZeroDivisionError("a fault of ours")])
    def test_a_store_that_fails_is_tried_again_and_nothing_is_lost(self, trouble: Exception) -> None:
        store = ScriptedStore()
        store.trouble = trouble
        with writing(store) as writer:
            sink_all(writer, 300)
            eventually(lambda: store.tried >= 3, "it is tried again")
            assert (writer.waiting, writer.written, writer.dropped) == (300, 0, 0)
            store.trouble = None
            eventually(lambda: writer.waiting == 0, "all are written")
            assert (writer.written, writer.dropped) == (300, 0)
        assert store.names == names(300)

    def test_a_row_that_is_refused_for_good_does_not_stop_the_others(self) -> None:
        store = ScriptedStore()
        store.open.clear()
        with writing(store) as writer:
            for number in range(1000):
                writer(record(f"req_{number}", model="refused" if number in (3, 4, 500, 999) else "m"))
            store.open.set()
            eventually(lambda: writer.waiting == 0, "all are written or dropped")
            assert (writer.written, writer.dropped) == (996, 4)
        assert store.names == [name for name in names(1000) if name not in ("req_3", "req_4", "req_500", "req_999")]

    def test_a_record_that_is_none_does_not_stop_the_others(self, caplog: pytest.LogCaptureFixture) -> None:
        store = ScriptedStore()
        with writing(store) as writer:
            writer(record("req_0", attempts=None))
            writer(record("req_1"))
            eventually(lambda: writer.waiting == 0, "it is written")
            eventually(lambda: writer.written == 1, "it is written")
            assert writer.dropped == 1
        assert store.names == ["req_1"]
        assert "request_id=req_0" in caplog.text

    def test_each_pause_is_twice_as_long_up_to_a_limit(self) -> None:
        assert [pause_s(failures) for failures in (1, 2, 3, 4)] == [0.1, 0.2, 0.4, 0.8]
        assert pause_s(5000) == LONGEST_PAUSE_S

    def test_the_log_says_it_once_in_a_while(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.WARNING)
        time = [0.0]
        store = ScriptedStore()
        store.trouble = StoreUnavailable("the usage store is away")
        store.open.clear()
        with writing(store, queue_size=2, clock=lambda: time[0]) as writer:
            sink_all(writer, 5)
            store.open.set()
            eventually(lambda: len(caplog.messages) == 2 and store.tried >= 2, "it is told, and tried again")
            assert [line.split(";")[0] for line in caplog.messages] == [
                "the usage store is away",
                "3 requests were not kept in the usage store",
            ]
            assert "2 requests wait in memory, 2 at most" in caplog.messages[0]
            time[0] += REPORT_S
            tried = store.tried
            eventually(lambda: store.tried > tried + 1, "it is tried again, twice")
            assert [line.split(";")[0] for line in caplog.messages[2:]] == ["the usage store is away"]
            store.trouble = None
            eventually(lambda: writer.waiting == 0, "all are written")
        assert caplog.messages[3:] == ["the usage store takes requests again"]


class TestEnd:
    def test_what_waits_is_written_before_the_end(self) -> None:
        store = ScriptedStore()
        with writing(store, gather_s=3600.0) as writer:
            sink_all(writer, 1000)
            assert writer.close(60) == 0
        assert store.names == names(1000)

    def test_a_store_that_hangs_does_not_hold_up_the_end(self, caplog: pytest.LogCaptureFixture) -> None:
        store = ScriptedStore()
        store.open.clear()
        with writing(store) as writer:
            sink_all(writer, 7)
            store.entered.wait()
            assert writer.close(0.05) == 7
            store.open.set()
            writer._thread.join(60)
            assert (writer.waiting, writer.written, writer.dropped) == (0, 0, 7)
        assert "7 requests were not written" in caplog.text

    def test_a_store_that_fails_gets_its_time(self) -> None:
        store = ScriptedStore()
        store.trouble = StoreUnavailable("away")
        with writing(store) as writer:
            sink_all(writer, 7)
            eventually(lambda: store.tried >= 1, "it was tried")
            closing = threading.Thread(target=writer.close, args=(60,))
            closing.start()
            tried = store.tried
            eventually(lambda: store.tried > tried + 1, "it is tried again while it closes")
            store.trouble = None
            closing.join()
            assert (writer.written, writer.dropped) == (7, 0)

    def test_a_request_that_ends_after_the_end_is_counted(self) -> None:
        with writing(ScriptedStore()) as writer:
            writer.close(60)
            writer(record())
            assert (writer.waiting, writer.dropped) == (0, 1)

    def test_a_writer_that_never_started_closes(self) -> None:
        writer = UsageWriter(ScriptedStore(), queue_size=3)
        sink_all(writer, 5)
        assert (writer.waiting, writer.dropped) == (3, 2)
        assert writer.close(60) == 3


class TestRetention:
    def test_what_is_too_old_is_deleted_at_the_start_and_then_each_hour(self) -> None:
        time = [0.0]
        store = ScriptedStore()
        store.old = 3
        with writing(store, retention_days=30, now=lambda: NOON, clock=lambda: time[0]) as writer:
            eventually(lambda: len(store.deleted) == 3, "two rounds, and one that found nothing")
            assert set(store.deleted) == {NOON - 30 * DAY}
            time[0] += 3600
            writer(record())  # wakes it: the clock stands still for whoever waits
            eventually(lambda: len(store.deleted) == 4, "an hour later")

    def test_a_busy_writer_deletes_as_well(self) -> None:
        store = ScriptedStore()
        store.old = 9
        with writing(store, retention_days=1, now=lambda: NOON) as writer:
            sink_all(writer, 2000)
            eventually(lambda: store.old == 0, "all of them are deleted")

    def test_a_store_that_cannot_delete_goes_on_writing(self) -> None:
        time = [0.0]
        store = ScriptedStore()
        store.trouble = StoreUnavailable("away")
        with writing(store, retention_days=1, clock=lambda: time[0]) as writer:
            sink_all(writer, 1)
            eventually(lambda: store.tried > 0, "it was tried")
            store.trouble = None
            eventually(lambda: writer.written == 1, "it is written")
            time[0] += REPORT_S
            sink_all(writer, 1)
            eventually(lambda: store.deleted != [], "it is tried again")

    def test_nothing_is_deleted_without_retention(self) -> None:
        store = ScriptedStore()
        with writing(store) as writer:
            sink_all(writer, 1)
            eventually(lambda: writer.written == 1, "it is written")
        assert store.deleted == []


class TestRealStores:
    def test_rows_wait_while_another_program_has_locked_the_file(self, tmp_path: Path) -> None:
        store = UsageStore(f"sqlite:///{tmp_path / FILE}", answer_s=0.05)
        with writing(store) as writer:
            sink_all(writer, 1)
            eventually(lambda: writer.written == 1, "the first is written")
            other = sqlite3.connect(tmp_path / FILE, isolation_level=None)
            other.execute("BEGIN EXCLUSIVE")
            sink_all(writer, 999, start=1)
            assert (writer.waiting, writer.written, writer.dropped) == (999, 1, 0)
            other.execute("COMMIT")
            other.close()
            eventually(lambda: writer.waiting == 0, "all are written")
            assert (writer.written, writer.dropped) == (1000, 0)
        assert [total.requests for total in store.summary()] == [1000]
        store.close()

    def test_old_requests_leave_the_file(self, tmp_path: Path) -> None:
        store = UsageStore(f"sqlite:///{tmp_path / FILE}")
        with writing(store) as first:
            for day in range(10):
                first(record(at=NOON - day * DAY))
            first.close(60)
        with writing(store, retention_days=5, now=lambda: NOON + 1):
            eventually(lambda: [total.requests for total in store.summary()] == [5], "the old ones are gone")
        store.close()


@pytest.fixture(scope="module")
def postgres() -> Iterator[Cluster]:
    with cluster() as own:
        yield own


@pytest.fixture
def emptied(postgres: Cluster) -> Cluster:
    postgres.start()
    postgres.run(f"DROP TABLE IF EXISTS {REQUESTS.name}")
    return postgres


class TestPostgres:
    def test_nothing_is_lost_while_the_server_is_stopped(self, emptied: Cluster) -> None:
        store = UsageStore(emptied.url)
        with writing(store, queue_size=800) as writer:
            sink_all(writer, 300)
            eventually(lambda: writer.written == 300, "the first are written")
            emptied.stop()
            sink_all(writer, 900, start=300)
            assert (writer.waiting, writer.written, writer.dropped) == (800, 300, 100)
            emptied.start()
            eventually(lambda: writer.waiting == 0, "all are written")
            assert (writer.written, writer.dropped) == (1100, 100)
        kept = {name for (name,) in emptied.run(f"SELECT request_id FROM {REQUESTS.name}")}
        assert kept == set(names(1100))
        store.close()

    def test_a_server_that_is_there_later_than_the_gateway_gets_everything(self, emptied: Cluster) -> None:
        emptied.stop()
        store = UsageStore(emptied.url)
        with writing(store) as writer:
            sink_all(writer, 500)
            assert (writer.waiting, writer.dropped) == (500, 0)
            emptied.start()
            eventually(lambda: writer.waiting == 0, "all are written")
        assert [total.requests for total in store.summary()] == [500]
        store.close()

    def test_nothing_is_lost_or_doubled_while_the_server_is_frozen(self, emptied: Cluster) -> None:
        store = UsageStore(emptied.url, answer_s=0.2)
        with writing(store) as writer:
            sink_all(writer, 100)
            eventually(lambda: writer.written == 100, "the first are written")
            with emptied.frozen():
                sink_all(writer, 400, start=100)
                eventually(lambda: writer._failures > 0, "the writer gives the server up")
                assert (writer.waiting, writer.written) == (400, 100)
            eventually(lambda: writer.waiting == 0, "all are written")
        assert emptied.run(f"SELECT count(*), count(DISTINCT request_id) FROM {REQUESTS.name}") == [(500, 500)]
        store.close()


KEEPS_WRITING = """
import sys
from gateway.usage_store import UsageStore
from gateway.usage_writer import UsageWriter
from tests.gateway.usage_records import record

writer = UsageWriter(UsageStore("sqlite:///" + sys.argv[1]), queue_size=1000, gather_s=0.0)
writer.start()
number = said = 0
while True:
    if writer.waiting < 1000:
        writer(record(f"req_{number}"))
        number += 1
    if writer.written > said:
        said = writer.written
        print(said, flush=True)
"""


def test_what_was_committed_survives_kill_9(tmp_path: Path) -> None:
    file = tmp_path / FILE
    command = [sys.executable, "-c", KEEPS_WRITING, str(file)]
    said = 0
    with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        guard = threading.Timer(60, process.kill)
        guard.start()
        for line in process.stdout:
            said = int(line)
            if said > 3000:
                process.send_signal(signal.SIGKILL)
                break
        said = max([said, *(int(line) for line in process.stdout if line.endswith("\n"))])
        guard.cancel()
    assert said > 3000
    store = UsageStore(f"sqlite:///{file}")
    (total,) = store.summary()
    assert total.requests >= said
    with writing(store) as writer:
        writer(record("after"))
        writer.close(60)
    store.close()
    database = sqlite3.connect(file)
    assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    kept = [name for (name,) in database.execute(f"SELECT request_id FROM {REQUESTS.name} ORDER BY rowid")]
    database.close()
    assert kept == [*names(total.requests), "after"]  # a beginning of all that was ever handed over, without a gap
