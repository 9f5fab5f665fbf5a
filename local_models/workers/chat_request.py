"""The body of /v1/chat/completions, read and checked. Pure: no tokenizer, no model.

What a client asks for and the worker cannot do is refused by name; fields that only describe the caller are ignored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from local_models.workers import fields
from local_models.workers.errors import ApiError
from local_models.workers.fields import JsonObject, shown, wrong

MAX_N = 4
MAX_STOPS = 4
MAX_TOOLS = 128
MAX_MESSAGES = 10_000
MAX_TOKENS = 10_000_000
MAX_SEED = 2**63 - 1
# vLLM's field for constrained output, and the names that it had before.
CONSTRAINTS = ("structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar")
# Arguments of apply_chat_template: a request must not reach them through chat_template_kwargs.
RESERVED_TEMPLATE_KWARGS = frozenset(
    {"conversation", "messages", "tools", "documents", "chat_template", "add_generation_prompt", "continue_final_message", "tokenize"}
    | {"padding", "truncation", "max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs"}
)


@dataclass(frozen=True)
class ToolChoice:
    """required: the answer starts with a call; name: of this function. Neither: the model decides."""

    required: bool = False
    name: str | None = None


@dataclass(frozen=True)
class ChatRequest:
    messages: Sequence[Any]
    stream: bool
    include_usage: bool
    max_tokens: int | None
    n: int
    seed: int | None
    stop: tuple[str, ...]
    sampling: Mapping[str, float | int]
    tools: Sequence[Mapping[str, Any]] | None
    tool_choice: ToolChoice
    parallel_tool_calls: bool
    template_kwargs: Mapping[str, Any]
    thinking_token_budget: int | None = None


def parse_chat_request(body: JsonObject, served_model_name: str) -> ChatRequest:
    _refuse_what_is_missing_here(body)
    check_model(body, served_model_name)
    tools, tool_choice = _tools(body)
    stream = fields.boolean(body, "stream")
    return ChatRequest(
        messages=_messages(body),
        stream=stream,
        include_usage=stream and fields.boolean(fields.mapping(body, "stream_options"), "include_usage"),
        max_tokens=_max_tokens(body),
        n=fields.integer(body, "n", 1, MAX_N) or 1,
        seed=fields.integer(body, "seed", -MAX_SEED, MAX_SEED),
        stop=_stop(body),
        sampling=_sampling(body),
        tools=tools,
        tool_choice=tool_choice,
        parallel_tool_calls=fields.boolean(body, "parallel_tool_calls", True),
        template_kwargs=_template_kwargs(body),
        thinking_token_budget=_thinking_token_budget(body),
    )


def check_model(body: JsonObject, served_model_name: str) -> None:
    model = body.get("model")
    if model is None:
        raise ApiError(f"'model' is missing; this worker serves '{served_model_name}'.", param="model", code="missing_required_parameter")
    if model != served_model_name:
        raise ApiError(
            f"The model {shown(model)} does not exist here; this worker serves '{served_model_name}'.",
            status=404,
            param="model",
            code="model_not_found",
        )


def _messages(body: JsonObject) -> list[Any]:
    messages = fields.array(body, "messages", MAX_MESSAGES)
    if not messages:
        raise ApiError("'messages' is empty; send at least one message.", param="messages", code="invalid_value")
    return messages


def _max_tokens(body: JsonObject) -> int | None:
    """max_completion_tokens wins over its older name."""
    newer = fields.integer(body, "max_completion_tokens", 1, MAX_TOKENS)
    older = fields.integer(body, "max_tokens", 1, MAX_TOKENS)
    return older if newer is None else newer


def _thinking_token_budget(body: JsonObject) -> int | None:
    """vLLM's -1 is "no limit" here too."""
    budget = fields.integer(body, "thinking_token_budget", -1, MAX_TOKENS)
    return None if budget == -1 else budget


def _stop(body: JsonObject) -> tuple[str, ...]:
    stop = body.get("stop")
    stops = [] if stop is None else [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list) or len(stops) > MAX_STOPS or not all(isinstance(s, str) and s for s in stops):
        raise wrong("stop", stop, f"a string or an array of at most {MAX_STOPS} strings, none of them empty")
    return tuple(stops)


