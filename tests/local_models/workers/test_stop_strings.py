"""A stop string is found across any cut, and nothing of it is shown."""

from __future__ import annotations

import pytest

from local_models.workers.stop_strings import StopStrings


@pytest.mark.parametrize(
    ("text", "stops", "shown"),
    [
        ("one two three", ["two"], "one "),
        ("one two three", ["three", "two"], "one "),
        ("aaab", ["aab"], "a"),
        ("one", ["one"], ""),
        ("no such thing", ["stop"], "no such thing"),
        ("ends in half a sto", ["stop"], "ends in half a sto"),
        ("a\n\nb", ["\n\n"], "a"),
        ("anything", [], "anything"),
    ],
)
def test_every_cut_shows_the_same(text: str, stops: list[str], shown: str) -> None:
    for cut in range(len(text) + 1):
        whole = StopStrings(stops)
        assert whole.feed(text[:cut]) + whole.feed(text[cut:]) + whole.finish() == shown
        letters = StopStrings(stops)
        assert "".join(letters.feed(letter) for letter in text) + letters.finish() == shown
        assert letters.hit == (shown != text)


def test_text_that_may_become_a_stop_waits() -> None:
    stops = StopStrings(["END"])
    assert [stops.feed("a E"), stops.feed("N"), stops.feed("C")] == ["a ", "", "ENC"]
