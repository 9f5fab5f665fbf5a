"""The usage store, on both databases that it knows: what is kept, what is summed up, and how it fails."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pytest
from pydantic import SecretStr
from sqlalchemy import Engine, event

from adapters.usage import Usage
from config.schema import UsageSpec
from gateway.record import RequestRecord
from gateway.usage_rows import REQUESTS, Row, row_of
from gateway.usage_store import FILE, UsageStore, store_at
from gateway.usage_totals import RowsRefused, Spent, StoreUnavailable
from tests.gateway.postgres import Cluster, cluster
from tests.gateway.usage_records import DAY, NOON, record


@pytest.fixture(scope="module")
def postgres() -> Iterator[Cluster]:
    with cluster() as own:
        yield own


@pytest.fixture(params=["sqlite", "postgres"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[UsageStore]:
    """An empty one."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / FILE}"
    else:
        own: Cluster = request.getfixturevalue("postgres")
        own.run(f"DROP TABLE IF EXISTS {REQUESTS.name}")
        url = own.url
    opened = UsageStore(url)
    yield opened
    opened.close()


def write(store: UsageStore, *records: RequestRecord) -> None:
    store.insert([row_of(each) for each in records])


def requests_in(store: UsageStore) -> int:
    return sum(total.requests for total in store.summary())


def changed(row: Row, **values: object) -> Row:
    names = [column.name for column in REQUESTS.columns]
    return tuple(values.get(name, value) for name, value in zip(names, row, strict=True))  # type: ignore[misc]


def test_nothing_is_created_by_looking_whether_it_exists(store: UsageStore) -> None:
    assert not store.exists()
    assert not store.exists()
    write(store, record())
    assert store.exists()


def test_an_empty_store_has_no_totals(store: UsageStore) -> None:
    assert store.summary() == []
    assert store.summary(by=("day", "key_id", "model")) == []
    assert store.spent_since(0) == {}
    assert store.delete_before(NOON) == 0


def test_the_total_of_everything(store: UsageStore) -> None:
    write(
        store,
        record(first_token_s=0.2),
        record(first_token_s=0.4, cost_usd=None),
        record(outcome="failed", usage=None, cost_usd=None, first_token_s=None, duration_s=4.0),
        record(outcome="client_left", usage=Usage(7, 3, estimated=True), cost_usd=0.25, first_token_s=None, images=2),
    )
    (total,) = store.summary()
    assert (total.key_id, total.model, total.day) == (None, None, None)
    assert (total.requests, total.failures, total.client_left, total.estimated, total.unpriced) == (4, 1, 1, 1, 1)
    assert (total.prompt_tokens, total.completion_tokens, total.cached_tokens, total.reasoning_tokens) == (207, 43, 20, 10)
    assert (total.cost_usd, total.images) == (0.75, 2)
    assert total.mean_first_token_s == pytest.approx(0.3)
    assert total.mean_duration_s == pytest.approx(1.75)
    assert total.mean_overhead_s == pytest.approx((0.25 * 3 + 3.25) / 4)


def test_totals_by_day_key_and_model_come_in_order(store: UsageStore) -> None:
    write(
        store,
        record(at=NOON + DAY, key_id="k2"),
        record(at=NOON, key_id="k2", model="b"),
        record(at=NOON, key_id="k2", model="a"),
        record(at=NOON + 1, key_id="k2", model="a"),
        record(at=NOON, key_id="k1"),
    )
    found = [(total.day, total.key_id, total.model, total.requests) for total in store.summary(by=("model", "key_id", "day"))]
    first, second = date(2026, 11, 20), date(2026, 11, 21)
    assert found == [(first, "k1", "m", 1), (first, "k2", "a", 2), (first, "k2", "b", 1), (second, "k2", "m", 1)]
    assert [(total.day, total.key_id, total.requests) for total in store.summary(by=("key_id",))] == [(None, "k1", 1), (None, "k2", 4)]


def test_a_day_begins_at_midnight_in_utc(store: UsageStore) -> None:
    midnight = NOON - NOON % DAY
    write(store, record(at=midnight - 0.001), record(at=midnight), record(at=midnight + DAY - 0.001))
    assert [(total.day, total.requests) for total in store.summary(by=("day",))] == [(date(2026, 11, 19), 1), (date(2026, 11, 20), 2)]


def test_a_time_holds_its_beginning_and_not_its_end(store: UsageStore) -> None:
    write(store, *(record(at=NOON + second) for second in range(10)))
    (total,) = store.summary(NOON + 2, NOON + 5)
    assert total.requests == 3
    assert store.summary(NOON + 10) == []


def test_one_key_sees_its_own_requests_only(store: UsageStore) -> None:
    write(store, record(key_id="k1"), record(key_id="k2"), record(key_id="k2"))
    assert [total.requests for total in store.summary(key_id="k2")] == [2]
    assert store.summary(key_id="k3") == []


