"""The `Server-Timing` header: where a reply's time went, for whoever looks at it in a browser or a client. Pure.

Only durations that are known when headers are sent can stand in it; the metrics and the access log have those of the whole request.
"""

from __future__ import annotations

HEADER = b"server-timing"


def server_timing(total_s: float, upstream_s: float, queue_s: float | None = None) -> bytes:
    """The header's value, in milliseconds as its specification wants. All durations are in seconds.

    total_s: from the request's start until now. upstream_s: how much of it was waiting for upstreams and engines.
    queue_s: how much of upstream_s was waiting for a place, where there was a queue. Overhead is what is left to the gateway itself.
    """
    parts = [("total", total_s), ("upstream", upstream_s)]
    if queue_s is not None:
        parts.append(("queue", queue_s))
    parts.append(("overhead", total_s - upstream_s))
    return ", ".join(f"{name};dur={_milliseconds(duration_s)}" for name, duration_s in parts).encode()


def _milliseconds(duration_s: float) -> str:
    """To the microsecond, without an exponent or needless zeros."""
    return f"{max(0.0, duration_s) * 1000:.3f}".rstrip("0").rstrip(".")
