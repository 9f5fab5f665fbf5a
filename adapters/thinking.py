"""Thinking mode, the one place where its spellings are known.

A client may say it in any of four ways: `reasoning_effort` (OpenAI), `reasoning: {enabled, effort, max_tokens}` (OpenRouter),
`chat_template_kwargs: {enable_thinking}` (vLLM) or a top-level `enable_thinking` (Alibaba). An upstream understands one:
its `Dialect`. Where the client is silent the model's default is sent; where neither speaks, nothing is added.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from reprlib import repr as shown  # a client's value in a message: its beginning is enough
from typing import Any, Literal

Dialect = Literal["chat_template_kwargs", "reasoning", "reasoning_effort", "as_given"]
FIELDS = frozenset({"reasoning_effort", "reasoning", "chat_template_kwargs", "enable_thinking"})
EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")


class ThinkingFieldError(ValueError):
    """A field that cannot be understood, or two that contradict each other. `param` names it."""

    def __init__(self, message: str, param: str) -> None:
        super().__init__(message)
        self.param = param


@dataclass(frozen=True, slots=True)
class Thinking:
    """What is wanted. enabled None: nobody said. effort: one of EFFORTS but "none". max_tokens: the thinking budget."""

    enabled: bool | None = None
    effort: str | None = None
    max_tokens: int | None = None


def asked_for(fields: Mapping[str, Any]) -> Thinking:
    """What the client's fields say, whichever way they say it. Raises ThinkingFieldError."""
    if FIELDS.isdisjoint(fields):
        return Thinking()
    said: dict[str, bool] = {}
    effort = None
    reasoning_effort = fields.get("reasoning_effort")
    if reasoning_effort is not None:
        effort = _effort(reasoning_effort, "reasoning_effort")
        said["reasoning_effort"] = effort != "none"
    reasoning = fields.get("reasoning")
    budget = None
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
        budget = reasoning.get("max_tokens")
        if budget is not None:
            if not isinstance(budget, int) or isinstance(budget, bool) or budget < 0:
                wanted = "a number of tokens from 0"
                raise ThinkingFieldError(f"reasoning.max_tokens must be {wanted}, not {shown(budget)}", "reasoning.max_tokens")
            said["reasoning.max_tokens"] = budget > 0
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
    enabled = next(iter(said.values()), None)
    return Thinking(enabled, effort if enabled else None, budget if enabled else None)


def changes(fields: Mapping[str, Any], dialect: Dialect, default: bool | None) -> dict[str, Any]:
    """The top-level fields to set (a value) or to leave out (None) so that `dialect` says what the client, or else `default`, wants.

    Empty where the request already says it that way. Raises ThinkingFieldError.
    """
    if dialect == "as_given":
        return {}
    wanted = asked_for(fields)
    if wanted.enabled is None:
        if default is None:
            return {}
        wanted = Thinking(default)
    spelled = _spell(fields, dialect, wanted)
    foreign = {"reasoning_effort", "reasoning", "enable_thinking", "chat_template_kwargs"} & fields.keys()
    changed: dict[str, Any] = {name: None for name in foreign if name not in spelled and name != "chat_template_kwargs"}
    changed |= {name: value for name, value in spelled.items() if fields.get(name) != value}
    return changed


def _spell(fields: Mapping[str, Any], dialect: Dialect, wanted: Thinking) -> dict[str, Any]:
    kwargs = dict(fields.get("chat_template_kwargs") or {})
    if dialect == "chat_template_kwargs":
        spelled: dict[str, Any] = {"chat_template_kwargs": kwargs | {"enable_thinking": wanted.enabled}}
        if wanted.max_tokens is not None:
            spelled["thinking_token_budget"] = wanted.max_tokens  # vLLM's name
        return spelled
    kwargs.pop("enable_thinking", None)
    rest: dict[str, Any] = {"chat_template_kwargs": kwargs or None} if "chat_template_kwargs" in fields else {}
    if dialect == "reasoning":
        given = fields.get("reasoning")
        reasoning = {key: value for key, value in (given or {}).items() if key not in ("enabled", "effort", "max_tokens")}
        if wanted.max_tokens is not None:  # OpenRouter takes a budget or an effort, not both
            reasoning["max_tokens"] = wanted.max_tokens
        elif wanted.effort is not None:
            reasoning["effort"] = wanted.effort
        else:
            reasoning["enabled"] = wanted.enabled
        return rest | {"reasoning": reasoning}
    if wanted.enabled and wanted.effort is None:  # on, with the upstream's own effort
        return rest
    return rest | {"reasoning_effort": wanted.effort or "none"}


def _effort(value: Any, param: str) -> str:
    if value not in EFFORTS:
        raise ThinkingFieldError(f"{param} is {shown(value)}; it must be one of {', '.join(EFFORTS)}", param)
    return str(value)


def _flag(value: Any, param: str) -> bool:
    if not isinstance(value, bool):
        raise ThinkingFieldError(f"{param} must be true or false, not {shown(value)}", param)
    return value
