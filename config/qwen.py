"""What is known of Qwen3.5 by a model's id: whether it thinks by itself, and the sampling that its card recommends for each mode.

An id is taken by its last part (Qwen/Qwen3.5-9B, qwen/qwen3.5-9b, somebody's Qwen3.5-9B-AWQ). Base models, which were not taught to
answer, and whatever else is not here bring nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

Sampling = Mapping[str, float]

_ID = re.compile(r"(?:^|/)qwen3[._]5-(\d+(?:\.\d+)?b)(?!.*\bbase\b)[^/]*$", re.IGNORECASE)
_SMALL = frozenset({"0.8b", "2b"})


@dataclass(frozen=True, slots=True)
class QwenFacts:
    """thinks: whether its chat template opens a thought when nobody says; sampling by mode, with the names that vLLM has for it."""

    thinks: bool
    thinking: Sampling
    no_thinking: Sampling


def qwen_facts(model: str) -> QwenFacts | None:
    """What the card says of the model with this id, or None where it is no Qwen3.5."""
    found = _ID.search(model)
    if found is None:
        return None
    return _small() if found[1].lower() in _SMALL else _large()


# Source: the models' cards on the Hub, "best practices": general use. Each card says min_p 0 and repetition_penalty 1 for every mode;
# they are named all the same, so that a checkpoint's generation_config.json does not say otherwise.
def _large() -> QwenFacts:
    return QwenFacts(True, _card(1.0, 0.95, 1.5), _card(0.7, 0.8, 1.5))


def _small() -> QwenFacts:
    return QwenFacts(False, _card(1.0, 0.95, 1.5), _card(1.0, 1.0, 2.0))


def _card(temperature: float, top_p: float, presence_penalty: float) -> Sampling:
    chosen = {"temperature": temperature, "top_p": top_p, "top_k": 20, "min_p": 0.0}
    return {**chosen, "presence_penalty": presence_penalty, "repetition_penalty": 1.0}