def test_what_was_spent_since_a_time_by_key_and_model(store: UsageStore) -> None:
    write(
        store,
        record(at=NOON - 1, cost_usd=100.0),
        record(at=NOON, cost_usd=0.25),
        record(at=NOON + 1, cost_usd=0.5),
        record(at=NOON, model="free", cost_usd=None),
        record(at=NOON, key_id="k2", usage=None, cost_usd=None),
    )
    assert store.spent_since(NOON) == {
        "k1": {"m": Spent(0.75, 240, 2), "free": Spent(0.0, 120, 1)},
        "k2": {"m": Spent(0.0, 0, 1)},
    }


def test_sums_may_be_larger_than_any_single_figure(store: UsageStore) -> None:
    write(store, *(record(usage=Usage(10**30, 10**30)) for _ in range(100)))
    (total,) = store.summary()
    assert total.prompt_tokens == 100 * 10**12


def test_rows_that_are_written_twice_are_there_once(store: UsageStore) -> None:
    rows = [row_of(record(f"req_{number}")) for number in range(5)]
    store.insert(rows[:3])
    store.insert(rows)
    store.insert([])
    assert requests_in(store) == 5


def test_a_batch_is_written_whole_or_not_at_all(store: UsageStore) -> None:
    rows = [row_of(record(f"req_{number}")) for number in range(5)]
    with pytest.raises(RowsRefused) as caught:
        store.insert([*rows, changed(rows[0], id="other", model=None)])
    assert "req_4" not in str(caught.value.__cause__)  # the other rows are nobody's business who reads a traceback
    assert requests_in(store) == 0
    store.insert(rows)
    assert requests_in(store) == 5


def test_batches_of_any_size_are_written_with_few_statements(store: UsageStore) -> None:
    """The driver keeps each of them, and they are long: one for each size that a batch can have would cost tens of megabytes."""
    statements: set[str] = set()

    def note(connection: object, cursor: object, statement: str, *more: object) -> None:
        statements.add(statement)

    sizes = [*range(1, 70), 255, 256, 257, 600]
    write(store, record("first"))
    event.listen(Engine, "before_cursor_execute", note)
    try:
        for size in sizes:
            write(store, *(record(f"req_{number}") for number in range(size)))
    finally:
        event.remove(Engine, "before_cursor_execute", note)
    assert requests_in(store) == 1 + sum(sizes)
    assert 0 < len([statement for statement in statements if statement.startswith("INSERT")]) <= 9


def test_any_text_a_client_may_send_as_a_model_is_kept(store: UsageStore) -> None:
    names = ["", "a'b\"; DROP TABLE tandem_requests", "日本", "a\x00b", "\udc80", "%s %(x)s :p ?", "x" * 5000, "\\u0000"]
    write(store, *(record(model=name) for name in names))
    kept = {total.model for total in store.summary(by=("model",))}
    assert kept == {"", names[1], "日本", "ab", "?", names[5], "x" * 512, names[7]}


def test_the_oldest_are_deleted_first_and_some_at_a_time(store: UsageStore) -> None:
    write(store, *(record(at=NOON + second) for second in range(10)))
    assert store.delete_before(NOON + 6, 4) == 4
    assert requests_in(store) == 6
    (left,) = store.summary(NOON + 4)
    assert left.requests == 6
    assert store.delete_before(NOON + 6, 4) == 2
    assert store.delete_before(NOON + 6, 4) == 0
    assert requests_in(store) == 4


