"""Where growing Markdown may be cut, and what is taken out of it."""

from __future__ import annotations

import pytest

from chat_app.blocks import closed_length, plain, presentable


@pytest.mark.parametrize(
    ("text", "closed"),
    [
        ("", ""),
        ("one line", ""),
        ("one\n\n", ""),
        ("one\n\ntwo", ""),
        ("one\n\ntwo\n", "one\n\n"),
        ("one\n\ntwo\n\nthree\n", "one\n\ntwo\n\n"),
        ("one\n\n```\na\n\nb\n", "one\n\n"),
        ("```\na\n\nb\n```\n\nafter\n", "```\na\n\nb\n```\n\n"),
        ("```\na\n\n~~~\n\nb\n", ""),
        ("````\n```\n\nx\n```\n\ny\n", ""),
        ("- a\n\n- b\n\n  more\n", ""),
        ("1. a\n\n2. b\n\nafter\n", "1. a\n\n2. b\n\n"),
        ("$$\nx\n\ny\n", ""),
        ("$$ x $$\n\nafter\n", "$$ x $$\n\n"),
        ("| a |\n|---|\n\nafter\n", "| a |\n|---|\n\n"),
    ],
)
def test_only_closed_blocks_are_cut_off(text: str, closed: str) -> None:
    assert text[: closed_length(text)] == closed


def test_a_cut_never_moves_back_as_the_text_grows() -> None:
    text = "# Title\n\nWords.\n\n```py\nx = 1\n\ny = 2\n```\n\n1. a\n\n2. b\n\nEnd.\n\n> quote\n\nLast.\n"
    cuts = [closed_length(text[:end]) for end in range(len(text) + 1)]
    assert cuts == sorted(cuts)
    assert cuts[-1] > 0


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("![a](https://x.test/a.png)", "[a](https://x.test/a.png)"),
        ("![](//x.test/a.png)", "[image](//x.test/a.png)"),
        ("`![a](https://x.test)`", "`![a](https://x.test)`"),
        ("from $5 to $7.50", "from \\$5 to \\$7.50"),
        ("$1.2M, $5/month, $3-$4", "\\$1.2M, \\$5/month, \\$3-\\$4"),
        ("$5$, $2 + x$ and $2,5x$", "$5$, $2 + x$ and $2,5x$"),
        ("$x^2$ and $2x + 1$", "$x^2$ and $2x + 1$"),
        ("```\n$5 :red[x]\n```", "```\n$5 :red[x]\n```"),
        (":red[x] at 10:30", "\\:red[x] at 10:30"),
        ("a :material/home: b", "a \\:material/home: b"),
    ],
)
def test_surprises_are_taken_out(text: str, shown: str) -> None:
    assert presentable(text) == shown


def test_plain_text_is_shown_as_typed() -> None:
    assert plain("a *b*\n[c](d) $5") == "a \\*b\\* \\[c\\](d) \\$5"
