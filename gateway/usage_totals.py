"""What is asked of the usage store, and what it answers. Without SQLAlchemy, whose import takes a quarter of a second."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import Literal, TypeAlias

DAY_S = 86_400

Group: TypeAlias = Literal["key_id", "model", "day"]
GROUPS: tuple[Group, ...] = ("day", "key_id", "model")


class StoreUnavailable(Exception):
    """The store does not answer, now. The message says which one and why, without its password."""


class RowsRefused(Exception):
    """At least one of these rows is one that the database never takes."""


@dataclass(frozen=True, slots=True)
class Total:
    """What a group of requests used. A group that was not asked for is None.

    cached_tokens are part of prompt_tokens, reasoning_tokens of completion_tokens. cost_usd: what is known; unpriced: requests that
    used tokens or made images at a cost nobody knows. estimated: requests whose tokens were counted by us. mean_*: seconds, None
    where no request has the figure.
    """

    key_id: str | None
    model: str | None
    day: date | None
    requests: int
    failures: int
    client_left: int
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    reasoning_tokens: int
    images: int
    cost_usd: float
    unpriced: int
    estimated: int
    mean_first_token_s: float | None
    mean_duration_s: float | None
    mean_overhead_s: float | None


@dataclass(frozen=True, slots=True)
class Spent:
    """What one key has spent on one model. tokens: of prompts and answers together."""

    usd: float
    tokens: int
    requests: int
