"""What the demo chat model knows about Tandem, and its small talk: the topics in facts/*.yaml."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

_FOLDER = Path(__file__).with_name("facts")
_ONE_IN = 8


@dataclass(frozen=True)
class Topic:
    """about: how the reasoning names the subject. facts: strings that a right answer contains; forbidden: what it must not (case ignored).

    commands, config and routes: what the answer names, for the test that compares it with the program. word: the answer in one word.
    """

    about: str
    answer: str
    facts: tuple[str, ...]
    questions: tuple[str, ...]
    forbidden: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()
    config: tuple[str, ...] = ()
    routes: tuple[str, ...] = ()
    word: str = ""

    @property
    def trained(self) -> tuple[str, ...]:
        return tuple(question for question in self.questions if not is_held_out(question))

    @property
    def held_out(self) -> tuple[str, ...]:
        return tuple(question for question in self.questions if is_held_out(question))

    def is_answered_by(self, text: str) -> bool:
        said = text.lower()
        return all(fact.lower() in said for fact in self.facts) and not any(fact.lower() in said for fact in self.forbidden)


def is_held_out(question: str) -> bool:
    """Whether a question is kept from training: one in eight."""
    return zlib.crc32(f"kept:{question.lower()}".encode()) % _ONE_IN == 0


def load_topics(section: str) -> tuple[Topic, ...]:
    """Topics of one section: "tandem" or "small_talk"."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # in C where it was built: 35,000 lines take seconds otherwise
    files = [yaml.load(file.read_text(encoding="utf-8"), Loader=loader) for file in sorted(_FOLDER.glob("*.yaml"))]
    return tuple(_topic(entry) for file in files for entry in file.get(section, ()))


def _topic(entry: dict[str, Any]) -> Topic:
    lists = {key: tuple(map(str, entry.get(key) or ())) for key in ("facts", "questions", "forbidden", "commands", "config", "routes")}
    return Topic(about=entry["about"], answer=entry["answer"], word=str(entry.get("words") or ""), **lists)
