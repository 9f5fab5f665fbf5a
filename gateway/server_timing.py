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
    total, upstream = max(0.0, total_s) * 1000, max(0.0, upstream_s) * 1000
    overhead = max(0.0, total - upstream)
    if queue_s is None:
        return b"total;dur=%.3f, upstream;dur=%.3f, overhead;dur=%.3f" % (total, upstream, overhead)
    queue = max(0.0, queue_s) * 1000
    return b"total;dur=%.3f, upstream;dur=%.3f, queue;dur=%.3f, overhead;dur=%.3f" % (total, upstream, queue, overhead)
