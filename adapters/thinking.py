"""Thinking mode, the one place where its spellings are known.

A client may say it in any of four ways: `reasoning_effort` (OpenAI), `reasoning: {enabled, effort, max_tokens}` (OpenRouter),
`chat_template_kwargs: {enable_thinking}` (vLLM) or a top-level `enable_thinking` (Alibaba). Most tokens of a thought have three names:
`reasoning.max_tokens`, which asks for thinking as well, and the bare limits `thinking_token_budget` (vLLM) and `thinking_budget`
(Alibaba). An upstream understands one way: its `Dialect`. Where the client is silent the model's default is sent; where neither
speaks, nothing is added.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from reprlib import repr as shown  # a client's value in a message: its beginning is enough
from typing import Any, Literal

from adapters.errors import UpstreamError

Dialect = Literal["chat_template_kwargs", "reasoning", "enable_thinking", "reasoning_effort", "as_given"]
SPELLINGS = frozenset(
    {"reasoning_effort", "reasoning", "enable_thinking", "chat_template_kwargs", "thinking_token_budget", "thinking_budget"}
)
EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")


class ThinkingFieldError(ValueError):
    """A field that cannot be understood, or two that contradict each other. `param` names it."""

    def __init__(self, message: str, param: str) -> None:
        super().__init__(message)
        self.param = param


@dataclass(frozen=True, slots=True)
class Thinking:
    """What is wanted. enabled None: nobody said. effort: one of EFFORTS but "none". max_tokens: of a thought, from 1."""

    enabled: bool | None = None
    effort: str | None = None
    max_tokens: int | None = None


def asked_for(fields: Mapping[str, Any]) -> Thinking:
    """What the client's fields say, whichever way they say it. Raises ThinkingFieldError."""
    if SPELLINGS.isdisjoint(fields):
        return Thinking()
    said: dict[str, bool] = {}
    effort = None
    reasoning_effort = fields.get("reasoning_effort")
    if reasoning_effort is not None:
        effort = _effort(reasoning_effort, "reasoning_effort")
        said["reasoning_effort"] = effort != "none"
    reasoning = fields.get("reasoning")
    budgets: dict[str, int] = {}
    if reasoning is not None:
        if not isinstance(reasoning, dict):
            raise ThinkingFieldError(f'reasoning must be an object such as {{"enabled": false}}, not {shown(reasoning)}', "reasoning")
        if reasoning.get("effort") is not None:
            nested = _effort(reasoning["effort"], "reasoning.effort")
            if effort not in (None, nested):
                message = f"reasoning_effort is {effort} and reasoning.effort is {nested}; send one of them"
                raise ThinkingFieldError(message, "reasoning.effort")
            effort = nested
            said["reasoning.effort"] = effort != "none"
        if reasoning.get("enabled") is not None:
            said["reasoning.enabled"] = _flag(reasoning["enabled"], "reasoning.enabled")
        if (budget := reasoning.get("max_tokens")) is not None:
            budgets["reasoning.max_tokens"] = _budget(budget, "reasoning.max_tokens")
            said["reasoning.max_tokens"] = budget > 0
    for name in ("thinking_token_budget", "thinking_budget"):
        if fields.get(name) not in (None, -1):  # vLLM's -1: no limit
            budgets[name] = _budget(fields[name], name)
            if budgets[name] == 0:
                said[name] = False
    kwargs = fields.get("chat_template_kwargs")
    if kwargs is not None:
        if not isinstance(kwargs, dict):
            raise ThinkingFieldError(f"chat_template_kwargs must be an object, not {shown(kwargs)}", "chat_template_kwargs")
        if kwargs.get("enable_thinking") is not None:
            said["chat_template_kwargs.enable_thinking"] = _flag(kwargs["enable_thinking"], "chat_template_kwargs.enable_thinking")
    if fields.get("enable_thinking") is not None:
        said["enable_thinking"] = _flag(fields["enable_thinking"], "enable_thinking")
    if len(set(said.values())) > 1:
        on, off = (next(name for name, value in said.items() if value is wanted) for wanted in (True, False))
        raise ThinkingFieldError(f"{on} asks for thinking and {off} asks for none; send one of them", off)
    if len(set(budgets.values())) > 1:
        (one, few), (other, many) = list(budgets.items())[:2]
        raise ThinkingFieldError(f"{one} is {few} and {other} is {many}; send one of them", other)
    enabled = next(iter(said.values()), None)
    budget = None if enabled is False else next(iter(budgets.values()), None)
    return Thinking(enabled, effort if enabled else None, budget)