def test_a_table_that_is_taken_away_is_made_again(store: UsageStore, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    write(store, record())
    statement = f"DROP TABLE {REQUESTS.name}"
    if (tmp_path / FILE).exists():
        with sqlite3.connect(tmp_path / FILE) as database:
            database.execute(statement)
        database.close()
    else:
        request.getfixturevalue("postgres").run(statement)
    with pytest.raises(StoreUnavailable):
        write(store, record())
    write(store, record(), record())
    assert requests_in(store) == 2


def test_several_writers_and_readers_at_once(store: UsageStore) -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for _ in range(5):
                write(store, *(record(key_id=f"k{number}") for _ in range(20)))
                store.summary(by=("key_id",))
        except Exception as error:  # noqa: BLE001 - told below
            failures.append(error)

    write(store, record(key_id="first"))
    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert requests_in(store) == 401


class TestIndexes:
    def test_sqlite_finds_a_key_a_time_and_the_oldest_by_index(self, tmp_path: Path) -> None:
        store = UsageStore(f"sqlite:///{tmp_path / FILE}")
        write(store, record())
        store.close()
        with sqlite3.connect(tmp_path / FILE) as database:
            for condition in ("started_at >= 5", "key_id = 'k1' AND started_at >= 5", "started_at < 5 ORDER BY started_at LIMIT 9"):
                plan = database.execute(f"EXPLAIN QUERY PLAN SELECT id FROM {REQUESTS.name} WHERE {condition}").fetchall()
                assert "SEARCH" in plan[0][3]
                assert "USING" in plan[0][3]
            assert database.execute("PRAGMA journal_mode").fetchall() == [("wal",)]
        database.close()

    def test_postgresql_has_the_same_indexes(self, postgres: Cluster) -> None:
        postgres.run(f"DROP TABLE IF EXISTS {REQUESTS.name}")
        store = UsageStore(postgres.url)
        write(store, record())
        store.close()
        found = {name for (name,) in postgres.run(f"SELECT indexname FROM pg_indexes WHERE tablename = '{REQUESTS.name}'")}
        assert {"tandem_requests_by_time", "tandem_requests_by_key"} < found


class TestSQLiteTrouble:
    def test_a_locked_file_is_unavailable_and_can_be_read(self, tmp_path: Path) -> None:
        store = UsageStore(f"sqlite:///{tmp_path / FILE}", answer_s=0.05)
        write(store, record())
        other = sqlite3.connect(tmp_path / FILE, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable, match=r"usage\.sqlite does not answer: database is locked"):
            write(store, record())
        assert requests_in(store) == 1
        other.execute("COMMIT")
        other.close()
        write(store, record())
        assert requests_in(store) == 2
        store.close()

    def test_a_folder_that_is_not_there_is_unavailable_until_it_is(self, tmp_path: Path) -> None:
        store = UsageStore(f"sqlite:///{tmp_path / 'later' / FILE}")
        assert not store.exists()
        with pytest.raises(StoreUnavailable, match="unable to open database file"):
            write(store, record())
        (tmp_path / "later").mkdir()
        write(store, record())
        assert requests_in(store) == 1
        store.close()

    def test_a_file_that_is_no_database_is_unavailable(self, tmp_path: Path) -> None:
        (tmp_path / FILE).write_bytes(b"not a database" * 100)
        store = UsageStore(f"sqlite:///{tmp_path / FILE}")
        with pytest.raises(StoreUnavailable, match="file is not a database"):
            store.exists()
        store.close()

    def test_a_file_that_was_deleted_under_us_is_made_again(self, tmp_path: Path) -> None:
        store = UsageStore(f"sqlite:///{tmp_path / FILE}")
        write(store, record())
        for path in tmp_path.glob(f"{FILE}*"):
            path.unlink()
        write(store, record(), record())
        assert (tmp_path / FILE).exists()
        assert requests_in(store) == 2
        store.close()


class TestPostgresTrouble:
    def test_an_error_names_the_place_and_not_the_password(self, tmp_path: Path) -> None:
        store = UsageStore(f"postgresql://tandem:s3cret@/postgres?host={tmp_path}")
        with pytest.raises(StoreUnavailable) as caught:
            write(store, record(model="private"))
        assert str(caught.value).startswith("the usage store postgresql://tandem:***@/postgres")
        assert "s3cret" not in str(caught.value)
        assert "private" not in str(caught.value)
        assert "\n" not in str(caught.value)
        store.close()

    def test_a_reader_does_not_notice_a_restart(self, postgres: Cluster) -> None:
        postgres.run(f"DROP TABLE IF EXISTS {REQUESTS.name}")
        store = UsageStore(postgres.url)
        write(store, record())
        assert requests_in(store) == 1
        postgres.stop()
        postgres.start()
        assert requests_in(store) == 1
        store.close()

    def test_a_server_that_says_nothing_is_given_up(self, postgres: Cluster) -> None:
        postgres.run(f"DROP TABLE IF EXISTS {REQUESTS.name}")
        store = UsageStore(postgres.url, answer_s=0.2)
        rows = [row_of(record())]
        store.insert(rows)
        with postgres.frozen(), pytest.raises(StoreUnavailable):
            store.insert(rows)  # without a limit this would never end
        store.insert([*rows, row_of(record())])
        assert requests_in(store) == 2
        store.close()

    def test_a_role_that_may_only_read_and_write_is_enough(self, postgres: Cluster) -> None:
        first = UsageStore(postgres.url)
        write(first, record())
        first.close()
        postgres.run("DROP ROLE IF EXISTS clerk")
        postgres.run("CREATE ROLE clerk LOGIN")
        postgres.run("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
        postgres.run(f"GRANT SELECT, INSERT, DELETE ON {REQUESTS.name} TO clerk")
        clerk = UsageStore(postgres.url.replace("tandem:s3cret", "clerk"))
        before = requests_in(clerk)
        write(clerk, record())
        assert requests_in(clerk) == before + 1
        clerk.close()
        postgres.run(f"REVOKE ALL ON {REQUESTS.name} FROM clerk")
        postgres.run("DROP ROLE clerk")


def test_the_configuration_names_the_place(tmp_path: Path) -> None:
    assert store_at(UsageSpec(), tmp_path).place == str(tmp_path / "usage.sqlite")
    assert store_at(UsageSpec(url=SecretStr("sqlite:////var/x.db")), tmp_path).place == "/var/x.db"
    assert store_at(UsageSpec(url=SecretStr("postgres://u:s3cret@h:1/n")), tmp_path).place == "postgresql://u:***@h:1/n"


def test_a_data_directory_may_have_any_name(tmp_path: Path) -> None:
    folder = tmp_path / "a?b#c%20 ü"
    folder.mkdir()
    store = store_at(UsageSpec(), folder)
    write(store, record())
    assert (folder / FILE).exists()
    store.close()
