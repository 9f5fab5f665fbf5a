"""Which of a client's fields become litellm's arguments, and how thinking is said."""

from __future__ import annotations

from typing import Any

import pytest

from adapters.errors import UpstreamError
from adapters.litellm_request import arguments

MESSAGES = [{"role": "user", "content": "hello"}]


def asked(*, takes_any: bool = False, drops: bool = False, thinks: bool | None = None, **fields: Any) -> dict[str, Any]:
    return arguments({"model": "m", "messages": MESSAGES, **fields}, "lab", takes_any=takes_any, drops=drops, thinks=thinks)


@pytest.mark.parametrize(
    ("fields", "thinks", "expected"),
    [
        ({}, None, {}),
        ({}, True, {"reasoning_effort": "medium"}),
        ({}, False, {"reasoning_effort": "none"}),
        ({"enable_thinking": False}, True, {"reasoning_effort": "none"}),
        ({"reasoning": {"effort": "high"}}, None, {"reasoning_effort": "high"}),
        ({"reasoning": {"max_tokens": 2048}}, None, {"thinking": {"type": "enabled", "budget_tokens": 2048}}),
        ({"thinking_budget": 2048}, True, {"thinking": {"type": "enabled", "budget_tokens": 2048}}),
        ({"thinking_token_budget": 2048}, False, {"reasoning_effort": "none"}),
        ({"chat_template_kwargs": {"enable_thinking": True}}, None, {"reasoning_effort": "medium"}),
        ({"thinking": {"type": "disabled"}}, True, {"thinking": {"type": "disabled"}}),
    ],
)
def test_thinking_is_said_in_litellms_way(fields: dict[str, Any], thinks: bool | None, expected: dict[str, Any]) -> None:
    assert asked(thinks=thinks, **fields) == {"messages": MESSAGES} | expected


def test_usage_is_asked_for_whatever_the_client_wants() -> None:
    assert asked(stream=True)["stream_options"] == {"include_usage": True}
    given = {"include_usage": False, "include_obfuscation": False}
    assert asked(stream=True, stream_options=given)["stream_options"] == {"include_usage": True, "include_obfuscation": False}
    assert "stream" not in asked()


def test_settings_of_litellm_are_no_fields_of_a_request() -> None:
    hostile: dict[str, Any] = {
        "api_base": "http://evil",
        "headers": {"a": "b"},
        "aws_region_name": "x",
        "mock_response": "y",
        "callbacks": ["z"],
    }
    assert asked(takes_any=True, **hostile) == {"messages": MESSAGES, "extra_body": hostile}
    assert asked(drops=True, **hostile) == {"messages": MESSAGES}
    with pytest.raises(UpstreamError, match="does not take api_base, aws_region_name"):
        asked(**hostile)
