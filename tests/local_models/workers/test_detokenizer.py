"""Text appears as soon as it is whole, and never before."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from local_models.workers.detokenizer import Detokenizer


def from_bytes(token_ids: Sequence[int]) -> str:
    """The worst tokenizer: one token for each byte."""
    return bytes(token_ids).decode("utf-8", errors="replace")


@pytest.mark.parametrize("text", ["plain", "naïve café", "日本語のテキスト", "🙂👩‍👩‍👧 ok", "x" * 100 + "é" * 100 + "🙂" * 20])
def test_pieces_add_up_and_hold_no_broken_character(text: str) -> None:
    detokenizer = Detokenizer(from_bytes)
    pieces = [detokenizer.feed(byte) for byte in text.encode()]
    assert "".join(pieces) + detokenizer.finish() == text
    assert not any("\ufffd" in piece for piece in pieces)


def test_a_character_comes_with_its_last_byte() -> None:
    detokenizer = Detokenizer(from_bytes)
    assert [detokenizer.feed(byte) for byte in "a🙂b".encode()] == ["a", "", "", "", "🙂", "b"]


def test_an_unfinished_character_shows_at_the_end() -> None:
    detokenizer = Detokenizer(from_bytes)
    assert [detokenizer.feed(byte) for byte in b"a\xf0\x9f"] == ["a", "", ""]
    assert detokenizer.finish() == "\ufffd"


def test_broken_bytes_do_not_hold_up_what_follows() -> None:
    data = bytes([0xFF] * 50) + b"end"
    detokenizer = Detokenizer(from_bytes)
    assert "".join(detokenizer.feed(byte) for byte in data) + detokenizer.finish() == from_bytes(data)


def test_the_window_stays_small() -> None:
    seen: list[int] = []

    def decode(token_ids: Sequence[int]) -> str:
        seen.append(len(token_ids))
        return from_bytes(token_ids)

    detokenizer = Detokenizer(decode)
    for byte in b"word " * 200:
        detokenizer.feed(byte)
    assert max(seen) < 20
