"""Conversations, their tokens and the chat template."""

import json
import random
from typing import Any

import pytest

from local_models.demo import chat_data, chat_tokenizer, outside
from local_models.demo.chat_model import PICTURE_TOKENS
from local_models.demo.example import answered
from local_models.demo.sums import sum_steps
from local_models.demo.tandem_facts import load_topics
from local_models.demo.train_chat import encode

TOOL = {
    "type": "function",
    "function": {
        "name": "generate_image",
        "description": "Draw",
        "parameters": {"type": "object", "properties": {"prompt": {"type": "string"}}},
    },
}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return chat_tokenizer.build_tokenizer(samples=500)


def render(tokenizer: Any, messages: list[dict[str, Any]], **options: Any) -> str:
    text: str = tokenizer.apply_chat_template(messages, tokenize=False, **options)
    return text


def test_questions_of_the_evaluation_are_never_trained() -> None:
    rng = random.Random(0)
    assert not {outside.question(rng) for _ in range(3000)} & set(outside.held_out())


def test_no_held_out_question_is_ever_trained_however_it_is_varied() -> None:
    rng = random.Random(1)
    kept = {question for section in ("tandem", "small_talk") for topic in load_topics(section) for question in topic.held_out}
    assert not {chat_data.about_tandem(rng).question for _ in range(3000)} & kept


def test_json_is_asked_for_and_given() -> None:
    topics = load_topics("tandem")
    for seed in range(40):
        rng = random.Random(seed)
        for thinking in (True, False):
            example = answered(chat_data.in_json(rng, topics), thinking)
            assert "json" in example.question.lower()
            assert isinstance(json.loads(example.answer), dict)


@pytest.mark.parametrize(
    ("a", "sign", "b", "steps"),
    [
        (12, "+", 7, "12 + 7: ones 2 + 7 = 9, no carry; tens 1 + 0 = 1. Together 19."),
        (38, "+", 47, "38 + 47: ones 8 + 7 = 15, write 5, carry 1; tens 3 + 4 + 1 = 8. Together 85."),
        (52, "-", 17, "52 - 17: ones 12 - 7 = 5, borrow 1; tens 5 - 1 - 1 = 3. Together 35."),
    ],
)
def test_sums_show_their_steps(a: int, sign: str, b: int, steps: str) -> None:
    assert sum_steps(a, sign, b) == steps


def test_a_negative_result_is_found_the_other_way_round() -> None:
    turned = sum_steps(9, "-", 3)
    assert sum_steps(3, "-", 9) == f"3 - 9: 9 is larger, so the result is negative. {turned} With the sign -6."


def test_examples_are_a_function_of_the_seed_and_fit_the_template(tokenizer: Any) -> None:
    first, second = random.Random(5), random.Random(5)
    for _ in range(40):
        example = chat_data.known_example(first)
        assert example == chat_data.known_example(second)
        encoded = encode(tokenizer, example)
        assert 0 < encoded.read < len(encoded.ids) < 1024
        assert encoded.ids[-1] == tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_a_picture_takes_its_tokens(tokenizer: Any) -> None:
    encoded = encode(tokenizer, chat_data.picture_example(random.Random(1)))
    assert encoded.ids.count(tokenizer.convert_tokens_to_ids("<|image_pad|>")) == PICTURE_TOKENS == 9


@pytest.mark.parametrize("text", ["What is 12 + 7?", "./tandem up --profile gpu", "Grüße, 你好 🎈", "a\n\n  b\t<think>x</think>"])
def test_any_text_comes_back_from_its_tokens(tokenizer: Any, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_digits_are_single_tokens_and_markers_survive_decoding(tokenizer: Any) -> None:
    assert len(tokenizer.encode("2048")) == 4
    ids = tokenizer.encode("<think></think><tool_call></tool_call><|im_end|>")
    assert len(ids) == 5
    assert tokenizer.decode(ids, skip_special_tokens=True) == "<think></think><tool_call></tool_call>"


def test_thinking_is_on_unless_it_is_defined_and_false(tokenizer: Any) -> None:
    question = [{"role": "user", "content": "Hello"}]
    opened = "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n<think>\n"
    assert render(tokenizer, question, add_generation_prompt=True) == opened
    assert render(tokenizer, question, add_generation_prompt=True, enable_thinking=True) == opened
    assert render(tokenizer, question, add_generation_prompt=True, enable_thinking=False) == opened + "\n</think>\n\n"


def test_old_reasoning_is_not_shown_again(tokenizer: Any) -> None:
    history = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "<think>\nsecret\n</think>\n\nHi!", "reasoning_content": "other secret"},
        {"role": "user", "content": "Bye"},
    ]
    assert "secret" not in render(tokenizer, history)
    assert "<|im_start|>assistant\nHi!<|im_end|>" in render(tokenizer, history)


def test_tools_are_declared_called_and_answered_in_xml(tokenizer: Any) -> None:
    call = {"type": "function", "function": {"name": "generate_image", "arguments": {"prompt": "a red circle", "n": 2}}}
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "Draw a red circle"},
        {"role": "assistant", "content": None, "tool_calls": [call, call]},
        {"role": "tool", "content": "done"},
        {"role": "tool", "content": [{"type": "text", "text": "done too"}]},
    ]
    text = render(tokenizer, messages, tools=[TOOL], add_generation_prompt=True)
    declared = text.split("<tools>\n")[1].split("\n</tools>")[0]
    assert json.loads(declared)["function"]["name"] == "generate_image"
    assert text.startswith("<|im_start|>system\n")
    assert text.count("<|im_start|>system") == 1
    assert "\n\nBe short.<|im_end|>" in text
    parameters = "<parameter=prompt>\na red circle\n</parameter>\n<parameter=n>\n2\n</parameter>"
    called = f"<tool_call>\n<function=generate_image>\n{parameters}\n</function>\n</tool_call>"
    assert f"<think>\n\n</think>\n\n{called}\n{called}<|im_end|>\n" in text
    assert "<|im_start|>user\n<tool_response>\ndone\n</tool_response>\n<tool_response>\ndone too\n</tool_response><|im_end|>\n" in text


@pytest.mark.parametrize("part", [{"type": "image"}, {"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}])
def test_pictures_leave_a_placeholder(tokenizer: Any, part: dict[str, Any]) -> None:
    messages = [{"role": "user", "content": [part, {"type": "text", "text": "What is this?"}]}]
    assert "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>What is this?<|im_end|>" in render(tokenizer, messages)


def test_a_conversation_that_makes_no_sense_is_refused(tokenizer: Any) -> None:
    from jinja2.exceptions import TemplateError

    with pytest.raises(TemplateError, match="unknown role bard"):
        render(tokenizer, [{"role": "bard", "content": "La"}])
    with pytest.raises(TemplateError, match="must come first"):
        render(tokenizer, [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}])