def _sampling(body: JsonObject) -> dict[str, float | int]:
    """Only what the request says: the rest comes from the checkpoint's generation_config.json."""
    top_k = body.get("top_k")
    given = {
        "temperature": fields.number(body, "temperature", 0, 2),
        "top_p": fields.number(body, "top_p", 0, 1),
        "top_k": 0 if top_k == -1 else fields.integer(body, "top_k", 0, 1_000_000),  # vLLM's -1 is "no limit" too
        "min_p": fields.number(body, "min_p", 0, 1),
        "presence_penalty": fields.number(body, "presence_penalty", -2, 2),
        "frequency_penalty": fields.number(body, "frequency_penalty", -2, 2),
        "repetition_penalty": fields.number(body, "repetition_penalty", 0.01, 10),
    }
    return {name: value for name, value in given.items() if value is not None}


def _tools(body: JsonObject) -> tuple[list[dict[str, Any]] | None, ToolChoice]:
    tools = fields.array(body, "tools", MAX_TOOLS)
    for index, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or tool.get("type") != "function" or not _is_name(function.get("name")):
            raise wrong(f"tools[{index}]", tool, 'an object {"type": "function", "function": {"name": …, "parameters": …}}')
        if not isinstance(function.get("parameters") or {}, dict):
            raise wrong(f"tools[{index}].function.parameters", function["parameters"], "a JSON schema object")
    names = [tool["function"]["name"] for tool in tools]
    choice = body.get("tool_choice")
    if choice == "none" or not tools:
        if choice in (None, "none", "auto"):
            return None, ToolChoice()
        raise ApiError(
            f"'tool_choice' is {shown(choice)} but 'tools' is empty; send the tools too.", param="tool_choice", code="invalid_value"
        )
    return tools, _tool_choice(choice, names)


def _tool_choice(choice: object, names: Sequence[str]) -> ToolChoice:
    if choice in (None, "auto"):
        return ToolChoice()
    if choice == "required":
        return ToolChoice(required=True, name=names[0] if len(names) == 1 else None)
    function = choice.get("function") if isinstance(choice, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if name in names:
        return ToolChoice(required=True, name=name)
    raise wrong(
        "tool_choice", choice, f'"none", "auto", "required" or {{"type": "function", "function": {{"name": one of {", ".join(names)}}}}}'
    )


def _is_name(value: object) -> bool:
    return isinstance(value, str) and bool(value) and not set(value) & set("<>\n")


def _template_kwargs(body: JsonObject) -> dict[str, Any]:
    kwargs = fields.mapping(body, "chat_template_kwargs")
    if reserved := sorted(kwargs.keys() & RESERVED_TEMPLATE_KWARGS):
        raise ApiError(
            f"'chat_template_kwargs' may not set {', '.join(reserved)}; it takes the template's own switches, such as enable_thinking.",
            param="chat_template_kwargs",
            code="invalid_value",
        )
    if not isinstance(kwargs.get("enable_thinking", False), bool):
        raise wrong("chat_template_kwargs.enable_thinking", kwargs["enable_thinking"], "true or false")
    return kwargs


def _refuse_what_is_missing_here(body: JsonObject) -> None:
    response_format = fields.mapping(body, "response_format")
    if response_format and response_format.get("type") != "text":
        raise ApiError(
            f"'response_format' is {shown(response_format.get('type'))}; the transformers worker writes plain text only."
            " Leave the field out and ask for JSON in the prompt, or use a vLLM deployment.",
            param="response_format",
            code="unsupported_value",
        )
    for name in CONSTRAINTS:
        if body.get(name) is not None:
            raise ApiError(
                f"'{name}' is set; the transformers worker writes plain text only. Leave the field out, or use a vLLM deployment.",
                param=name,
                code="unsupported_value",
            )
    if fields.boolean(body, "logprobs"):
        raise ApiError(
            "'logprobs' is true; the transformers worker does not return them. Leave the field out.",
            param="logprobs",
            code="unsupported_value",
        )
