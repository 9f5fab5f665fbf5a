"""What a Qwen model wrote, taken apart while it is written: reasoning, content, tool calls.

Pure and incremental: the events of a text are the same wherever it is cut into pieces, and no part of a tag ever shows in
reasoning or content. The opening <think> is usually in the prompt, so the text starts inside the reasoning; a <tool_call>
before </think> ends the reasoning too. Tool calls are Qwen3.5's XML, or the JSON that Qwen3 writes between the same tags.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

THINK, THINK_END = "<think>", "</think>"
CALL, CALL_END = "<tool_call>", "</tool_call>"
FUNCTION, FUNCTION_END = "<function=", "</function>"
PARAMETER, PARAMETER_END = "<parameter=", "</parameter>"


@dataclass(frozen=True)
class Reasoning:
    text: str


@dataclass(frozen=True)
class Content:
    text: str


@dataclass(frozen=True)
class ToolCall:
    """A tool call begins: its name is known, its arguments follow."""

    index: int
    id: str
    name: str


@dataclass(frozen=True)
class ToolArguments:
    """The next piece of the JSON text of a call's arguments."""

    index: int
    text: str


@dataclass(frozen=True)
class ToolCallEnd:
    index: int


Event = Reasoning | Content | ToolCall | ToolArguments | ToolCallEnd


def held_back(text: str, tags: Sequence[str]) -> int:
    """Length of the longest end of `text` that may be the beginning of a tag."""
    longest = max((len(tag) for tag in tags), default=1) - 1
    for length in range(min(longest, len(text)), 0, -1):
        if any(tag.startswith(text[-length:]) for tag in tags):
            return length
    return 0


def first_tag(text: str, tags: Sequence[str]) -> tuple[int, str] | None:
    found = [(position, tag) for tag in tags if (position := text.find(tag)) >= 0]
    return min(found) if found else None


