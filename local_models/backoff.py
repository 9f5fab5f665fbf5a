"""When a crashed engine may be started again. Pure: times come in, a delay goes out."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RestartPolicy:
    """The first crash is answered after `first_delay_s`, each further one in a row after twice as long."""

    max_restarts: int = 3
    first_delay_s: float = 0.5
    longest_delay_s: float = 30.0
    patience_s: float = 2.0
    """A caller waits for a delay up to this one, and is refused with the reason for a longer one."""
    healthy_s: float = 60.0
    """An engine that served this long has its earlier crashes forgotten."""
    given_up_s: float = 300.0
    """After this long one more start is allowed; should it fail too, the engine is given up for as long again."""


@dataclass(frozen=True)
class Crashes:
    """Crashes in a row, and when the last one was. lasting: it has a cause that another start does not mend."""

    count: int = 0
    last_at: float = 0.0
    lasting: bool = False

    def and_one(self, now: float, lasting: bool = False) -> Crashes:
        return Crashes(self.count + 1, now, lasting)


NO_CRASHES = Crashes()


def is_given_up(policy: RestartPolicy, crashes: Crashes) -> bool:
    return crashes.lasting or crashes.count > policy.max_restarts


def delay_s(policy: RestartPolicy, crashes: Crashes, now: float) -> float:
    """Seconds until a start is allowed; 0 for at once."""
    if crashes.count == 0:
        return 0.0
    if is_given_up(policy, crashes):
        pause_s = policy.given_up_s
    else:
        # the exponent is bounded: 2.0 ** 1100 overflows
        pause_s = min(policy.first_delay_s * 2.0 ** min(crashes.count - 1, 32), policy.longest_delay_s)
    return max(0.0, crashes.last_at + pause_s - now)
