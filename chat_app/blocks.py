"""Markdown of a model, made safe to draw and cheap to draw again and again.

A growing text is cut where a block is closed: what lies before the cut never changes its look, so it is
drawn once, and only the open tail is drawn on every tick.
"""

from __future__ import annotations

import re

_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,}|\$\$)")
_CONTINUES = re.compile(r"^(\s|[-*+>|]|\d+[.)]\s)")  # an indented line, a list item, a quote or a table row
_REMOTE_IMAGE = re.compile(r"!\[([^\]\n]*)\]\(\s*<?(https?:)?//")
_CODE = re.compile(r"(```.*?(?:```|\Z)|~~~.*?(?:~~~|\Z)|`[^`\n]+`)", re.DOTALL)
_MONEY = re.compile(r"(?<![\\$\w])\$(?=\d[\d,.]*+(?:[kKMB]|bn)?(?![\w$^])(?!\s*[\\^_{=+*<>]))")
_DIRECTIVE = re.compile(r"(?<![\w:]):(?=[a-z][a-z0-9_/+-]*(?:\[|:))")


def closed_length(text: str) -> int:
    """How many characters belong to blocks that later text cannot change.

    A cut is only made at a blank line outside of a code or formula fence, before a line that starts a block of
    its own: lists stay whole, because a list that goes on after a blank line is still one list.
    """
    closed = position = 0
    fence = ""
    blank = False
    for line in text.splitlines(keepends=True):
        starts_block = blank and not fence and line.strip() and not _CONTINUES.match(line)
        if starts_block and line.endswith("\n"):
            closed = position
        fence = _fence_after(line, fence)
        blank = not line.strip() if not fence else False
        position += len(line)
    return closed


def _fence_after(line: str, fence: str) -> str:
    found = _FENCE.match(line)
    if not found:
        return fence
    mark = found.group(1)
    if not fence:
        return "" if mark == "$$" and line.strip().count("$$") > 1 else mark
    closes = mark[0] == fence[0] and len(mark) >= len(fence) and not line.strip().strip(mark[0])
    return "" if closes else fence


def presentable(text: str) -> str:
    """The text with what would surprise in a browser taken out, code left alone.

    Remote images become links (drawing one tells its server that the answer was read), prices stay prices
    instead of formulas, and Streamlit's own directives stay text.
    """
    pieces = _CODE.split(text)
    return "".join(piece if index % 2 else _tame(piece) for index, piece in enumerate(pieces))


def _tame(prose: str) -> str:
    prose = _REMOTE_IMAGE.sub(lambda found: f"[{found.group(1) or 'image'}]({found.group(2) or ''}//", prose)
    prose = _MONEY.sub(r"\\$", prose)
    return _DIRECTIVE.sub(r"\\:", prose)


def plain(text: str) -> str:
    """Text for a place that reads Markdown, shown as it is: for labels and captions."""
    return re.sub(r"([\\`*_\[\]#~$:<>|])", r"\\\1", " ".join(text.split()))
