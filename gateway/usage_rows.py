"""The table of requests in the usage store, and one request's row in it. Pure.

A row has its id before anybody tries to write it: a row that is written twice, because nobody knows whether the first time worked,
stays one row.
"""

from __future__ import annotations

import math
import random
from typing import TypeAlias

from sqlalchemy import BigInteger, Boolean, Column, Double, Index, Integer, MetaData, SmallInteger, String, Table

from adapters.usage import Usage
from gateway.record import RequestRecord
from gateway.usage_totals import DAY_S

MAX_TEXT = 512  # characters of a column; nothing that is stored here is legitimately longer
MAX_COUNT = 10**12  # of tokens: sums of far more rows than a disk holds stay within 64 bits

Value: TypeAlias = str | int | float | bool | None
Row: TypeAlias = tuple[Value, ...]

_NO_USAGE = Usage(0, 0)

REQUESTS = Table(
    "tandem_requests",
    MetaData(),
    Column("id", String(MAX_TEXT), primary_key=True),  # our own: clients may send the same request id twice
    Column("started_at", Double, nullable=False),  # Unix time in seconds
    Column("day", Integer, nullable=False),  # whole days in UTC since 1970-01-01
    Column("request_id", String(MAX_TEXT), nullable=False),
    Column("route", String(MAX_TEXT), nullable=False),
    Column("key_id", String(MAX_TEXT), nullable=False),
    Column("model", String(MAX_TEXT), nullable=False),
    Column("upstream", String(MAX_TEXT), nullable=False),
    Column("upstream_model", String(MAX_TEXT), nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("stream", Boolean, nullable=False),
    Column("status", SmallInteger, nullable=False),
    Column("outcome", String(MAX_TEXT), nullable=False),  # ok, failed, client_left
    Column("error_code", String(MAX_TEXT)),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("cached_tokens", BigInteger, nullable=False),  # part of prompt_tokens
    Column("reasoning_tokens", BigInteger, nullable=False),  # part of completion_tokens
    Column("estimated", Boolean, nullable=False),  # the tokens were counted by us: the upstream's count never came
    Column("cost_usd", Double),  # null: nobody knows
    Column("images", Integer, nullable=False),
    Column("duration_s", Double, nullable=False),
    Column("first_token_s", Double),
    Column("overhead_s", Double, nullable=False),
)
Index("tandem_requests_by_time", REQUESTS.c.started_at)
Index("tandem_requests_by_key", REQUESTS.c.key_id, REQUESTS.c.started_at)


def row_of(record: RequestRecord) -> Row:
    """The values of a record in the order of the table's columns, within what both databases can hold."""
    usage = record.usage or _NO_USAGE
    return (
        _new_id(record.started_at),
        record.started_at,
        int(record.started_at // DAY_S),
        _text(record.request_id),
        _text(record.route),
        _text(record.key_id),
        _text(record.model),
        _text(record.upstream),
        _text(record.upstream_model),
        len(record.attempts),
        record.stream,
        record.status,
        record.outcome,
        None if record.error_code is None else _text(record.error_code),
        min(usage.prompt_tokens, MAX_COUNT),
        min(usage.completion_tokens, MAX_COUNT),
        min(usage.cached_tokens, MAX_COUNT),
        min(usage.reasoning_tokens, MAX_COUNT),
        usage.estimated,
        record.cost_usd if record.cost_usd is not None and math.isfinite(record.cost_usd) else None,
        record.images,
        record.duration_s,
        record.first_token_s,
        record.overhead_s,
    )


def _new_id(started_at: float) -> str:
    """Starts with the time, so that new rows lie together at the end of the index."""
    return f"{int(started_at * 1000):012x}{random.getrandbits(80):020x}"


def _text(value: str) -> str:
    if value.isascii() and "\x00" not in value:
        return value[:MAX_TEXT]
    # PostgreSQL stores no NUL, and neither database half of a surrogate pair
    return value.replace("\x00", "").encode(errors="replace").decode()[:MAX_TEXT]
