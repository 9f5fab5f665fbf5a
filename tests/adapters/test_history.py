"""What an assistant thought does not come before a local model again."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import AutoTokenizer

from adapters.history import without_reasoning
from local_models.launch import resolve_model

QUESTION = {"role": "user", "content": "Hi <think>not mine</think>"}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": {}}}


@pytest.mark.parametrize(
    ("message", "kept"),
    [
        ({"content": "Hello.", "reasoning": "hm"}, {"content": "Hello."}),
        ({"content": "Hello.", "reasoning_content": "hm", "reasoning_details": [{"text": "hm"}]}, {"content": "Hello."}),
        ({"content": "<think>\nhm\n</think>\n\nHello."}, {"content": "Hello."}),
        ({"content": "\n<think>cut short"}, {"content": ""}),
        ({"content": [{"type": "text", "text": "<think>hm</think>Hello."}]}, {"content": [{"type": "text", "text": "Hello."}]}),
        ({"reasoning": "hm", "tool_calls": [CALL]}, {"tool_calls": [CALL]}),
        ({"content": None, "reasoning": "hm", "tool_calls": [CALL]}, {"content": None, "tool_calls": [CALL]}),
    ],
)
def test_an_answer_keeps_everything_but_its_thought(message: dict[str, Any], kept: dict[str, Any]) -> None:
    assert without_reasoning([QUESTION, {"role": "assistant", **message}, QUESTION]) == [QUESTION, {"role": "assistant", **kept}, QUESTION]


@pytest.mark.parametrize("content", ["Say <think> to think.", "", None, [], [{"type": "image_url", "image_url": {"url": "data:,"}}]])
def test_messages_without_a_thought_are_the_very_same(content: Any) -> None:
    messages = [QUESTION, {"role": "assistant", "content": content}]
    assert without_reasoning(messages) is messages


@pytest.mark.parametrize("calls", [[], [CALL]])
def test_the_template_sees_no_difference_to_a_history_that_never_thought(calls: list[Any]) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(resolve_model("builtin:demo"))
    after: list[Any] = [{"role": "tool", "content": "done"}] if calls else [QUESTION]
    thought = {"role": "assistant", "content": "<think>secret</think>Hello.", "reasoning_content": "secret", "tool_calls": calls}
    plain = {"role": "assistant", "content": "Hello.", "tool_calls": calls}

    def prompt(messages: Any) -> str:
        text: str = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        return text

    assert "secret" not in prompt(without_reasoning([QUESTION, thought, *after]))
    assert prompt(without_reasoning([QUESTION, thought, *after])) == prompt([QUESTION, plain, *after])
