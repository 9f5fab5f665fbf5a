"""Whether a deployment is worth a request now. Pure: times come in, a decision goes out.

closed: it is. open: it failed again and again and is left alone. half_open: that time is over, and one request tries it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

State: TypeAlias = Literal["closed", "open", "half_open"]
LONGEST = 16  # times open_s, after trials that failed


@dataclass(slots=True)
class Breaker:
    """failures_to_open: in a row. open_s: how long it is left alone the first time. All times are of one monotonic clock, in seconds."""

    failures_to_open: int
    open_s: float
    _failures: int = 0
    _failed_trials: int = 0
    _opens_until: float | None = None
    _tried: bool = False

    def state(self, now: float) -> State:
        if self._opens_until is None:
            return "closed"
        return "open" if now < self._opens_until else "half_open"

    def allows(self, now: float) -> bool:
        return self._opens_until is None or (now >= self._opens_until and not self._tried)

    def wait_s(self, now: float) -> float:
        """Until it may be tried."""
        return max(0.0, (self._opens_until or now) - now)

    def begin(self, now: float) -> None:
        """A request goes there: the one trial, if it is half open. Every `begin` is followed by exactly one of the three below."""
        self._tried = self.state(now) == "half_open"

    def succeeded(self) -> None:
        self._failures = self._failed_trials = 0
        self._opens_until, self._tried = None, False

    def failed(self, now: float) -> None:
        self._failures += 1
        match self.state(now):
            case "closed" if self._failures >= self.failures_to_open:
                self._opens_until = now + self.open_s
            case "half_open":
                self._failed_trials += 1
                self._opens_until = now + self.open_s * min(LONGEST, 2**self._failed_trials)
        self._tried = False

    def abandoned(self) -> None:
        """Whoever asked has left: that says nothing of the deployment."""
        self._tried = False
