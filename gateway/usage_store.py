"""The usage store: every request that has ended, in SQLite or PostgreSQL, through SQLAlchemy.

Everything here blocks: call it from a thread that may wait, never from the event loop. Nothing is connected to before it is needed,
and a database that fails, hangs or is not there is one exception, `StoreUnavailable`: try again later.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import date, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any

from sqlalchemy import (
    URL,
    ColumnElement,
    Connection,
    Engine,
    Select,
    and_,
    create_engine,
    delete,
    event,
    func,
    inspect,
    make_url,
    or_,
    select,
)
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.schema import CreateIndex, CreateTable

from config.schema import UsageSpec
from gateway.usage_rows import REQUESTS, Row
from gateway.usage_totals import GROUPS, Group, RowsRefused, Spent, StoreUnavailable, Total

FILE = "usage.sqlite"
ANSWER_S = 10.0
CONNECT_S = 5
LONGEST_INSERTION = 256  # rows in one statement, a power of two

_EPOCH = date(1970, 1, 1)


def store_at(spec: UsageSpec, data_dir: Path) -> UsageStore:
    """The store that this configuration names; nothing is opened."""
    return UsageStore(spec.url.get_secret_value() if spec.url else URL.create("sqlite", database=str(data_dir / FILE)))


class UsageStore:
    """answer_s: after this long a database that says nothing counts as gone."""

    def __init__(self, url: str | URL, *, answer_s: float = ANSWER_S) -> None:
        self._url, self._answer_s = _with_driver(make_url(url)), answer_s
        self._engine = _engine(self._url, answer_s)
        self._file = Path(self._url.database) if self._url.get_backend_name() == "sqlite" and self._url.database else None
        self._opened: tuple[int, int] | None = None  # device and inode of the file that our connections have open
        self._has_schema = False

    @property
    def place(self) -> str:
        """Where it is, for people: a path, or a URL without its password."""
        return str(self._file) if self._file else self._url.set(drivername="postgresql").render_as_string(hide_password=True)

    def exists(self) -> bool:
        """Whether anything was ever kept here. Creates nothing. Raises StoreUnavailable."""
        if self._file is not None and not self._file.exists():
            return False
        with self._transaction() as connection:
            return inspect(connection).has_table(REQUESTS.name)

    def insert(self, rows: Sequence[Row]) -> None:
        """Write all of these rows, or none; those that are there already are left as they are. Raises StoreUnavailable, RowsRefused."""
        if not rows:
            return
        self._prepare()
        placeholder = "%s" if self._file is None else "?"
        with self._transaction() as connection:
            try:
                for part in _parts(rows):
                    connection.exec_driver_sql(_insertion(len(part), placeholder), tuple(value for row in part for value in row))
            except (DataError, IntegrityError, ValueError, OverflowError, TypeError) as error:
                raise RowsRefused(_reason(error)) from error

    def summary(
        self, since: float | None = None, until: float | None = None, by: Sequence[Group] = (), key_id: str | None = None
    ) -> list[Total]:
        """Totals of the requests that started from `since` on and before `until` (Unix time), for each combination of `by`, in order.

        key_id: of this key only. Without `by`, one total, or none where there was no request. Raises StoreUnavailable.
        """
        groups = [REQUESTS.c[group] for group in GROUPS if group in by]
        statement = select(*groups, *_sums()).where(*_within(since, until, key_id)).group_by(*groups).order_by(*groups)
        return [_total(row) for row in self._read(statement) if row["requests"]]

    def spent_since(self, since: float) -> dict[str, dict[str, Spent]]:
        """What each key has spent on each model with requests that started from this Unix time on. Raises StoreUnavailable."""
        columns = REQUESTS.c
        tokens = func.sum(columns.prompt_tokens + columns.completion_tokens)
        statement = (
            select(
                columns.key_id,
                columns.model,
                func.sum(columns.cost_usd).label("usd"),
                tokens.label("tokens"),
                func.count().label("requests"),
            )
            .where(columns.started_at >= since)
            .group_by(columns.key_id, columns.model)
        )
        spent: dict[str, dict[str, Spent]] = {}
        for row in self._read(statement):
            spent.setdefault(row["key_id"], {})[row["model"]] = Spent(float(row["usd"] or 0), int(row["tokens"]), row["requests"])
        return spent

    def delete_before(self, time: float, limit: int = 1000) -> int:
        """Delete the oldest requests that started before this Unix time, at most `limit`. Returns how many. Raises StoreUnavailable."""
        self._prepare()
        oldest = select(REQUESTS.c.id).where(REQUESTS.c.started_at < time).order_by(REQUESTS.c.started_at).limit(limit)
        with self._transaction() as connection:
            return connection.execute(delete(REQUESTS).where(REQUESTS.c.id.in_(oldest))).rowcount

    def close(self) -> None:
        """Close every connection that is not in use."""
        self._engine.dispose()

    def _read(self, statement: Select[Any]) -> list[dict[str, Any]]:
        self._prepare()
        try:
            return self._rows(statement)
        except StoreUnavailable as error:
            if not isinstance(error.__cause__, DBAPIError) or not error.__cause__.connection_invalidated:
                raise
            return self._rows(statement)  # the database was restarted: its old connections are gone, a new one may work

    def _rows(self, statement: Select[Any]) -> list[dict[str, Any]]:
        with self._transaction() as connection:
            return [dict(row) for row in connection.execute(statement).mappings()]

    def _prepare(self) -> None:
        """Create table and indexes where they are missing."""
        self._notice_another_file()
        if self._has_schema:
            return
        with self._transaction() as connection:
            # A PostgreSQL role that may not create anything can use what is there. SQLite may have died between table and index.
            if self._file is not None or not inspect(connection).has_table(REQUESTS.name):
                connection.execute(CreateTable(REQUESTS, if_not_exists=True))
                for index in REQUESTS.indexes:
                    connection.execute(CreateIndex(index, if_not_exists=True))
        self._opened = self._identity()
        self._has_schema = True

    def _notice_another_file(self) -> None:
        """A file that was deleted or replaced under us would take rows that nobody can read: leave it for the one that is there now."""
        if self._has_schema and self._file is not None and self._identity() != self._opened:
            self._engine.dispose()
            self._has_schema = False

    def _identity(self) -> tuple[int, int] | None:
        if self._file is None:
            return None
        try:
            found = self._file.stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        """A connection whose work is committed at the end. The commit is watched like the rest: it may hang as well."""
        with (
            self._unavailable_on_failure(),
            self._engine.connect() as connection,
            self._answering(connection),
            connection.begin(),
        ):
            yield connection

    @contextmanager
    def _unavailable_on_failure(self) -> Iterator[None]:
        try:
            yield
        except (SQLAlchemyError, OSError) as error:
            self._has_schema = False  # whatever happened to it, its tables may have gone with it
            raise StoreUnavailable(f"the usage store {self.place} does not answer: {_reason(error)}") from error

    @contextmanager
    def _answering(self, connection: Connection) -> Iterator[None]:
        """Cut the line of a server that is silent for too long, so that whoever waits for it gets an error. SQLite has its own limit."""
        if self._file is not None:
            yield
            return
        with socket.socket(fileno=os.dup(connection.connection.driver_connection.fileno())) as line:  # type: ignore[union-attr]
            timer = threading.Timer(self._answer_s, _cut, [line])
            timer.daemon = True
            timer.start()
            try:
                yield
            finally:
                timer.cancel()


def _parts(rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
    """The rows in few sizes, powers of two: sqlite3 keeps a connection's last 128 statements, half a megabyte each if they are long."""
    begin = 0
    while begin < len(rows):
        size = min(LONGEST_INSERTION, 1 << ((len(rows) - begin).bit_length() - 1))
        yield rows[begin : begin + size]
        begin += size


