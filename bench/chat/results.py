"""What was measured, as data: read from the load's output, kept as JSON, shown by `bench.chat.report`.

Times are in microseconds unless a name says otherwise. Nothing here is rounded or judged.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from pydantic import TypeAdapter
from pydantic.dataclasses import dataclass as checked

BUSY = 0.5  # load average


@checked(frozen=True)
class Times:
    """How long something took, over `count` occurrences."""

    count: int
    p50_us: float
    p99_us: float
    max_us: float


@checked(frozen=True, kw_only=True)
class Requests:
    """A run of requests that are not streamed. per_s: answered a second, after the warm-up. begun: the warm-up's included.

    cpu_s: CPU seconds that the gateway took for all of them; null where there is none. problem: the first that the load met, or empty.
    """

    connections: int
    seconds: float
    begun: int
    finished: int
    failed: int
    reconnects: int
    problem: str
    per_s: float
    answer: Times | None
    cpu_s: float | None = None

    @property
    def cpu_us(self) -> float | None:
        """CPU for one request."""
        return None if self.cpu_s is None or self.begun == 0 else self.cpu_s * 1e6 / self.begun


@checked(frozen=True, kw_only=True)
class Streams:
    """A run of paced streams. late: tokens that had not come when the load stopped waiting. lost: never came though the stream ended.

    first: from the request to the first token. delay: from where the upstream made a token to where it was read. gap: by how much a
    gap between two tokens grew on the way.
    """

    connections: int
    seconds: float
    begun: int
    finished: int
    failed: int
    reconnects: int
    problem: str
    tokens: int
    lost: int
    reordered: int
    late: int
    first: Times | None
    delay: Times | None
    gap: Times | None
    cpu_s: float | None = None

    @property
    def cpu_us(self) -> float | None:
        """CPU for one token; the requests and their ends are in it."""
        return None if self.cpu_s is None or self.tokens == 0 else self.cpu_s * 1e6 / self.tokens


@dataclass(frozen=True)
class Pace:
    """streams at once, each with so many tokens a second."""

    streams: int
    tokens_per_s: int

    def __str__(self) -> str:
        return f"{self.streams} streams at {self.tokens_per_s} tokens/s"


@dataclass(frozen=True)
class Plan:
    """How much load, and for how long. seconds: of each run. ramp_ms: over which streams are opened. grace_s: for what comes late.

    Between `hundred` and `many` only the number of streams differs, not the tokens in a second: 500 streams at 100 tokens a second are
    more than one core of Python carries, and what is saturated has no cost for a token.
    """

    seconds: float = 10
    connections: int = 32
    hundred: Pace = Pace(100, 100)
    many: Pace = Pace(500, 20)
    dense: Pace = Pace(512, 50)
    ramp_ms: int = 1000
    grace_s: float = 10


@checked(frozen=True, kw_only=True)
class Measured:
    """One entrant under every load. problem: why it could not be measured, or what went wrong; then what is missing is null.

    alone: requests one at a time. first: streams one at a time. closed_early: answers that the upstream could not finish because the
    entrant left. idle_mb, memory_mb: resident memory before and after the load.
    """

    name: str
    title: str
    version: str
    problem: str | None = None
    requests: Requests | None = None
    alone: Requests | None = None
    first: Streams | None = None
    hundred: Streams | None = None
    many: Streams | None = None
    dense: Streams | None = None
    closed_early: int | None = None
    idle_mb: float | None = None
    memory_mb: float | None = None


@dataclass(frozen=True)
class Machine:
    """Where it ran. load_average: over the minute before; above BUSY the figures are worthless."""

    cpu: str
    cores: int
    python: str
    load_average: float
    shared_core: bool


@dataclass(frozen=True)
class Results:
    """One call of the bench. when: local time, ISO 8601."""

    when: str
    machine: Machine
    plan: Plan
    entrants: list[Measured] = field(default_factory=list)

    def entrant(self, name: str) -> Measured | None:
        return next((entrant for entrant in self.entrants if entrant.name == name), None)


_RESULTS, _REQUESTS, _STREAMS = TypeAdapter(Results), TypeAdapter(Requests), TypeAdapter(Streams)


def to_json(results: Results) -> str:
    return _RESULTS.dump_json(results, indent=2).decode() + "\n"


def from_json(text: str) -> Results:
    """Raises ValueError."""
    return _RESULTS.validate_json(text)


def read_requests(line: str) -> Requests:
    """From what load.c prints. Raises ValueError."""
    return _REQUESTS.validate_json(line)


def read_streams(line: str) -> Streams:
    """From what load.c prints. Raises ValueError."""
    return _STREAMS.validate_json(line)
