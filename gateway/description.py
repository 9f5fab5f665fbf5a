"""The API's OpenAPI description: what FastAPI knows of its routes, completed by hand with what it cannot know.

It says what the gateway itself checks and promises, no more: a chat field that is passed on unread may hold anything. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from adapters.thinking import EFFORTS
from gateway import replies
from gateway.chat_request import NO_CONTENT_ROLES, ROLES

Responses = dict[int | str, dict[str, Any]]
Document = dict[str, Any]

ABOUT = "One OpenAI-style API for chat and images, local and hosted."
NO_KEY_NEEDED: Mapping[str, Any] = MappingProxyType({"security": []})
# The schema is that of each event: OpenAPI 3.1 has no word for it (3.2 calls it itemSchema), and this is how its tools read it.
EVENTS: Mapping[str, Any] = MappingProxyType({
    "schema": {
        "type": "object",
        "properties": {"event": {"type": "string"}, "data": {"type": "string", "description": "JSON, or [DONE]."}},
        "required": ["data"],
    }
})  # fmt: skip
_SCHEMAS = "#/components/schemas/{model}"
_REPLIES = (replies.Error, replies.ModelPage, replies.Pictures, replies.Health, replies.Readiness)
_SECURITY_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "An API key, as OpenAI's SDKs send it."},
    "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key", "description": "The same key, for clients that send it so."},
}
_REASONS = {
    400: "The request is wrong; the message says where and what would be right.",
    401: "No API key, or one that is not accepted.",
    403: "The API key may not do this.",
    404: "There is no such model, key, engine or page.",
    413: "The body is larger than server.max_body_bytes.",
    429: "A limit, a budget or a queue is used up.",
    500: "The gateway or a local engine failed.",
    502: "The upstream failed, or refused the gateway's own credentials.",
    503: "What should answer is not available now.",
    504: "The upstream did not answer in time.",
}
_HEADERS = {
    "x-request-id": {"description": "The client's own x-request-id, or a new one.", "schema": {"type": "string"}},
    "retry-after": {"description": "Seconds after which to ask again, where that is known.", "schema": {"type": "string"}},
}


def reply(model: type[BaseModel], description: str) -> dict[str, Any]:
    """A JSON response of this form, which is one of ours."""
    return {"description": description, "content": {"application/json": {"schema": _reference(model)}}}


def errors(*statuses: int, passed_on: bool = False) -> Responses:
    """The failures of a route. passed_on: an upstream's refusal keeps its status, so that any other may come as well."""
    found: Responses = {status: reply(replies.Error, _REASONS[status]) for status in statuses}
    if passed_on:
        found["default"] = reply(replies.Error, "The upstream's own refusal, with its status.")
    return found


def body_of(model: type[BaseModel]) -> dict[str, Any]:
    """A request body that a route reads by hand. What `model` refers to must be described elsewhere as well."""
    schema = model.model_json_schema(ref_template=_SCHEMAS)
    schema.pop("$defs", None)
    return {"required": True, "content": {"application/json": {"schema": schema}}}


def describe(found: Document, chat_path: str) -> Document:
    """The whole description. found: FastAPI's, which is changed."""
    paths = {**found["paths"], chat_path: {"post": _chat()}}
    components = found.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):  # FastAPI's own answer, which is never given
        schemas.pop(name, None)
    _, ours = models_json_schema([(model, "serialization") for model in _REPLIES], ref_template=_SCHEMAS)
    schemas.update(ours["$defs"])
    components.update(securitySchemes=_SECURITY_SCHEMES, headers=_HEADERS)
    for operations in paths.values():
        for operation in operations.values():
            operation["responses"].pop("422", None)
            _name_headers(operation["responses"])
    return {**found, "paths": dict(sorted(paths.items())), "security": [{name: []} for name in _SECURITY_SCHEMES]}


def _reference(model: type[BaseModel]) -> dict[str, Any]:
    return {"$ref": _SCHEMAS.format(model=model.__name__)}


