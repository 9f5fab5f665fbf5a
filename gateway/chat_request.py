"""A chat request, read and checked before anybody works on it. Pure: bytes in, fields or one clear error out.

Only what would fail everywhere is refused here; every field that the gateway does not know passes on untouched.
"""

from __future__ import annotations

from collections.abc import Mapping
from reprlib import repr as shown
from typing import Any

import orjson

from adapters.thinking import ThinkingFieldError, asked_for
from adapters.usage import estimated
from config.schema import ModelSpec
from gateway.errors import GatewayError, invalid

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
NO_CONTENT_ROLES = ("assistant", "function")  # those that may come without content


def parse(body: bytes) -> dict[str, Any]:
    """The fields of the body. Raises GatewayError (400) for what is not a chat request to any model."""
    fields = parse_object(body)
    model = fields.get("model")
    if not isinstance(model, str) or not model:
        raise invalid("the field 'model' is missing; GET /v1/models lists the names", "model", "missing_required_parameter")
    if not isinstance(fields.get("stream", False), bool | None):
        raise invalid(f"stream must be true or false, not {shown(fields['stream'])}", "stream", "invalid_type")
    _check_messages(fields.get("messages"))
    try:
        asked_for(fields)
    except ThinkingFieldError as error:
        raise invalid(str(error), error.param) from error
    return fields


def parse_object(body: bytes) -> dict[str, Any]:
    """The JSON object in `body`. Raises GatewayError (400)."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise invalid(f"the request body is not valid JSON: {error}", None, "invalid_json") from error
    if not isinstance(document, dict):
        kind = {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}.get(type(document), "a number")
        raise invalid(f"the request body must be a JSON object, not {kind}", None, "invalid_type")
    return document


def check_for_model(fields: dict[str, Any], model: ModelSpec) -> None:
    """Raises GatewayError (400) for an image sent to a model that takes text only."""
    if model.input_modalities is None or "image" in model.input_modalities:
        return
    for index, message in enumerate(fields["messages"]):
        content = message.get("content")
        for position, part in enumerate(content if isinstance(content, list) else ()):
            if isinstance(part, dict) and part.get("type") in ("image_url", "input_image", "image"):
                where = f"messages[{index}].content[{position}]"
                problem = f"the model '{model.name}' takes text only, and {where} is an image"
                raise invalid(f"{problem}; remove it or choose a model with image input (GET /v1/models)", where, "unsupported_modality")


def prompt_characters(fields: Mapping[str, Any]) -> int:
    """Of the text in the messages and the tools: what an estimate of the prompt's tokens is made from."""
    count = 0
    for message in fields["messages"]:
        content = message.get("content")
        if isinstance(content, str):
            count += len(content)
        for part in content if isinstance(content, list) else ():
            text = part.get("text")
            count += len(text) if isinstance(text, str) else 0
    return count + (len(str(fields["tools"])) if fields.get("tools") else 0)


def expected_tokens(fields: Mapping[str, Any]) -> int:
    """Of prompt and answer together, as far as the request tells."""
    most = fields.get("max_completion_tokens") or fields.get("max_tokens")
    answer = most if isinstance(most, int) and not isinstance(most, bool) and most > 0 else 0
    return estimated(prompt_characters(fields), 0, 0).prompt_tokens + answer


def _check_messages(messages: Any) -> None:
    if messages is None:
        raise invalid("the field 'messages' is missing", "messages", "missing_required_parameter")
    if not isinstance(messages, list):
        raise invalid("messages must be an array of messages", "messages", "invalid_type")
    if not messages:
        example = "{'role': 'user', 'content': 'Hello'}"
        raise invalid(f"messages is empty; send at least one message, such as {example}", "messages", "empty_array")
    for index, message in enumerate(messages):
        problem = _message_problem(message, f"messages[{index}]")
        if problem is not None:
            raise problem


def _message_problem(message: Any, where: str) -> GatewayError | None:
    if not isinstance(message, dict):
        return invalid(f"{where} must be an object with 'role' and 'content'", where, "invalid_type")
    role = message.get("role")
    if role is None:
        return invalid(f"{where}.role is missing; it is one of {', '.join(ROLES)}", f"{where}.role", "missing_required_parameter")
    if role not in ROLES:
        return invalid(f"{where}.role is {str(role)[:80]!r}; it must be one of {', '.join(ROLES)}", f"{where}.role")
    content = message.get("content")
    if content is None and role not in NO_CONTENT_ROLES:
        return invalid(f"{where}.content is missing", f"{where}.content", "missing_required_parameter")
    if content is not None and not isinstance(content, str | list):
        return invalid(f"{where}.content must be a string or an array of parts", f"{where}.content", "invalid_type")
    for position, part in enumerate(content if isinstance(content, list) else ()):
        if not isinstance(part, dict) or not isinstance(part.get("type"), str):
            at = f"{where}.content[{position}]"
            return invalid(f"{at} must be an object with a 'type', such as {{'type': 'text', 'text': 'Hello'}}", at, "invalid_type")
    return None
