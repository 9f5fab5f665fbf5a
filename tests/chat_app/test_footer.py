"""The small print."""

from __future__ import annotations

from dataclasses import replace

from chat_app.records import ImageRequest, Message, Picture, State, Timings, Usage
from chat_app.views.footer import answer_line, picture_line, request_line, thought_label, tokens_per_second

ANSWER = Message(
    1, "c", "assistant", "text", State.DONE, 0.0, "demo", usage=Usage(5, 101), timings=Timings(0.31, 12.4, 2.31), finish_reason="stop"
)


def test_an_answer_tells_its_speed() -> None:
    assert answer_line(ANSWER) == "demo · 50 tok/s · first token 0.31 s · 101 tokens"


def test_what_is_not_known_is_not_shown() -> None:
    assert answer_line(replace(ANSWER, usage=None, timings=Timings())) == "demo"
    assert tokens_per_second(replace(ANSWER, usage=Usage(5, 1))) is None


def test_an_answer_that_did_not_end_well_says_so() -> None:
    assert "Stopped" in answer_line(replace(ANSWER, state=State.STOPPED))
    assert "limit of tokens" in answer_line(replace(ANSWER, finish_reason="length"))


def test_thinking_has_a_duration() -> None:
    assert thought_label(ANSWER) == "Thought for 12 s"
    assert thought_label(replace(ANSWER, timings=Timings(thought_s=0.2))) == "Thought for a moment"
    assert thought_label(replace(ANSWER, timings=Timings(thought_s=120))) == "Thought for 2.0 min"
    assert thought_label(replace(ANSWER, timings=Timings())) == "Thoughts"


def test_a_picture_can_be_made_again_from_its_lines() -> None:
    assert picture_line(Picture("d", "image/png", 64, 32, 7, 1.9)) == "seed 7 · 64×32 · 1.9 s"
    assert picture_line(Picture("d", "image/png", 64, 32)) == "64×32"
    assert request_line(ImageRequest("m", "a *red* circle", "64x32")) == "a \\*red\\* circle  \nm"
    full = ImageRequest("m", "p", "64x32", num_inference_steps=4, guidance_scale=2.5, negative_prompt="squares")
    assert request_line(full) == "p  \nm · 4 steps · guidance 2.5 · without squares"