def changes(fields: Mapping[str, Any], dialect: Dialect, default: bool | None) -> dict[str, Any]:
    """The top-level fields to set (a value) or to leave out (None) so that `dialect` says what the client, or else `default`, wants.

    Empty where the request already says it that way. Raises ThinkingFieldError; UpstreamError (400) for a budget that `dialect` cannot say.
    """
    if dialect == "as_given":
        return {}
    wanted = asked_for(fields)
    if wanted.enabled is None:
        if default is None and wanted.max_tokens is None:
            return {}
        wanted = replace(wanted, enabled=default, max_tokens=None if default is False else wanted.max_tokens)
    spelled = _spell(fields, dialect, wanted)
    foreign = SPELLINGS & fields.keys()
    changed: dict[str, Any] = {name: None for name in foreign if name not in spelled and name != "chat_template_kwargs"}
    changed |= {name: value for name, value in spelled.items() if fields.get(name) != value}
    return changed


def _spell(fields: Mapping[str, Any], dialect: Dialect, wanted: Thinking) -> dict[str, Any]:
    kwargs = dict(fields.get("chat_template_kwargs") or {})
    if dialect == "chat_template_kwargs":
        budget = {} if wanted.max_tokens is None else {"thinking_token_budget": wanted.max_tokens}
        switch = {} if wanted.enabled is None else {"enable_thinking": wanted.enabled}
        return budget | ({"chat_template_kwargs": kwargs | switch} if kwargs or switch else {})
    kwargs.pop("enable_thinking", None)
    rest: dict[str, Any] = {"chat_template_kwargs": kwargs or None} if "chat_template_kwargs" in fields else {}
    if dialect == "enable_thinking":
        spelled = {"enable_thinking": wanted.enabled, "thinking_budget": wanted.max_tokens}
        return rest | {name: value for name, value in spelled.items() if value is not None}
    if dialect == "reasoning":
        return rest | {"reasoning": _openrouters(fields.get("reasoning") or {}, wanted)}
    if wanted.max_tokens is not None:
        raise _no_budget(fields)
    if wanted.enabled and wanted.effort is None:  # on, with the upstream's own effort
        return rest
    return rest | {"reasoning_effort": wanted.effort or "none"}


def _openrouters(given: Mapping[str, Any], wanted: Thinking) -> dict[str, Any]:
    reasoning = {key: value for key, value in given.items() if key not in ("enabled", "effort", "max_tokens")}
    if wanted.max_tokens is not None:  # OpenRouter takes a budget or an effort, not both
        reasoning["max_tokens"] = wanted.max_tokens
    elif wanted.effort is not None:
        reasoning["effort"] = wanted.effort
    else:
        reasoning["enabled"] = wanted.enabled
    return reasoning


def _no_budget(fields: Mapping[str, Any]) -> UpstreamError:
    """Another deployment may be able to, so this one's refusal is not the end."""
    param = next((name for name in ("thinking_token_budget", "thinking_budget") if fields.get(name) is not None), "reasoning.max_tokens")
    message = f"{param} cannot be kept here: this upstream knows a reasoning_effort and no budget of tokens; send reasoning_effort instead"
    return UpstreamError(400, message, "unsupported_parameter", "invalid_request_error", param)


def _budget(value: Any, param: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ThinkingFieldError(f"{param} must be a number of tokens from 0, not {shown(value)}", param)
    return value


def _effort(value: Any, param: str) -> str:
    if value not in EFFORTS:
        raise ThinkingFieldError(f"{param} is {shown(value)}; it must be one of {', '.join(EFFORTS)}", param)
    return str(value)


def _flag(value: Any, param: str) -> bool:
    if not isinstance(value, bool):
        raise ThinkingFieldError(f"{param} must be true or false, not {shown(value)}", param)
    return value
