"""What is known of one request once it has ended: the one thing that usage, metrics, logs and traces are made of.

Whoever handles a request fills its record; when it has ended, however it has ended, each sink gets it once. A sink returns at once,
does no I/O and raises nothing: it counts, or puts the record in a bounded queue.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from adapters.usage import Usage
from gateway.errors import GatewayError

# ok: answered in full. failed: with an error, before or after content. client_left: nobody reads it any more.
Outcome: TypeAlias = Literal["ok", "failed", "client_left"]

CLIENT_LEFT = 499  # nginx's status for it


@dataclass(slots=True)
class Attempt:
    """One deployment that was asked. duration_s: until it answered in full or failed; error: the error's code, or None."""

    upstream: str
    model: str
    duration_s: float
    error: str | None = None


@dataclass(slots=True)
class RequestRecord:
    """One request. Nothing in it is secret or a prompt: it may go to any sink as it is.

    traceparent: the client's own, W3C trace context, or None. started_at: Unix time in seconds; every *_s is a duration in seconds.
    key_id: public id of the API key, "" before it is known.
    model: the public name, "" before it is known. upstream, upstream_model: the deployment that answered, "" where none did.
    first_token_s: from the request's start to the first content. upstream_s: how much of duration_s was waiting for upstreams and engines.
    """

    request_id: str
    route: str
    started_at: float
    traceparent: str | None = None
    stream: bool = False
    key_id: str = ""
    model: str = ""
    upstream: str = ""
    upstream_model: str = ""
    attempts: list[Attempt] = field(default_factory=list)
    status: int = 0
    outcome: Outcome = "ok"
    error_code: str | None = None
    duration_s: float = 0.0
    first_token_s: float | None = None
    upstream_s: float = 0.0
    chunks: int = 0
    usage: Usage | None = None
    cost_usd: float | None = None
    images: int = 0

    @property
    def overhead_s(self) -> float:
        """What the gateway itself took."""
        return max(0.0, self.duration_s - self.upstream_s)


Sink: TypeAlias = Callable[[RequestRecord], None]


def note_failure(record: RequestRecord, failure: GatewayError) -> None:
    record.outcome, record.status, record.error_code = "failed", failure.status, failure.code


def note_departure(record: RequestRecord) -> None:
    """Its client has left: what could not be told any more is no failure. 499 where nothing had been sent; nobody sees that but the log."""
    record.outcome, record.error_code = "client_left", None
    if record.status != 200:
        record.status = CLIENT_LEFT
