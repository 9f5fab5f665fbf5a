"""The parser says the same wherever its input is cut."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import pytest

from local_models.workers.qwen_output import Content, Event, QwenOutputParser, Reasoning, ToolArguments, ToolCall, ToolCallEnd, coerce

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "days": {"type": "integer"},
                "exact": {"type": "boolean"},
                "units": {"type": "array", "items": {"type": "string"}},
            },
        },
    },
}
CALL = """<tool_call>
<function=weather>
<parameter=city>
Rio <b>
</parameter>
<parameter=days>
3
</parameter>
</function>
</tool_call>"""


def parsed(
    pieces: Iterable[str], *, thinking: bool = False, tools: Sequence[Any] | None = (WEATHER,), truncated: bool = False
) -> list[Event]:
    """The events, with neighbouring pieces of text joined."""
    ids = itertools.count()
    parser = QwenOutputParser(thinking=thinking, tools=tools, new_id=lambda: f"id{next(ids)}")
    events = [event for piece in pieces for event in parser.feed(piece)] + parser.finish(truncated=truncated)
    joined: list[Event] = []
    for event in events:
        last = joined[-1] if joined else None
        if isinstance(event, Reasoning) and isinstance(last, Reasoning):
            joined[-1] = Reasoning(last.text + event.text)
        elif isinstance(event, Content) and isinstance(last, Content):
            joined[-1] = Content(last.text + event.text)
        elif isinstance(event, ToolArguments) and isinstance(last, ToolArguments) and event.index == last.index:
            joined[-1] = ToolArguments(event.index, last.text + event.text)
        else:
            joined.append(event)
    return joined


def call(index: int, name: str, arguments: str) -> list[Event]:
    return [ToolCall(index, f"id{index}", name), ToolArguments(index, arguments), ToolCallEnd(index)]


ANSWERS: list[tuple[str, bool, list[Event]]] = [
    ("Hello\n\nthere.\n", False, [Content("Hello\n\nthere.\n")]),
    ("First I think.\n</think>\n\nThe answer.", True, [Reasoning("First I think."), Content("The answer.")]),
    ("<think>\nhm\n</think>\n\nYes", False, [Reasoning("hm"), Content("Yes")]),
    ("</think>\n\nYes", True, [Content("Yes")]),
    ("I never stop thinking", True, [Reasoning("I never stop thinking")]),
    (f"Let me look.\n\n{CALL}", False, [Content("Let me look."), *call(0, "weather", '{"city": "Rio <b>", "days": 3}')]),
    (f"hm{CALL}", True, [Reasoning("hm"), *call(0, "weather", '{"city": "Rio <b>", "days": 3}')]),
    (
        f"ok\n</think>\n\n{CALL}\n{CALL}\n",
        True,
        [
            Reasoning("ok"),
            *call(0, "weather", '{"city": "Rio <b>", "days": 3}'),
            *call(1, "weather", '{"city": "Rio <b>", "days": 3}'),
        ],
    ),
    ("<tool_call><function=now></function></tool_call>Done", False, [*call(0, "now", "{}"), Content("Done")]),
    ('<tool_call>\n{"name": "now", "arguments": {"zone": "é"}}\n</tool_call>', False, call(0, "now", '{"zone": "é"}')),
    ("a <tool_box> and <tool_call>? no", False, [Content("a <tool_box> and <tool_call>? no")]),
    ("1 < 2 <", False, [Content("1 < 2 <")]),
    # the model forgot to close what it opened
    ("<tool_call><function=weather><parameter=city>Bonn", False, call(0, "weather", '{"city": "Bonn"}')),
    ("<tool_call><function=weather><parameter=days>2</tool_call>", False, call(0, "weather", '{"days": 2}')),
    ("<tool_call><function=a></function><function=b></function></tool_call>", False, [*call(0, "a", "{}"), *call(1, "b", "{}")]),
]


@pytest.mark.parametrize(("text", "thinking", "expected"), ANSWERS)
def test_every_split_gives_the_same_events(text: str, thinking: bool, expected: list[Event]) -> None:
    assert parsed([text], thinking=thinking) == expected
    assert parsed(text, thinking=thinking) == expected
    for first in range(len(text)):
        assert parsed([text[:first], text[first:]], thinking=thinking) == expected
        for second in range(first, len(text), 7):
            assert parsed([text[:first], text[first:second], text[second:]], thinking=thinking) == expected


@pytest.mark.parametrize("cut", range(1, len(CALL)))
def test_a_call_cut_short_never_looks_complete_and_shows_no_tag(cut: int) -> None:
    events = parsed([f"Hi {CALL[:cut]}"], truncated=True)
    assert events[0] == Content("Hi") if cut >= len("<tool_call>") else Content("Hi ")
    assert not any(isinstance(event, Content) for event in events[1:])
    ends = [event for event in events if isinstance(event, ToolCallEnd)]
    assert len(ends) == ("</function>" in CALL[:cut])


def test_without_tools_a_tool_call_is_text() -> None:
    assert parsed([CALL], tools=None) == [Content(CALL)]


def test_names_come_before_arguments_and_arguments_in_pieces() -> None:
    parser = QwenOutputParser(thinking=False, tools=[WEATHER], new_id=lambda: "id")
    assert parser.feed("<tool_call>\n<function=weather>\n") == [ToolCall(0, "id", "weather")]
    assert parser.feed("<parameter=city>\nUlm\n</parameter>\n") == [ToolArguments(0, '{"city": "Ulm"')]
    assert parser.feed("<parameter=days>\n1\n</parameter>\n") == [ToolArguments(0, ', "days": 1')]
    assert parser.feed("</function>") == [ToolArguments(0, "}"), ToolCallEnd(0)]


@pytest.mark.parametrize(
    ("text", "schema", "value"),
    [
        ("5", {"type": "string"}, "5"),
        ("5", {"type": "integer"}, 5),
        ("5.0", {"type": "integer"}, 5),
        ("5.5", {"type": "integer"}, "5.5"),
        ("five", {"type": "integer"}, "five"),
        ("5", {"type": "number"}, 5),
        ("NaN", {"type": "number"}, "NaN"),
        ("True", {"type": "boolean"}, True),
        ("yes", {"type": "boolean"}, "yes"),
        ('{"a": 1}', {"type": "object"}, {"a": 1}),
        ('["a"]', {"type": "array"}, ["a"]),
        ("null", {"type": ["integer", "null"]}, None),
        ("null", {"type": "string"}, "null"),
        ("7", {"anyOf": [{"type": "integer"}, {"type": "null"}]}, 7),
        ("7", {"type": ["string", "integer"]}, "7"),
        ("2", {"enum": [1, 2]}, 2),
        ("7", {}, "7"),
        ("7", None, "7"),
        ("a\nb", {"type": "string"}, "a\nb"),
    ],
)
def test_values_follow_the_tools_schema(text: str, schema: object, value: object) -> None:
    assert coerce(text, schema) == value
    assert type(coerce(text, schema)) is type(value)
