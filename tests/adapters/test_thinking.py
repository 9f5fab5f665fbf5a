"""Thinking mode in four spellings."""

from __future__ import annotations

from typing import Any

import pytest

from adapters.errors import UpstreamError
from adapters.thinking import Dialect, Thinking, ThinkingFieldError, asked_for, changes

OFF: list[dict[str, Any]] = [
    {"reasoning_effort": "none"},
    {"reasoning": {"enabled": False}},
    {"reasoning": {"effort": "none"}},
    {"chat_template_kwargs": {"enable_thinking": False}},
    {"enable_thinking": False},
    {"reasoning": {"max_tokens": 0}},
    {"thinking_token_budget": 0},
    {"thinking_budget": 0},
]


def applied(fields: dict[str, Any], dialect: Dialect, default: bool | None = None) -> dict[str, Any]:
    merged = {**fields, **changes(fields, dialect, default)}
    return {name: value for name, value in merged.items() if value is not None}


@pytest.mark.parametrize("fields", OFF)
def test_off_is_off_in_every_dialect_however_it_is_said(fields: dict[str, Any]) -> None:
    assert applied(fields, "chat_template_kwargs") == {"chat_template_kwargs": {"enable_thinking": False}}
    assert applied(fields, "reasoning") in ({"reasoning": {"enabled": False}}, {"reasoning": {"effort": "none"}})
    assert applied(fields, "reasoning_effort") == {"reasoning_effort": "none"}
    assert applied(fields, "enable_thinking") == {"enable_thinking": False}
    assert applied(fields, "as_given") == fields


def test_effort_and_budget_are_carried_where_they_exist() -> None:
    assert applied({"reasoning_effort": "high"}, "reasoning") == {"reasoning": {"effort": "high"}}
    assert applied({"reasoning": {"max_tokens": 100}}, "chat_template_kwargs") == {
        "chat_template_kwargs": {"enable_thinking": True},
        "thinking_token_budget": 100,
    }
    assert applied({"reasoning": {"effort": "low", "exclude": True}}, "reasoning") == {"reasoning": {"effort": "low", "exclude": True}}
    assert applied({"enable_thinking": True}, "reasoning_effort") == {}
    assert applied({"reasoning": {"max_tokens": 100}}, "enable_thinking") == {"enable_thinking": True, "thinking_budget": 100}


BUDGETS: list[dict[str, Any]] = [
    {"thinking_token_budget": 100},
    {"thinking_budget": 100},
    {"thinking_budget": 100, "thinking_token_budget": 100},
]


@pytest.mark.parametrize("fields", BUDGETS)
def test_a_bare_budget_limits_a_thought_and_asks_for_none(fields: dict[str, Any]) -> None:
    assert asked_for(fields) == Thinking(None, None, 100)
    on: dict[str, Any] = {"chat_template_kwargs": {"enable_thinking": True}, "thinking_token_budget": 100}
    assert applied(fields, "chat_template_kwargs", True) == on
    assert applied(fields, "chat_template_kwargs", False) == {"chat_template_kwargs": {"enable_thinking": False}}
    assert applied(fields, "chat_template_kwargs") == {"thinking_token_budget": 100}
    assert applied(fields, "reasoning", True) == {"reasoning": {"max_tokens": 100}}
    assert applied(fields, "enable_thinking") == {"thinking_budget": 100}
    assert applied(fields | {"enable_thinking": True}, "chat_template_kwargs", False) == on


def test_no_limit_is_none() -> None:
    assert applied({"thinking_token_budget": -1}, "chat_template_kwargs", True) == {"chat_template_kwargs": {"enable_thinking": True}}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"thinking_token_budget": 9}, "thinking_token_budget"),
        ({"thinking_budget": 9}, "thinking_budget"),
        ({"reasoning": {"max_tokens": 9}}, "reasoning.max_tokens"),
    ],
)
def test_an_upstream_without_budgets_refuses_one_by_name_and_another_may_be_asked(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(UpstreamError, match="knows a reasoning_effort and no budget") as caught:
        changes(fields, "reasoning_effort", True)
    assert (caught.value.status, caught.value.param, caught.value.fallback) == (400, param, True)


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
        ({"thinking_token_budget": -2}, "thinking_token_budget"),
        ({"thinking_budget": True}, "thinking_budget"),
        ({"thinking_budget": 5, "thinking_token_budget": 6}, "thinking_budget"),
        ({"thinking_budget": 5, "reasoning": {"max_tokens": 6}}, "thinking_budget"),
        ({"thinking_budget": 0, "enable_thinking": True}, "thinking_budget"),
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
