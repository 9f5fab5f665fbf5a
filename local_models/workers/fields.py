"""Typed reads of a JSON object from a request.

`None` means "not given" everywhere, as OpenAI's clients send it. A refusal names the field, the value and what is allowed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from local_models.workers.errors import ApiError

JsonObject = Mapping[str, Any]


def shown(value: object, limit: int = 80) -> str:
    """The value as the error message shows it: JSON, cut to `limit` characters."""
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def wrong(name: str, value: object, allowed: str) -> ApiError:
    return ApiError(f"'{name}' is {shown(value)}; it must be {allowed}.", param=name, code="invalid_value")


def boolean(body: JsonObject, name: str, default: bool = False) -> bool:
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise wrong(name, value, "true or false")
    return value


def integer(body: JsonObject, name: str, low: int, high: int) -> int | None:
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise wrong(name, value, f"a whole number from {low} to {high}")
    return value


def number(body: JsonObject, name: str, low: float, high: float) -> float | None:
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or not low <= value <= high:
        raise wrong(name, value, f"a number from {low:g} to {high:g}")
    return float(value)


def text(body: JsonObject, name: str, max_chars: int) -> str | None:
    value = body.get(name)
    if value is None:
        return None
    if not isinstance(value, str):
        raise wrong(name, value, "a string")
    if len(value) > max_chars:
        raise ApiError(
            f"'{name}' has {len(value)} characters; at most {max_chars} are allowed. Shorten it.",
            param=name,
            code="string_above_max_length",
        )
    return value


def mapping(body: JsonObject, name: str) -> dict[str, Any]:
    value = body.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise wrong(name, value, "an object")
    return value


def array(body: JsonObject, name: str, max_items: int) -> list[Any]:
    value = body.get(name)
    if value is None:
        return []
    if not isinstance(value, list):
        raise wrong(name, value, "an array")
    if len(value) > max_items:
        raise ApiError(f"'{name}' has {len(value)} entries; at most {max_items} are allowed.", param=name, code="array_above_max_length")
    return value