class QwenOutputParser:
    """Feed text, get events; `finish` says what the end of the text settles.

    thinking: the prompt ended inside an open <think>. tools: the request's tools, or None to leave <tool_call> as text.
    """

    def __init__(self, *, thinking: bool, tools: Sequence[Mapping[str, Any]] | None, new_id: Callable[[], str]) -> None:
        self._state: Callable[[bool], bool] = self._reasoning if thinking else self._start
        self._schemas = {tool["function"]["name"]: _properties(tool) for tool in tools or ()}
        self._call_tags = (CALL,) if tools is not None else ()
        self._new_id = new_id
        self._pending = ""
        self._events: list[Event] = []
        self._at_segment_start = thinking
        self._spaces = ""
        self._calls = 0
        self._calls_in_block = False
        self._name: str | None = None
        self._written = 0

    def feed(self, text: str) -> list[Event]:
        self._pending += text
        return self._run(at_end=False)

    def finish(self, *, truncated: bool) -> list[Event]:
        """Events that only the end decides.

        Truncated by a limit, a call stays open (so nobody runs half of it) and what may be half a tag is dropped.
        """
        if truncated:
            self._pending = ""
            if self._state in (self._call, self._parameters):
                return []
        return self._run(at_end=True)

    def _run(self, *, at_end: bool) -> list[Event]:
        while self._state(at_end):
            pass
        events, self._events = self._events, []
        return events

    # Each state consumes what it can from `_pending` and says whether it is worth going on.

    def _start(self, at_end: bool) -> bool:
        """Before the first character of an answer whose prompt opened no <think>: the model may open one itself."""
        text = self._pending.lstrip()
        if text.startswith(THINK):
            self._pending = text[len(THINK) :]
            self._at_segment_start = True
            self._state = self._reasoning
        elif at_end or not THINK.startswith(text):
            self._state = self._content
        else:
            return False
        return True

    def _reasoning(self, at_end: bool) -> bool:
        tags = (THINK_END, *self._call_tags)
        found = first_tag(self._pending, tags)
        if found is None:
            self._show(Reasoning, at_end, tags)
            return False
        position, tag = found
        self._write(Reasoning, self._pending[:position])
        self._pending = self._pending[position + len(tag) :]
        self._end_segment()
        self._state = self._content if tag == THINK_END else self._call
        return True

    def _content(self, at_end: bool) -> bool:
        found = first_tag(self._pending, self._call_tags)
        if found is None:
            self._show(Content, at_end, self._call_tags)
            if at_end and self._spaces and not self._at_segment_start:
                self._events.append(Content(self._spaces))
                self._spaces = ""
            return False
        position, tag = found
        self._write(Content, self._pending[:position])
        self._pending = self._pending[position + len(tag) :]
        self._state = self._call
        return True

    def _call(self, at_end: bool) -> bool:
        """Between calls inside <tool_call>: a function, a JSON object, or the closing tag."""
        text = self._pending.lstrip()
        if text.startswith(FUNCTION) and (close := text.find(">")) >= 0:
            self._begin_call(text[len(FUNCTION) : close].strip())
            self._pending = text[close + 1 :]
            self._state = self._parameters
            return True
        if text.startswith(CALL_END):
            return self._leave_call(text[len(CALL_END) :])
        if text.startswith("{"):
            return self._json_call(text, at_end)
        if any(tag.startswith(text) for tag in (FUNCTION, CALL_END)) or text.startswith(FUNCTION):
            return self._leave_call("") if at_end else False
        return self._leave_call(text) if self._calls_in_block else self._not_a_call(text)

    def _json_call(self, text: str, at_end: bool) -> bool:
        close = text.find(CALL_END)
        if close < 0 and not at_end:
            return False
        body, rest = (text[:close], text[close + len(CALL_END) :]) if close >= 0 else (text, "")
        call = _json_object(body)
        if call is None or not isinstance(call.get("name"), str):
            return self._not_a_call(text)
        self._begin_call(call["name"])
        self._events.append(ToolArguments(self._calls - 1, json.dumps(call.get("arguments") or {}, ensure_ascii=False)))
        self._events.append(ToolCallEnd(self._calls - 1))
        self._name = None
        return self._leave_call(rest)

    def _parameters(self, at_end: bool) -> bool:
        text = self._pending.lstrip()
        if text.startswith(PARAMETER):
            return self._parameter(text, at_end)
        for tag in (FUNCTION_END, CALL_END):
            if text.startswith(tag):
                self._pending = text[len(tag) :] if tag == FUNCTION_END else text
                self._end_call()
                self._state = self._call
                return True
        if any(tag.startswith(text) for tag in (PARAMETER, FUNCTION_END, CALL_END)):
            if at_end:
                self._pending = ""
                self._end_call()
                self._state = self._content
            return False
        following = text.find("<", 1)  # stray text between parameters says nothing: skip it
        self._pending = text[following:] if following > 0 else ""
        return bool(self._pending) or at_end

    def _parameter(self, text: str, at_end: bool) -> bool:
        key_end = text.find(">")
        found = first_tag(text[key_end:], (PARAMETER_END, CALL_END)) if key_end >= 0 else None
        if found is None and not at_end:
            return False
        if key_end < 0:
            self._pending = ""
            return True
        position, tag = found or (len(text) - key_end, "")
        value = text[key_end + 1 : key_end + position]
        if tag != PARAMETER_END:
            value = value.rstrip().removesuffix(FUNCTION_END)
        self._argument(text[len(PARAMETER) : key_end].strip(), value)
        self._pending = text[key_end + position + (len(tag) if tag == PARAMETER_END else 0) :]
        return True

    def _begin_call(self, name: str) -> None:
        self._end_segment()
        self._events.append(ToolCall(self._calls, self._new_id(), name))
        self._calls += 1
        self._calls_in_block = True
        self._name = name
        self._written = 0

    def _argument(self, key: str, raw: str) -> None:
        value = coerce(_one_newline_less(raw), self._schemas.get(self._name or "", {}).get(key))
        piece = f"{json.dumps(key, ensure_ascii=False)}: {json.dumps(value, ensure_ascii=False)}"
        self._events.append(ToolArguments(self._calls - 1, ("{" if self._written == 0 else ", ") + piece))
        self._written += 1

    def _end_call(self) -> None:
        self._events.append(ToolArguments(self._calls - 1, "}" if self._written else "{}"))
        self._events.append(ToolCallEnd(self._calls - 1))
        self._name = None

    def _leave_call(self, rest: str) -> bool:
        self._pending = rest
        self._calls_in_block = False
        self._end_segment()
        self._state = self._content
        return True

    def _not_a_call(self, text: str) -> bool:
        """What follows <tool_call> is no call: it is text, and shown as it was written."""
        self._write(Content, CALL)
        self._pending = text
        self._state = self._content
        return True

    def _show(self, kind: type[Reasoning] | type[Content], at_end: bool, tags: Sequence[str]) -> None:
        kept = 0 if at_end else held_back(self._pending, tags)
        cut = len(self._pending) - kept
        self._write(kind, self._pending[:cut])
        self._pending = self._pending[cut:]

    def _write(self, kind: type[Reasoning] | type[Content], text: str) -> None:
        """Emit text, except white space at the start of a segment and, until something follows it, at its end."""
        if self._at_segment_start:
            text = text.lstrip()
        text = self._spaces + text
        shown = text.rstrip()
        self._spaces = text[len(shown) :]
        if shown:
            self._events.append(kind(shown))
            self._at_segment_start = False

    def _end_segment(self) -> None:
        self._spaces = ""
        self._at_segment_start = True


