"""A conversation as a local model is to read it again: without what it thought. Pure.

Qwen3.5's card asks for a history of answers alone. Hosted upstreams get what the client sent: some want their `reasoning_details`
back between the calls of a tool.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

_FIELDS = ("reasoning", "reasoning_content", "reasoning_details")
_THOUGHT = re.compile(r"\s*<think>.*?(?:</think>\s*|\Z)", re.DOTALL)  # one that was cut short has no end


def without_reasoning(messages: Sequence[Any]) -> Sequence[Any]:
    """The same messages without the assistant's reasoning: the very same object where there is none."""
    kept = [_answer_of(message) if message.get("role") == "assistant" else message for message in messages]
    return kept if any(new is not old for new, old in zip(kept, messages, strict=True)) else messages


def _answer_of(message: Mapping[str, Any]) -> Mapping[str, Any]:
    content = message.get("content")
    if isinstance(content, str):
        answer: Any = _THOUGHT.sub("", content, count=1) if _THOUGHT.match(content) else content
    else:
        answer = _parts(content) if isinstance(content, list) else content
    if answer is content and not any(name in message for name in _FIELDS):
        return message
    kept = {name: value for name, value in message.items() if name not in _FIELDS}
    return kept | ({"content": answer} if "content" in message else {})


def _parts(parts: list[Any]) -> list[Any]:
    """The thought stands at the beginning, so in the first part if in any."""
    first = parts[0] if parts else {}
    text = first.get("text")
    if not isinstance(text, str) or not _THOUGHT.match(text):
        return parts
    return [{**first, "text": _THOUGHT.sub("", text, count=1)}, *parts[1:]]
