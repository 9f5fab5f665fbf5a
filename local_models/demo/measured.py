"""One line of the evaluation's table: what was asked, how much of it was right, and how much must be."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """least: share of right ones, 0 to 1, below which the model is not good enough."""

    subject: str
    right: int
    asked: int
    least: float

    @classmethod
    def of(cls, subject: str, verdicts: Iterable[bool], least: float) -> Row:
        found = list(verdicts)
        return cls(subject, sum(found), len(found), least)

    @property
    def share(self) -> float:
        return self.right / max(1, self.asked)

    @property
    def is_good(self) -> bool:
        return self.share >= self.least

    def __str__(self) -> str:
        verdict = "" if self.is_good else "  TOO FEW"
        return f"{self.subject:<58} {self.right:>4} of {self.asked:<4} {self.share:7.1%}  (at least {self.least:.0%}){verdict}"
