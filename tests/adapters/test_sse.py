"""Frames out of reads cut anywhere."""

from __future__ import annotations

import pytest

from adapters import sse

STREAM = 'data: {"a":"ä"}\n\n: comment\n\ndata: one\r\ndata: two\r\n\r\nevent: x\ndata: [DONE]\n\n'.encode()


@pytest.mark.parametrize("size", range(1, len(STREAM) + 1))
def test_frames_are_whole_and_nothing_is_lost_however_the_stream_is_cut(size: int) -> None:
    frames = sse.Frames()
    out = [frames.feed(STREAM[start : start + size]) for start in range(0, len(STREAM), size)]
    assert b"".join(out) == STREAM
    assert all(part.endswith((b"\n\n", b"\r\n\r\n")) for part in out if part)
    assert [frame for part in out for frame in sse.split(part)] == sse.split(STREAM)


def test_multi_line_data_is_joined_and_a_comment_has_none() -> None:
    assert [sse.data_of(frame) for frame in sse.split(STREAM)] == ['{"a":"ä"}'.encode(), None, b"one\ntwo", b"[DONE]"]


def test_an_endless_frame_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "MAX_FRAME_BYTES", 100)
    frames = sse.Frames()
    with pytest.raises(sse.FrameTooLong):
        frames.feed(b"data: " + b"x" * 101)


def test_an_authored_event_is_one_frame() -> None:
    assert sse.event({"a": 1}, "name") == b'event: name\ndata: {"a":1}\n\n'
