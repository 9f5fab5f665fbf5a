"""What an answer means while it passes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from adapters.answer import StreamedAnswer, WholeAnswer
from adapters.base import Meter
from adapters.errors import UpstreamError
from tests.scripted_upstream import chunk, completion


def frame(document: Any) -> bytes:
    return b"data: %s\n\n" % (document if isinstance(document, bytes) else json.dumps(document, separators=(",", ":")).encode())


ROLE, HELLO, WORLD, END = (frame(part) for part in (chunk("", role="assistant"), chunk("Hello"), chunk(" wörld"), chunk("", finish="stop")))
DONE = b"data: [DONE]\n\n"


def streamed() -> StreamedAnswer:
    return StreamedAnswer("up", "secret-key", Meter())


@pytest.mark.parametrize("size", [1, 2, 7, 50, 10_000])
def test_a_good_answer_passes_byte_for_byte(size: int) -> None:
    stream = ROLE + HELLO + WORLD + END + DONE
    answer = streamed()
    out = b"".join([answer.feed(stream[start : start + size]) for start in range(0, len(stream), size)])
    assert out + answer.end() == stream


def test_the_role_alone_is_held_until_content_comes() -> None:
    answer = streamed()
    assert answer.feed(b": OPENROUTER PROCESSING\n\n" + ROLE) == b""
    assert not answer.began
    assert answer.feed(HELLO) == ROLE + HELLO
    assert answer.began


def test_comments_pass_once_content_has_begun() -> None:
    answer = streamed()
    answer.feed(HELLO)
    assert answer.feed(b": ping\n\n") == b": ping\n\n"


def test_an_error_frame_is_raised_with_its_status_and_without_the_key() -> None:
    answer = streamed()
    with pytest.raises(UpstreamError) as caught:
        answer.feed(frame({"error": {"code": 429, "message": "slow down, secret-key"}, "choices": [{"finish_reason": "error"}]}))
    assert (caught.value.status, caught.value.message, caught.value.fallback) == (429, "slow down, ***", True)


def test_what_came_before_a_late_error_is_passed_on_first() -> None:
    answer = streamed()
    answer.feed(HELLO)
    assert answer.feed(WORLD + frame({"error": {"message": "died", "type": "server_error", "code": "x"}}) + WORLD) == WORLD
    assert answer.failure is not None
    assert (answer.failure.message, answer.failure.type, answer.failure.code) == ("died", "server_error", "x")


def test_an_error_in_the_same_read_as_the_first_content_leaves_the_way_to_another_deployment_open() -> None:
    with pytest.raises(UpstreamError, match="died"):
        streamed().feed(ROLE + HELLO + frame({"error": {"message": "died"}}))


def test_an_answer_that_the_engine_aborted_is_an_error_and_not_a_finish_that_nobody_knows() -> None:
    aborted = chunk("") | {"choices": [{"index": 0, "delta": {"content": ""}, "finish_reason": "abort"}]}
    with pytest.raises(UpstreamError) as caught:
        streamed().feed(ROLE + frame(aborted))
    assert (caught.value.status, caught.value.code, caught.value.fallback) == (502, "upstream_aborted", True)
    late = streamed()
    assert late.feed(HELLO + frame(chunk('"abort"'))) == HELLO + frame(chunk('"abort"'))
    assert late.feed(frame(aborted) + DONE) == b""
    assert late.failure is not None
    assert late.failure.code == "upstream_aborted"
    with pytest.raises(UpstreamError, match="stopped before the answer was complete"):
        whole({"choices": [{"finish_reason": "stop", "message": {}}, {"finish_reason": "abort", "message": {"content": "par"}}]})


def test_text_that_speaks_of_errors_is_no_error() -> None:
    text = frame(chunk('say "error": {"message": 1} and "finish_reason":"stop" and data: [DONE]'))
    answer = streamed()
    assert answer.feed(HELLO + text) == HELLO + text
    assert not answer.finished
    with pytest.raises(UpstreamError, match="in the middle of the answer"):
        answer.end()


def test_reasoning_gets_both_names_and_null_is_left_alone() -> None:
    answer = streamed()
    out = answer.feed(frame(chunk(reasoning="think")) + frame(chunk("say", reasoning=None)) + frame(chunk(reasoning_content="more")))
    deltas = [json.loads(part[6:])["choices"][0]["delta"] for part in out.split(b"\n\n") if part]
    assert deltas == [
        {"reasoning": "think", "reasoning_content": "think"},
        {"content": "say", "reasoning": None},
        {"reasoning_content": "more", "reasoning": "more"},
    ]


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        (b"", "before the first token"),
        (ROLE, "before the first token"),
        (ROLE + HELLO, "in the middle of the answer"),
        (ROLE + HELLO + WORLD[:20], "in the middle of the answer"),
        (ROLE + HELLO + END + b'data: {"choices":[],"usa', "in the middle of the answer"),
    ],
)
def test_a_cut_stream_is_reported(stream: bytes, message: str) -> None:
    answer = streamed()
    answer.feed(stream)
    with pytest.raises(UpstreamError, match=message):
        answer.end()


def test_a_finished_stream_without_done_is_completed() -> None:
    answer = streamed()
    assert answer.feed(HELLO + END) + answer.end() == HELLO + END + DONE


def test_a_last_frame_without_its_blank_line_counts() -> None:
    answer = streamed()
    out = answer.feed(HELLO + END + b"data: [DONE]")
    assert out + answer.end() == HELLO + END + DONE


@pytest.mark.parametrize("before", [b"", HELLO, HELLO + END])
def test_a_last_frame_without_its_blank_line_may_be_an_error(before: bytes) -> None:
    answer = streamed()
    answer.feed(before + frame({"error": {"message": "died"}}).rstrip())
    with pytest.raises(UpstreamError, match="died"):
        answer.end()


@pytest.mark.parametrize("document", [{"choices": 5}, {"choices": [7]}, {"choices": {"a": 1}}])
def test_choices_of_another_shape_are_no_content(document: Any) -> None:
    answer = streamed()
    assert answer.feed(frame(document)) == b""
    assert not answer.began


def test_an_excerpt_of_what_came_does_not_show_the_key() -> None:
    with pytest.raises(UpstreamError, match=r"\*\*\*") as caught:
        streamed().feed(b"data: the key secret-key is unknown\n\n")
    assert "secret" not in caught.value.message
    with pytest.raises(UpstreamError, match=r"\*\*\*"):
        whole(b"x" * 75 + b"secret-key")


@pytest.mark.parametrize("junk", [b"data: <html>\n\n", b"data: [1]\n\n", b"data: [DONE]\n\n"])
def test_what_is_no_answer_is_refused(junk: bytes) -> None:
    with pytest.raises(UpstreamError) as caught:
        streamed().feed(junk)
    assert caught.value.status == 502


def test_frames_without_content_are_not_held_without_bound() -> None:
    answer = streamed()
    for _ in range(5000):
        if answer.feed(ROLE):
            break
    assert answer.began


def whole(document: Any) -> bytes:
    answer = WholeAnswer("up", "secret-key", Meter())
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    answer.feed(body[:5])
    answer.feed(body[5:])
    return answer.end()


def test_a_whole_answer_passes_byte_for_byte() -> None:
    body = json.dumps(completion("hello")).encode()
    assert whole(body) == body


def test_whole_reasoning_gets_both_names() -> None:
    message = json.loads(whole(completion("hi", reasoning="because")))["choices"][0]["message"]
    assert message["reasoning"] == message["reasoning_content"] == "because"


@pytest.mark.parametrize(
    ("document", "status"),
    [
        ({"error": {"code": 402, "message": "no credits"}}, 502),
        ({"error": {"code": "context_length_exceeded", "message": "too long", "metadata": {"error_type": "context_length_exceeded"}}}, 400),
        ({"choices": [{"finish_reason": "error", "error": {"code": 503, "message": "provider down"}, "message": {"content": "par"}}]}, 503),
        ({"error": {"message": "odd", "code": "\u00b2", "metadata": {"error_type": {}}}}, 502),
        (b"<html>oops</html>", 502),
        ([1, 2], 502),
        ({"object": "list"}, 502),
    ],
)
def test_an_error_under_200_has_its_status(document: Any, status: int) -> None:
    with pytest.raises(UpstreamError) as caught:
        whole(document)
    assert caught.value.status == status
