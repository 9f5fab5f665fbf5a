"""What an answer used: tokens, and money where the upstream names it. Read from OpenAI's, vLLM's and OpenRouter's `usage` objects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

BYTES_PER_TOKEN = 4  # of English text, for estimates; OpenAI's rule of thumb


class Usage(NamedTuple):
    """cost_usd: the upstream's own figure, or None. estimated: counted by us, because the upstream's count never came."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    cost_usd: float | None = None
    estimated: bool = False

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


def usage_in(document: Mapping[str, Any]) -> Usage | None:
    """The usage of a completion or a chunk, or None where it has none."""
    found = document.get("usage")
    if not isinstance(found, dict):
        return None
    prompt, completion = found.get("prompt_tokens_details"), found.get("completion_tokens_details")
    cost = found.get("cost")
    return Usage(
        prompt_tokens=_count(found, "prompt_tokens"),
        completion_tokens=_count(found, "completion_tokens"),
        cached_tokens=_count(prompt, "cached_tokens") if isinstance(prompt, dict) else 0,
        reasoning_tokens=_count(completion, "reasoning_tokens") if isinstance(completion, dict) else 0,
        cost_usd=float(cost) if isinstance(cost, int | float) and not isinstance(cost, bool) and cost >= 0 else None,
    )


def estimated(prompt_characters: int, chunks: int, answer_bytes: int) -> Usage:
    """A guess, marked as one: a token for each chunk of a stream; for an answer in one piece, and for prompts, from their size."""
    answer_tokens = chunks or -(-answer_bytes // BYTES_PER_TOKEN)
    return Usage(-(-prompt_characters // BYTES_PER_TOKEN), answer_tokens, estimated=True)


def _count(holder: Mapping[str, Any], name: str) -> int:
    value = holder.get(name)
    return value if type(value) is int and value > 0 else 0
