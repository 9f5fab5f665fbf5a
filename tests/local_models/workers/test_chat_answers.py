"""One answer from the text a model writes: where it ends and why."""

from __future__ import annotations

from typing import Any

import pytest

from local_models.workers.chat_answers import Answer
from local_models.workers.chat_prompt import Prompt
from local_models.workers.chat_replies import delta_of
from local_models.workers.chat_request import parse_chat_request
from local_models.workers.qwen_output import Content, Event, Reasoning, ToolCall

NOW = {"type": "function", "function": {"name": "now"}}
CALL = "<tool_call>\n<function=now>\n</function>\n</tool_call>"
HI = [{"role": "user", "content": "Hi"}]


def answer(text: str, *, ended: bool = True, thinking: bool = False, prefix: str = "", **fields: Any) -> tuple[str, list[Event], str]:
    """finish_reason, events, content, fed letter by letter until the answer is complete."""
    events: list[Event] = []
    request = parse_chat_request({"model": "m", "messages": HI, **fields}, "m")
    written = Answer(request, Prompt([], 100, thinking, prefix), events.append)
    for letter in text:
        if written.is_complete:
            break
        written.add(letter)
    reason = written.finish(ended=ended)
    return reason, events, "".join(event.text for event in events if isinstance(event, Content))


def test_an_answer_the_model_ends_stops() -> None:
    assert answer("Hello.")[0::2] == ("stop", "Hello.")


def test_an_answer_cut_by_the_limit_is_length_even_with_a_call_in_it() -> None:
    assert answer("Hello", ended=False)[0::2] == ("length", "Hello")
    assert answer(f"{CALL} and", ended=False, tools=[NOW])[0] == "length"


def test_a_call_is_tool_calls() -> None:
    reason, events, content = answer(CALL, tools=[NOW])
    assert reason == "tool_calls"
    assert content == ""
    assert [event.name for event in events if isinstance(event, ToolCall)] == ["now"]


@pytest.mark.parametrize("fields", [{"parallel_tool_calls": False}, {"tool_choice": {"type": "function", "function": {"name": "now"}}}])
def test_one_call_is_enough_when_only_one_was_asked_for(fields: dict[str, Any]) -> None:
    reason, events, _ = answer(CALL * 3, ended=False, tools=[NOW], **fields)
    assert reason == "tool_calls"
    assert len([event for event in events if isinstance(event, ToolCall)]) == 1


def test_a_forced_call_goes_on_from_the_prompts_end() -> None:
    reason, events, _ = answer("</function>\n</tool_call>", tools=[NOW], prefix="<tool_call>\n<function=now>\n", tool_choice="required")
    assert reason == "tool_calls"
    assert isinstance(events[0], ToolCall)


def test_stop_strings_bound_the_content_and_not_the_reasoning() -> None:
    reason, events, content = answer("one two</think>\n\nthree two four", thinking=True, stop="two", ended=False)
    assert (reason, content) == ("stop", "three ")
    assert "".join(event.text for event in events if isinstance(event, Reasoning)) == "one two"


def test_content_that_may_be_a_stop_comes_out_before_a_call() -> None:
    _, events, content = answer(f"ab{CALL}", tools=[NOW], stop="abc")
    assert content == "ab"
    assert isinstance(events[0], Content)


def test_parallel_calls_are_streamed_under_their_own_index_as_vllm_does() -> None:
    with_argument = {"type": "function", "function": {"name": "at", "parameters": {"properties": {"zone": {"type": "string"}}}}}
    second = "<tool_call>\n<function=at>\n<parameter=zone>\nUTC\n</parameter>\n</function>\n</tool_call>"
    _, events, _ = answer(f"{CALL}\n{second}", tools=[NOW, with_argument])
    deltas = [call for event in events for call in (delta_of(event) or {}).get("tool_calls", [])]
    for index, (name, arguments) in enumerate([("now", "{}"), ("at", '{"zone": "UTC"}')]):
        first, *rest = [delta for delta in deltas if delta["index"] == index]
        assert first.keys() == {"index", "id", "type", "function"}
        assert first["function"] == {"name": name, "arguments": ""}
        assert all(delta.keys() == {"index", "function"} and delta["function"].keys() == {"arguments"} for delta in rest)
        assert "".join(delta["function"]["arguments"] for delta in rest) == arguments
        assert len(rest) > 1 or arguments == "{}"
    assert [delta["index"] for delta in deltas] == sorted(delta["index"] for delta in deltas)
