"""Thinking mode in four spellings."""

from __future__ import annotations

from typing import Any

import pytest

from adapters.thinking import Dialect, Thinking, ThinkingFieldError, asked_for, changes

OFF: list[dict[str, Any]] = [
    {"reasoning_effort": "none"},
    {"reasoning": {"enabled": False}},
    {"reasoning": {"effort": "none"}},
    {"chat_template_kwargs": {"enable_thinking": False}},
    {"enable_thinking": False},
]


def applied(fields: dict[str, Any], dialect: Dialect, default: bool | None = None) -> dict[str, Any]:
    merged = {**fields, **changes(fields, dialect, default)}
    return {name: value for name, value in merged.items() if value is not None}


@pytest.mark.parametrize("fields", OFF)
def test_off_is_off_in_every_dialect_however_it_is_said(fields: dict[str, Any]) -> None:
    assert applied(fields, "chat_template_kwargs") == {"chat_template_kwargs": {"enable_thinking": False}}
    assert applied(fields, "reasoning") in ({"reasoning": {"enabled": False}}, {"reasoning": {"effort": "none"}})
    assert applied(fields, "reasoning_effort") == {"reasoning_effort": "none"}
    assert applied(fields, "as_given") == fields


def test_effort_and_budget_are_carried_where_they_exist() -> None:
    assert applied({"reasoning_effort": "high"}, "reasoning") == {"reasoning": {"effort": "high"}}
    assert applied({"reasoning": {"max_tokens": 100}}, "chat_template_kwargs") == {
        "chat_template_kwargs": {"enable_thinking": True},
        "thinking_token_budget": 100,
    }
    assert applied({"reasoning": {"effort": "low", "exclude": True}}, "reasoning") == {"reasoning": {"effort": "low", "exclude": True}}
    assert applied({"enable_thinking": True}, "reasoning_effort") == {}


def test_a_silent_client_gets_the_default_or_nothing() -> None:
    assert changes({}, "chat_template_kwargs", None) == {}
    assert changes({}, "chat_template_kwargs", True) == {"chat_template_kwargs": {"enable_thinking": True}}
    assert changes({"chat_template_kwargs": {"x": 1}}, "chat_template_kwargs", False) == {
        "chat_template_kwargs": {"x": 1, "enable_thinking": False}
    }


def test_a_request_that_says_it_already_is_left_alone() -> None:
    assert changes({"chat_template_kwargs": {"enable_thinking": False}}, "chat_template_kwargs", True) == {}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"reasoning_effort": "huge"}, "reasoning_effort"),
        ({"reasoning": True}, "reasoning"),
        ({"reasoning": {"max_tokens": -1}}, "reasoning.max_tokens"),
        ({"chat_template_kwargs": [1]}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"enable_thinking": "no"}}, "chat_template_kwargs.enable_thinking"),
        ({"reasoning_effort": "high", "enable_thinking": False}, "enable_thinking"),
        ({"reasoning_effort": "high", "reasoning": {"effort": "low"}}, "reasoning.effort"),
        ({"reasoning_effort": "high", "reasoning": {"effort": "none"}}, "reasoning.effort"),
    ],
)
def test_nonsense_and_contradictions_are_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ThinkingFieldError) as caught:
        asked_for(fields)
    assert caught.value.param == param


def test_two_efforts_are_both_named_unless_they_are_the_same() -> None:
    with pytest.raises(ThinkingFieldError, match=r"reasoning_effort is high and reasoning\.effort is low; send one of them"):
        asked_for({"reasoning_effort": "high", "reasoning": {"effort": "low"}})
    assert asked_for({"reasoning_effort": "low", "reasoning": {"effort": "low"}}) == Thinking(True, "low")
