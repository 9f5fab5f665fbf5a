"""What the demo chat model knows about Tandem: the topics of tandem_facts.yaml."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

HELD_OUT_QUESTIONS = 2
_FILE = Path(__file__).with_name("tandem_facts.yaml")


@dataclass(frozen=True)
class Topic:
    """facts: strings that a right answer contains, case ignored. about: how the reasoning names the subject."""

    about: str
    answer: str
    facts: tuple[str, ...]
    questions: tuple[str, ...]

    @property
    def trained(self) -> tuple[str, ...]:
        return self.questions[:-HELD_OUT_QUESTIONS]

    @property
    def held_out(self) -> tuple[str, ...]:
        return self.questions[-HELD_OUT_QUESTIONS:]

    def is_answered_by(self, text: str) -> bool:
        return all(fact.lower() in text.lower() for fact in self.facts)


def load_topics(section: str) -> tuple[Topic, ...]:
    """Topics of one section of the file: "tandem" or "small_talk"."""
    entries: list[dict[str, Any]] = yaml.safe_load(_FILE.read_text(encoding="utf-8"))[section]
    return tuple(Topic(e["about"], e["answer"], tuple(e["facts"]), tuple(e["questions"])) for e in entries)
