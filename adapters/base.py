"""The seam between the gateway and whatever answers: what is asked (`ChatCall`), who is told (`Client`), who answers (`ChatUpstream`).

An upstream writes a streamed answer to the client from the read callback; it neither knows nor cares that the client speaks ASGI.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from adapters.usage import Usage


@dataclass(slots=True)
class Meter:
    """What an answer has turned out to be so far, filled while it passes.

    first_content_at: time.monotonic(). answer_bytes, chunks: what has been passed on, frames and all. headers: the upstream's, with
    lower-case names.
    """

    usage: Usage | None = None
    first_content_at: float | None = None
    answer_bytes: int = 0
    chunks: int = 0
    headers: Mapping[bytes, bytes] = field(default_factory=dict)

    def note_content(self) -> None:
        """Content is passed on now."""
        if self.first_content_at is None:
            self.first_content_at = time.monotonic()


@dataclass(slots=True)  # not frozen: that would triple what making one costs, and one is made for each request
class ChatCall:
    """One client request. body: the JSON as it came; fields: the same, parsed; rest: what a "*" in a model's name stands for.

    traceparent: the client's place in its trace (W3C trace context), for engines of ours.
    fetched: URLs in it that were fetched for a local engine, and what was behind them as data: URLs.
    """

    body: bytes
    fields: Mapping[str, Any]
    request_id: str
    rest: str = ""
    traceparent: str | None = None
    meter: Meter = field(default_factory=Meter)
    fetched: dict[str, str] = field(default_factory=dict)

    @property
    def wants_usage(self) -> bool:
        """Whether a streamed answer shall end with its usage. Nobody else gets it: not every client can read a chunk without choices."""
        options = self.fields.get("stream_options")
        return isinstance(options, dict) and bool(options.get("include_usage"))


@dataclass(frozen=True, slots=True)
class Timeouts:
    """In seconds. first_token: from the request to the first content; idle: between two reads after it; total: the whole exchange."""

    connect_s: float = 5.0
    first_token_s: float = 120.0
    idle_s: float = 60.0
    total_s: float = 3600.0


class Source(Protocol):
    """What feeds a client, and can be told to wait."""

    def pause(self) -> None: ...

    def resume(self) -> None: ...


class Client(Protocol):
    """The receiving end of a streamed answer."""

    def write(self, frames: bytes, source: Source) -> None:
        """Take whole frames, now. A client that is too slow pauses `source` until it has caught up."""


class ChatUpstream(Protocol):
    """One deployment of a chat model. Every failure is an UpstreamError or an EngineError; being cancelled stops the upstream's work."""

    async def stream(self, call: ChatCall, client: Client) -> None:
        """Write the whole streamed answer to `client`, [DONE] included."""

    async def complete(self, call: ChatCall) -> bytes:
        """The answer as one JSON document."""

    def close(self) -> None:
        """Drop every connection."""


class ImageUpstream(Protocol):
    """One deployment of an image model."""

    def generate(self, request: Mapping[str, Any], request_id: str) -> AsyncGenerator[dict[str, Any], None]:
        """The worker's events, as `local_models.workers.image_server` sends them. Closing the iterator stops the work at the next step."""

    def close(self) -> None:
        """Drop every connection."""
