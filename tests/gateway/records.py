"""Finished requests, for tests of those who are told of them."""

from __future__ import annotations

from typing import Any

from adapters.usage import Usage
from gateway.record import Attempt, RequestRecord

CHAT, IMAGES = "/v1/chat/completions", "/v1/images/generations"
STARTED_AT = 1_700_000_000.25


def answered(**fields: Any) -> RequestRecord:
    """A streamed chat answer of 20 chunks by `up0`, which took 1.25 s, 0.25 s of it to the first content, 2 ms of it ours."""
    given: dict[str, Any] = {
        "request_id": "req_1",
        "route": CHAT,
        "started_at": STARTED_AT,
        "stream": True,
        "key_id": "key_ab12",
        "model": "m",
        "upstream": "up0",
        "upstream_model": "vendor/up0",
        "attempts": [Attempt("up0", "vendor/up0", 1.24)],
        "status": 200,
        "duration_s": 1.25,
        "first_token_s": 0.25,
        "upstream_s": 1.248,
        "chunks": 20,
        "usage": Usage(100, 20, cached_tokens=64, reasoning_tokens=5),
        "cost_usd": 0.5,
    }
    return RequestRecord(**(given | fields))


def failed(**fields: Any) -> RequestRecord:
    """A chat request that two upstreams failed on."""
    given: dict[str, Any] = {
        "request_id": "req_2",
        "route": CHAT,
        "started_at": STARTED_AT,
        "model": "m",
        "attempts": [Attempt("up0", "vendor/up0", 0.5, "upstream_timeout"), Attempt("up1", "vendor/up1", 0.25, "upstream_http_500")],
        "status": 502,
        "outcome": "failed",
        "error_code": "upstream_http_500",
        "duration_s": 1.0,
        "upstream_s": 0.75,
    }
    return RequestRecord(**(given | fields))