def _name_headers(responses: dict[str, Any]) -> None:
    for status, response in responses.items():
        named = ("x-request-id", "retry-after") if status in ("429", "503", "default") else ("x-request-id",)
        response["headers"] = {name: {"$ref": f"#/components/headers/{name}"} for name in named}


def _chat() -> dict[str, Any]:
    failures = errors(400, 401, 403, 404, 413, 429, 500, 502, 503, 504, passed_on=True)
    answer = {
        "description": "OpenAI's chat.completion, or with stream: true its chunks as events; the last is [DONE], or an error.",
        "content": {"application/json": {"schema": _ANSWER}, "text/event-stream": dict(EVENTS)},
    }
    return {
        "summary": "Create Chat Completion",
        "description": "OpenAI's chat completions. Fields that are not named here go to the upstream as they are.",
        "operationId": "create_chat_completion_v1_chat_completions_post",
        "requestBody": {"required": True, "content": {"application/json": {"schema": _CHAT_REQUEST}}},
        "responses": {"200": answer, **{str(status): response for status, response in failures.items()}},
    }


_PART = {"type": "object", "properties": {"type": {"type": "string"}}, "required": ["type"], "additionalProperties": True}
_TEXT = {"type": "string"}
_PARTS = {"type": "array", "items": _PART}


def _message(roles: list[str], content: list[Mapping[str, Any]], required: list[str]) -> dict[str, Any]:
    role = {"type": "string", "enum": roles}
    return {
        "type": "object",
        "properties": {"role": role, "content": {"anyOf": content}},
        "required": required,
        "additionalProperties": True,
    }


_WITH_CONTENT = [role for role in ROLES if role not in NO_CONTENT_ROLES]
_EFFORT = {"enum": [*EFFORTS, None]}
_FLAG = {"type": ["boolean", "null"]}
_BUDGET = {"type": ["integer", "null"]}
_CHAT_REQUEST = {
    "type": "object",
    "properties": {
        "model": {"type": "string", "minLength": 1, "description": "A public name of GET /v1/models."},
        "messages": {
            "type": "array",
            "minItems": 1,
            "items": {
                "anyOf": [
                    _message(_WITH_CONTENT, [_TEXT, _PARTS], ["role", "content"]),
                    _message(list(NO_CONTENT_ROLES), [_TEXT, _PARTS, {"type": "null"}], ["role"]),
                ]
            },
        },
        "stream": {**_FLAG, "description": "Whether the answer comes as events."},
        "reasoning_effort": {**_EFFORT, "description": "Thinking mode, OpenAI's spelling; none switches it off."},
        "reasoning": {
            "type": ["object", "null"],
            "properties": {"enabled": _FLAG, "effort": _EFFORT, "max_tokens": {"type": ["integer", "null"], "minimum": 0}},
            "additionalProperties": True,
            "description": "Thinking mode, OpenRouter's spelling.",
        },
        "chat_template_kwargs": {
            "type": ["object", "null"],
            "properties": {"enable_thinking": _FLAG},
            "additionalProperties": True,
            "description": "Thinking mode, vLLM's spelling.",
        },
        "thinking_token_budget": {**_BUDGET, "minimum": -1, "description": "Most tokens of a thought, vLLM's spelling; -1: no limit."},
        "thinking_budget": {**_BUDGET, "minimum": -1, "description": "Most tokens of a thought, Alibaba's spelling; -1: no limit."},
        "enable_thinking": {**_FLAG, "description": "Thinking mode in one field."},
    },
    "required": ["model", "messages"],
    "additionalProperties": True,
}
_ANSWER = {
    "type": "object",
    "properties": {
        "id": {"type": "string"},
        "object": {"type": "string"},
        "created": {"type": "integer"},
        "model": {"type": "string"},
        "choices": {"type": "array", "items": {"type": "object"}},
        "usage": {"type": ["object", "null"]},
    },
    "required": ["choices"],
    "additionalProperties": True,
    "description": "As the upstream gives it.",
}
