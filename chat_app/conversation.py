"""The conversation as the model gets it.

Reasoning of earlier turns is never replayed, turns that came to nothing are left out, and pictures go only
to a model that may see them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from openai.types.chat import ChatCompletionContentPartParam, ChatCompletionMessageParam

from chat_app.records import Message, Picture

CHARACTERS_PER_TOKEN = 3  # a cautious estimate: most tokenizers do better on most text
TOKENS_PER_PICTURE = 256
SHARE_FOR_HISTORY = 0.6  # of the context; the rest is for the answer


def messages_for_model(
    history: Sequence[Message], *, sees: bool | None, context_length: int | None, data_url: Callable[[Picture], str]
) -> list[ChatCompletionMessageParam]:
    """What to send for the last turn of `history`. Drops the oldest turns that cannot fit into the context."""
    told = [message for message in history if message.text or message.pictures]
    return [_param(message, sees, data_url) for message in _recent(told, context_length)]


def title_of(text: str, limit: int = 48) -> str:
    """A chat's name from its first message, cut at a word."""
    line = " ".join(text.split()) or "New chat"
    return line if len(line) <= limit else line[:limit].rsplit(" ", 1)[0].rstrip(" ,.;:") + "…"


def _recent(messages: Sequence[Message], context_length: int | None) -> list[Message]:
    if context_length is None:
        return list(messages)
    left = context_length * SHARE_FOR_HISTORY
    kept: list[Message] = []
    for message in reversed(messages):
        left -= len(message.text) / CHARACTERS_PER_TOKEN + TOKENS_PER_PICTURE * len(message.pictures)
        if left < 0 and kept:
            break
        kept.append(message)
    while len(kept) > 1 and kept[-1].role == "assistant":
        kept.pop()  # some chat templates insist on a user turn at the start
    return kept[::-1]


def _param(message: Message, sees: bool | None, data_url: Callable[[Picture], str]) -> ChatCompletionMessageParam:
    if message.role == "assistant":
        return {"role": "assistant", "content": _made_picture(message) if message.kind == "image" else message.text}
    if not message.pictures:
        return {"role": "user", "content": message.text}
    if sees is False:
        return {"role": "user", "content": f"{message.text}\n[{len(message.pictures)} attached picture(s), not shown to this model]"}
    parts: list[ChatCompletionContentPartParam] = [
        {"type": "image_url", "image_url": {"url": data_url(picture)}} for picture in message.pictures
    ]
    if message.text:
        parts.append({"type": "text", "text": message.text})
    return {"role": "user", "content": parts}


def _made_picture(message: Message) -> str:
    prompt = message.request.prompt if message.request else message.text
    return f"[picture made from the prompt: {prompt}]"
