"""A request's row: what it keeps of the record, and that no record can make one that a database refuses."""

from __future__ import annotations

from adapters.usage import Usage
from gateway.record import Attempt, RequestRecord
from gateway.usage_rows import MAX_COUNT, MAX_TEXT, REQUESTS, Value, row_of
from tests.gateway.usage_records import DAY, NOON, record


def columns(of: RequestRecord) -> dict[str, Value]:
    return dict(zip((column.name for column in REQUESTS.columns), row_of(of), strict=True))


def test_a_row_keeps_what_the_record_says() -> None:
    attempts = [Attempt("first", "a", 0.1, "timeout"), Attempt("lab", "vendor/m", 0.9)]
    row = columns(record("req_7", attempts=attempts, stream=True, images=2, status=502, outcome="failed", error_code="upstream_error"))
    assert len(str(row.pop("id"))) == 32
    assert row == {
        "started_at": NOON,
        "day": NOON // DAY,
        "request_id": "req_7",
        "route": "/v1/chat/completions",
        "key_id": "k1",
        "model": "m",
        "upstream": "lab",
        "upstream_model": "vendor/m",
        "attempts": 2,
        "stream": True,
        "status": 502,
        "outcome": "failed",
        "error_code": "upstream_error",
        "prompt_tokens": 100,
        "completion_tokens": 20,
        "cached_tokens": 10,
        "reasoning_tokens": 5,
        "estimated": False,
        "cost_usd": 0.5,
        "images": 2,
        "duration_s": 1.0,
        "first_token_s": 0.25,
        "overhead_s": 0.25,
    }


def test_a_request_that_used_nothing_has_zeros_and_no_cost() -> None:
    row = columns(RequestRecord("req_1", "/v1/models", NOON))
    assert (row["prompt_tokens"], row["completion_tokens"], row["cost_usd"], row["first_token_s"]) == (0, 0, None, None)


def test_two_requests_with_one_id_have_two_rows_and_later_ones_sort_last() -> None:
    ids = [columns(record(at=NOON + second))["id"] for second in range(5)]
    assert len(set(ids)) == 5
    assert sorted(map(str, ids)) == ids
    assert columns(record())["id"] != columns(record())["id"]


def test_what_a_database_would_refuse_is_made_fit() -> None:
    row = columns(record(model="a\x00b" + "ü" * 1000, error_code="\ud800x", cost_usd=float("nan"), usage=Usage(10**30, 1)))
    assert row["model"] == ("ab" + "ü" * 1000)[:MAX_TEXT]
    assert row["error_code"] == "?x"
    assert row["cost_usd"] is None
    assert row["prompt_tokens"] == MAX_COUNT
