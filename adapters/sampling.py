"""Sampling that a model recommends, added to a request where its client is silent. Pure.

Nothing that a client says is changed, and a request for temperature 0 gets nothing: whoever wants the likeliest token each time has
chosen, and a penalty would choose another one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from adapters.thinking import asked_for

OPENAI_NAMES = frozenset({"temperature", "top_p", "presence_penalty", "frequency_penalty"})


@dataclass(frozen=True, slots=True)
class Recommended:
    """Fields of a request and their values, by mode. thinks: the mode where the client does not say."""

    thinking: Mapping[str, float] = field(default_factory=dict)
    no_thinking: Mapping[str, float] = field(default_factory=dict)
    thinks: bool = False

    def added_to(self, fields: Mapping[str, object]) -> dict[str, float]:
        """What this request lacks. Raises ThinkingFieldError where its mode cannot be understood."""
        if not (self.thinking or self.no_thinking) or fields.get("temperature") == 0:
            return {}
        asked = asked_for(fields).enabled
        wanted = self.thinking if (self.thinks if asked is None else asked) else self.no_thinking
        return {name: value for name, value in wanted.items() if fields.get(name) is None}

    def named(self, names: frozenset[str]) -> Recommended:
        """Only what an upstream has these names for."""
        thinking, no_thinking = ({n: value for n, value in mode.items() if n in names} for mode in (self.thinking, self.no_thinking))
        return Recommended(thinking, no_thinking, self.thinks)


NOTHING = Recommended()