def _properties(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    parameters = tool["function"].get("parameters") or {}
    properties = parameters.get("properties") if isinstance(parameters, Mapping) else None
    return properties if isinstance(properties, Mapping) else {}


def _json_object(text: str) -> dict[str, Any] | None:
    value = _json_value(text)
    return value if isinstance(value, dict) else None


def _json_value(text: str) -> Any | None:
    """The value, or None when `text` is not JSON. Python's NaN and Infinity are not."""
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _one_newline_less(value: str) -> str:
    return value.removeprefix("\n").removesuffix("\n")


def coerce(text: str, schema: object) -> Any:
    """The value that `text` stands for under a JSON schema. Text that fits no declared type stays text."""
    types = _types(schema)
    if "null" in types and text.strip().lower() in ("null", "none"):
        return None
    for name in ("object", "array") if "string" in types else ("boolean", "integer", "number", "object", "array"):
        if name in types and (value := _as(name, text.strip())) is not None:
            return value
    return text


def _types(schema: object) -> set[str]:
    """Every JSON type that the schema allows; none when it does not say."""
    if not isinstance(schema, Mapping):
        return set()
    declared = schema.get("type")
    types = {name for name in (declared if isinstance(declared, list) else [declared]) if isinstance(name, str)}
    for key in ("anyOf", "oneOf", "allOf"):
        for option in schema.get(key) or ():
            types |= _types(option)
    if isinstance(schema.get("enum"), list) and not types:
        types |= {_type_of(value) for value in schema["enum"]}
    return types


def _type_of(value: object) -> str:
    names = {bool: "boolean", int: "integer", float: "number", dict: "object", list: "array", str: "string"}
    return names.get(type(value), "null")


def _as(name: str, text: str) -> Any | None:
    if name == "boolean":
        return {"true": True, "false": False}.get(text.lower())
    value = _json_value(text)
    kinds: dict[str, tuple[type, ...]] = {"integer": (int,), "number": (int, float), "object": (dict,), "array": (list,)}
    if name == "integer" and isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, kinds[name]) and not isinstance(value, bool) else None
