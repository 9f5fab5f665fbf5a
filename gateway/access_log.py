"""One line for each request that has ended: JSON for programs, a short sentence for people. Pure: a record in, a line out.

The fields are an allow-list: what is not named in `fields` cannot get into a line.
"""

from __future__ import annotations

import re
import time
from typing import Any

import orjson

from gateway.app_log import Layout, at
from gateway.known_names import KnownNames, known_code, known_route
from gateway.record import RequestRecord

LOGGER = "tandem.access"
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}.*")
_ID = re.compile(r"[A-Za-z0-9_.:/+=-]{1,128}")


def access_line(record: RequestRecord, names: KnownNames, layout: Layout) -> str:
    """The line, without its end."""
    return orjson.dumps(fields(record, names)).decode() if layout == "json" else sentence(record, names)


def fields(record: RequestRecord, names: KnownNames) -> dict[str, Any]:
    """What a JSON line holds; durations in seconds. What is not known or does not apply is left out."""
    route = known_route(record.route)
    usage = record.usage
    every = {
        "time": at(record.started_at),
        "level": "info" if record.status < 500 and record.outcome != "failed" else "warning",
        "logger": LOGGER,
        "message": f"{record.status} {route}",
        "request_id": _id(record.request_id),
        "trace_id": _trace_id(record.traceparent),
        "key_id": _id(record.key_id),
        "route": route,
        "model": names.model(record.model) if record.model else None,
        "upstream": names.upstream(record.upstream) if record.upstream else None,
        "upstream_model": names.upstream_model(record.upstream_model) if record.upstream_model else None,
        "stream": record.stream,
        "status": record.status,
        "outcome": record.outcome,
        "error_code": known_code(record.error_code) if record.error_code else None,
        "attempts": [_attempted(attempt.upstream, attempt.error, names) for attempt in record.attempts],
        "duration_s": round(record.duration_s, 6),
        "first_token_s": None if record.first_token_s is None else round(record.first_token_s, 6),
        "upstream_s": round(record.upstream_s, 6),
        "overhead_s": round(record.overhead_s, 6),
        "chunks": record.chunks or None,
        "prompt_tokens": usage and usage.prompt_tokens,
        "completion_tokens": usage and usage.completion_tokens,
        "cached_tokens": usage and usage.cached_tokens,
        "reasoning_tokens": usage and usage.reasoning_tokens,
        "tokens_estimated": usage and usage.estimated,
        "cost_usd": record.cost_usd,
        "images": record.images or None,
    }
    return {name: value for name, value in every.items() if value is not None}


def sentence(record: RequestRecord, names: KnownNames) -> str:
    """What a person at a terminal wants to know at a glance."""
    clock = time.strftime("%H:%M:%S", time.localtime(record.started_at + record.duration_s))
    who = names.model(record.model) if record.model else ""
    if record.upstream:
        who = f"{who} ({names.upstream(record.upstream)})"
    words = [clock, str(record.status or "---"), known_route(record.route), who, duration(record.duration_s)]
    if record.first_token_s is not None:
        words.append(f"first token {duration(record.first_token_s)}")
    if record.usage is not None:
        words.append(f"{'about ' if record.usage.estimated else ''}{record.usage.prompt_tokens}+{record.usage.completion_tokens} tokens")
    if record.images:
        words.append(f"{record.images} {'picture' if record.images == 1 else 'pictures'}")
    if len(record.attempts) > 1:
        words.append(f"{len(record.attempts)} attempts")
    if record.outcome == "client_left":
        words.append("the client left")
    if record.error_code:
        words.append(known_code(record.error_code))
    return "  ".join(word for word in words if word)


def duration(seconds: float) -> str:
    """Three digits, in the unit that suits."""
    return f"{seconds * 1000:.3g} ms" if seconds < 0.9995 else f"{seconds:.3g} s" if seconds < 1000 else f"{seconds:.0f} s"


def _attempted(upstream: str, error: str | None, names: KnownNames) -> str:
    """`name` where it answered, `name: code` where it failed."""
    return f"{names.upstream(upstream)}: {known_code(error)}" if error else names.upstream(upstream)


def _id(value: str) -> str | None:
    return value if _ID.fullmatch(value) else None


def _trace_id(traceparent: str | None) -> str | None:
    found = _TRACEPARENT.fullmatch(traceparent) if traceparent else None
    return found[1] if found else None
