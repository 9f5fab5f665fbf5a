"""OpenAI's messages as a chat template wants them, with their images taken out. Pure.

A template sees plain strings where it can, because text-only templates know nothing else, and tool arguments as objects,
because Qwen's writes them out one by one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from local_models.workers.errors import ApiError
from local_models.workers.fields import shown, wrong
from local_models.workers.pictures import decode_data_url

MAX_IMAGES = 8
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}


@dataclass(frozen=True)
class Conversation:
    messages: list[dict[str, Any]]
    images: list[Image.Image]


def read_messages(messages: Sequence[Any]) -> Conversation:
    images: list[Image.Image] = []
    return Conversation([_message(message, f"messages[{index}]", images) for index, message in enumerate(messages)], images)


def _message(message: Any, param: str, images: list[Image.Image]) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise wrong(param, message, "an object with 'role' and 'content'")
    role = ROLES.get(message["role"]) if isinstance(message.get("role"), str) else None
    if role is None:
        raise wrong(f"{param}.role", message.get("role"), f"one of {', '.join(ROLES)}")
    read: dict[str, Any] = {"role": role, "content": _content(message, role, param, images)}
    if role == "assistant":
        read |= _assistant_extras(message, param)
    for name in ("name", "tool_call_id"):
        if isinstance(message.get(name), str):
            read[name] = message[name]
    return read


def _content(message: dict[str, Any], role: str, param: str, images: list[Image.Image]) -> str | list[dict[str, Any]]:
    content = message.get("content")
    if content is None and role in ("assistant", "tool"):
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise wrong(f"{param}.content", content, "a string or an array of parts")
    parts = [_part(part, role, f"{param}.content[{index}]", images) for index, part in enumerate(content)]
    if all(part["type"] == "text" for part in parts):
        return "".join(part["text"] for part in parts)
    return parts


def _part(part: Any, role: str, param: str, images: list[Image.Image]) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in ("text", "refusal"):
        if not isinstance(part.get(kind), str):
            raise wrong(f"{param}.{kind}", part.get(kind), "a string")
        return {"type": "text", "text": part[kind]}
    if kind != "image_url":
        raise wrong(f"{param}.type", kind, "'text' or 'image_url'")
    if role not in ("user", "tool"):
        raise ApiError(
            f"'{param}' is an image in a message of the {role}; put images into user messages.", param=param, code="invalid_value"
        )
    image_url = part.get("image_url")
    url = image_url.get("url") if isinstance(image_url, dict) else None
    if not isinstance(url, str):
        raise wrong(f"{param}.image_url", image_url, 'an object {"url": "data:image/png;base64,…"}')
    if len(images) == MAX_IMAGES:
        raise ApiError(f"The messages hold more than {MAX_IMAGES} images; send fewer.", param=param, code="too_many_images")
    images.append(decode_data_url(url, f"{param}.image_url.url"))
    return {"type": "image"}


def _assistant_extras(message: dict[str, Any], param: str) -> dict[str, Any]:
    """Past reasoning and calls. The template decides how much of the reasoning it repeats."""
    extras: dict[str, Any] = {}
    reasoning = message.get("reasoning_content") or message.get("reasoning")
    if isinstance(reasoning, str):
        extras["reasoning_content"] = reasoning
    calls = message.get("tool_calls")
    if calls is not None and not isinstance(calls, list):
        raise wrong(f"{param}.tool_calls", calls, "an array")
    if calls:
        extras["tool_calls"] = [_call(call, f"{param}.tool_calls[{index}]") for index, call in enumerate(calls)]
    return extras


def _call(call: Any, param: str) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise wrong(param, call, 'an object {"id", "type": "function", "function": {"name", "arguments"}}')
    arguments = _arguments(function.get("arguments"))
    if arguments is None:
        raise ApiError(
            f"'{param}.function.arguments' is {shown(function.get('arguments'))}; it must be the JSON text of an object."
            " Leave a call out of the history whose arguments were cut short.",
            param=f"{param}.function.arguments",
            code="invalid_value",
        )
    return {"id": call.get("id"), "type": "function", "function": {"name": function["name"], "arguments": arguments}}


def _arguments(value: object) -> dict[str, Any] | None:
    if value in (None, ""):
        return {}
    try:
        parsed = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return None
    return parsed if isinstance(parsed, dict) else None