@lru_cache(maxsize=32)
def _insertion(rows: int, placeholder: str) -> str:
    """One statement for many rows: with one for each, the writer would wait for Python's lock once for each row."""
    names = [column.name for column in REQUESTS.columns]
    row = f"({', '.join([placeholder] * len(names))})"
    return f"INSERT INTO {REQUESTS.name} ({', '.join(names)}) VALUES {', '.join([row] * rows)} ON CONFLICT (id) DO NOTHING"


def _with_driver(url: URL) -> URL:
    return url if url.get_backend_name() == "sqlite" else url.set(drivername="postgresql+psycopg")


def _engine(url: URL, answer_s: float) -> Engine:
    # hide_parameters: rows hold who asked for what
    if url.get_backend_name() == "sqlite":
        engine = create_engine(url, hide_parameters=True, connect_args={"timeout": answer_s})
        event.listen(engine, "connect", _prepare_sqlite)
        return engine
    limits = {
        "connect_timeout": CONNECT_S,
        "application_name": "tandem",
        "prepare_threshold": None,  # statements differ in length, and poolers in between forget them
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
    }
    return create_engine(url, hide_parameters=True, connect_args=limits, pool_size=2, max_overflow=2, pool_timeout=answer_s)


def _prepare_sqlite(connection: Any, record: object) -> None:
    cursor = connection.cursor()
    # WAL: readers and the writer do not wait for each other. FULL: a commit survives a power failure; there is one for many rows.
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.close()


def _cut(line: socket.socket) -> None:
    with suppress(OSError):  # closed in the meantime
        line.shutdown(socket.SHUT_RDWR)


def _reason(error: Exception) -> str:
    """The driver's own words, in one line."""
    original = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    return " ".join(str(original).split()) or type(original).__name__


def _within(since: float | None, until: float | None, key_id: str | None) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    if since is not None:
        conditions.append(REQUESTS.c.started_at >= since)
    if until is not None:
        conditions.append(REQUESTS.c.started_at < until)
    if key_id is not None:
        conditions.append(REQUESTS.c.key_id == key_id)
    return conditions


def _sums() -> list[ColumnElement[Any]]:
    columns = REQUESTS.c
    used = or_(columns.prompt_tokens > 0, columns.completion_tokens > 0, columns.images > 0)
    summed = ("prompt_tokens", "completion_tokens", "cached_tokens", "reasoning_tokens", "images", "cost_usd")
    return [
        func.count().label("requests"),
        func.count().filter(columns.outcome == "failed").label("failures"),
        func.count().filter(columns.outcome == "client_left").label("client_left"),
        *(func.sum(columns[name]).label(name) for name in summed),
        func.count().filter(and_(columns.cost_usd.is_(None), used)).label("unpriced"),
        func.count().filter(columns.estimated).label("estimated"),
        func.avg(columns.first_token_s).label("mean_first_token_s"),
        func.avg(columns.duration_s).label("mean_duration_s"),
        func.avg(columns.overhead_s).label("mean_overhead_s"),
    ]


def _total(row: dict[str, Any]) -> Total:
    # PostgreSQL sums 64-bit integers as decimals
    counts = ("prompt_tokens", "completion_tokens", "cached_tokens", "reasoning_tokens", "images")
    day = row.get("day")
    return Total(
        **{**row, **{name: int(row[name]) for name in counts}}
        | {
            "key_id": row.get("key_id"),
            "model": row.get("model"),
            "day": None if day is None else _EPOCH + timedelta(days=day),
            "cost_usd": float(row["cost_usd"] or 0),
        }
    )
