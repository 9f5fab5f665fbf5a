"""What one subject (an API key, or a model) uses, and whether its limits leave room for more. Pure: times come in, refusals go out.

A rate is a bucket that holds one minute's worth and fills evenly: after a quiet minute all of it may be used at once, and a client that
was refused knows exactly how long to wait. Money is counted by UTC day and UTC month. Asking changes nothing: `refusal` first, then `take`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from math import ceil
from typing import Literal, NamedTuple, TypeAlias

from config.schema import Limits
from gateway.usage_totals import DAY_S

MINUTE_S = 60.0
SLOT_WAIT_S = 1.0  # when a running request will end is not known; this is soon enough to ask again
_SOON_S = 5e-6  # as good as now: Unix time as a float is no finer than a quarter of a microsecond

# In the order in which they matter to whoever is refused: what no waiting helps against comes first.
RefusalKind: TypeAlias = Literal["budget", "too_large", "concurrency", "rate"]


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request is not admitted. wait_s: seconds until it may be, as far as this limit goes."""

    kind: RefusalKind
    message: str
    wait_s: float


class Calendar(NamedTuple):
    """A UTC day and its month, as numbers that grow. Times are Unix seconds."""

    day: int
    month: int
    begins: float
    ends: float
    month_ends: float


def calendar(now: float) -> Calendar:
    """The day that `now` is in."""
    day = int(now // DAY_S)
    date = datetime.fromtimestamp(now, UTC)
    next_month = datetime(date.year + date.month // 12, date.month % 12 + 1, 1, tzinfo=UTC)
    return Calendar(day, date.year * 12 + date.month, day * DAY_S, (day + 1) * DAY_S, next_month.timestamp())


@dataclass(slots=True)
class Bucket:
    """So many at once, and as many in each minute after that. level: below zero where an estimate was too low. at: Unix seconds."""

    capacity: int
    level: float
    at: float

    @classmethod
    def full(cls, capacity: int, now: float) -> Bucket:
        return cls(capacity, capacity, now)

    def fill(self, now: float) -> None:
        """Bring the level to what it is now. A clock that was set back gives nothing and takes nothing."""
        passed = now - self.at
        if passed > 0.0:
            level = self.level + passed * self.capacity / MINUTE_S
            self.level = level if level < self.capacity else self.capacity
        self.at = now

    def wait_s(self, amount: float) -> float:
        """Seconds until it holds this much, counted from the last `fill`."""
        wait_s = (amount - self.level) * MINUTE_S / self.capacity
        return wait_s if wait_s > _SOON_S else 0.0

    def left(self) -> int:
        """How many whole ones it has for use, since the last `fill`."""
        return max(0, int(self.level + _SOON_S * self.capacity / MINUTE_S))

    def add(self, amount: float) -> None:
        """Give back, or with a negative amount take, even below zero."""
        self.level = min(self.level + amount, self.capacity)

    def resize(self, capacity: int, now: float) -> None:
        """Another limit; what is used stays used."""
        self.fill(now)
        self.level, self.capacity = capacity - (self.capacity - self.level), capacity


@dataclass(slots=True)
class Tally:
    """What one subject uses now and has spent. who: how a message begins. limited: false where nothing needs checking."""

    who: str
    limits: Limits = field(default_factory=Limits)
    limited: bool = False
    in_flight: int = 0
    requests: Bucket | None = None
    tokens: Bucket | None = None
    day: int = 0
    month: int = 0
    usd_today: float = 0.0
    usd_this_month: float = 0.0

    def adopt(self, limits: Limits, now: float) -> None:
        """Other limits, from now on; what is used stays used."""
        self.requests = _resized(self.requests, limits.requests_per_minute, now)
        self.tokens = _resized(self.tokens, limits.tokens_per_minute, now)
        self.limits = limits
        self.limited = any(limit is not None for _, limit in limits)

    def refusal(self, tokens: int, now: float, today: Calendar) -> Refusal | None:
        """Why one more request of about so many tokens cannot be admitted, or None. Of several reasons the one that lasts longest."""
        limits = self.limits
        if limits.budget_usd_per_month is not None or limits.budget_usd_per_day is not None:
            self._turn_to(today)
            if limits.budget_usd_per_month is not None and self.usd_this_month >= limits.budget_usd_per_month:
                return self._out_of_money("month", limits.budget_usd_per_month, self.usd_this_month, today.month_ends, now)
            if limits.budget_usd_per_day is not None and self.usd_today >= limits.budget_usd_per_day:
                return self._out_of_money("day", limits.budget_usd_per_day, self.usd_today, today.ends, now)
        wait_s = 0.0
        if self.tokens is not None:
            if tokens > self.tokens.capacity:
                return Refusal("too_large", self._too_large(tokens), MINUTE_S)
            self.tokens.fill(now)
            wait_s = self.tokens.wait_s(tokens)
        if self.requests is not None:
            self.requests.fill(now)
            wait_s = max(wait_s, self.requests.wait_s(1))
        if wait_s > 0.0:
            return Refusal("rate", self._too_fast(tokens, wait_s), wait_s)
        if limits.concurrent_requests is not None and self.in_flight >= limits.concurrent_requests:
            return Refusal("concurrency", self._too_many(limits.concurrent_requests), SLOT_WAIT_S)
        return None

    def fill(self, now: float) -> None:
        """Bring the levels to what they are now."""
        if self.tokens is not None:
            self.tokens.fill(now)
        if self.requests is not None:
            self.requests.fill(now)

    def take(self, tokens: int) -> None:
        """One more request, which `refusal` has nothing against at this moment."""
        self.in_flight += 1
        if self.requests is not None:
            self.requests.level -= 1
        if self.tokens is not None:
            self.tokens.level -= tokens

    def correct(self, surplus: int, now: float) -> None:
        """A request has ended that took `surplus` tokens more than it used; negative: fewer."""
        if self.tokens is not None:
            if surplus < 0:
                self.tokens.fill(now)  # what has come in meanwhile pays first: a full bucket takes in no more
            self.tokens.add(surplus)

    def spend(self, usd: float, today: Calendar) -> None:
        """Book money to this day and its month."""
        self._turn_to(today)
        self.usd_today += usd
        self.usd_this_month += usd

    def restore(self, usd_today: float, usd_this_month: float, today: Calendar) -> None:
        """Book what was spent earlier in this day and in this month."""
        self._turn_to(today)
        self.usd_today += usd_today
        self.usd_this_month += usd_this_month

    def _turn_to(self, today: Calendar) -> None:
        # Forward only: a clock that was set back over midnight must not give the money twice.
        if today.day > self.day:
            self.day, self.usd_today = today.day, 0.0
            if today.month > self.month:
                self.month, self.usd_this_month = today.month, 0.0

    def _out_of_money(self, span: str, budget: float, spent: float, until: float, now: float) -> Refusal:
        at = datetime.fromtimestamp(until, UTC).strftime("%Y-%m-%d %H:%M UTC")
        message = f"{self.who} has spent ${spent:.4g} of its budget of ${budget:g} a {span}; it resets at {at}"
        return Refusal("budget", f"{message}, or the operator raises budget_usd_per_{span}", until - now)

    def _too_large(self, tokens: int) -> str:
        limit = self.limits.tokens_per_minute
        advice = "send a shorter prompt or a smaller max_tokens"
        return f"this request is estimated at {tokens} tokens, {self.who} is limited to {limit} tokens a minute; {advice}"

    def _too_fast(self, tokens: int, wait_s: float) -> str:
        requests, capacity = self.requests, self.limits.tokens_per_minute
        if requests is not None and requests.wait_s(1) >= wait_s:
            limit = f"{requests.capacity} requests a minute"
        else:
            limit = f"{capacity} tokens a minute, and this request is estimated at {tokens}"
        return f"{self.who} is limited to {limit}; try again in {duration(wait_s)}"

    def _too_many(self, limit: int) -> str:
        running = f"{self.who} is limited to {limit} requests at the same time, and {self.in_flight} are running"
        return f"{running}; wait for one of them to end"


def _resized(bucket: Bucket | None, capacity: int | None, now: float) -> Bucket | None:
    if capacity is None:
        return None
    if bucket is None:
        return Bucket.full(capacity, now)
    bucket.resize(capacity, now)
    return bucket


def milliseconds(seconds: float) -> int:
    """Rounded up but for a microsecond, so that whoever waits so long has waited long enough."""
    return max(0, ceil(seconds * 1000 - 0.001))


def duration(seconds: float) -> str:
    """As OpenAI writes them: "20ms", "1.5s", "6m0s"."""
    total_ms = milliseconds(seconds)
    if total_ms < 1000:
        return f"{total_ms}ms"
    if total_ms < 60_000:
        return f"{total_ms / 1000:g}s"
    minutes, rest_ms = divmod(total_ms, 60_000)
    return f"{minutes}m{rest_ms / 1000:g}s"
