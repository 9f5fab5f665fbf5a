"""Records of requests as the gateway hands them on, for tests of whatever takes them."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from adapters.usage import Usage
from gateway.record import Attempt, RequestRecord

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC).timestamp()
DAY = 86_400
LIMIT_S = 60


def record(request_id: str = "req_1", *, at: float = NOON, **fields: Any) -> RequestRecord:
    """One chat request that went well, of key k1 for model m."""
    usual: dict[str, Any] = {
        "key_id": "k1",
        "model": "m",
        "upstream": "lab",
        "upstream_model": "vendor/m",
        "attempts": [Attempt("lab", "vendor/m", 0.9)],
        "status": 200,
        "duration_s": 1.0,
        "first_token_s": 0.25,
        "upstream_s": 0.75,
        "usage": Usage(100, 20, cached_tokens=10, reasoning_tokens=5),
        "cost_usd": 0.5,
    }
    return RequestRecord(request_id, "/v1/chat/completions", at, **(usual | fields))


def eventually(holds: Callable[[], bool], what: str) -> None:
    """Return once it holds."""
    deadline = time.monotonic() + LIMIT_S
    while not holds():
        if time.monotonic() > deadline:
            pytest.fail(f"not in {LIMIT_S} s: {what}")
        time.sleep(0.01)
