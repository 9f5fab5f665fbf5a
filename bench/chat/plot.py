"""A bar chart as SVG, by hand: two panels, one bar for each entrant. Pure.

A bar that would make the others invisible is cut, with a gap drawn across it; its figure stands beside it like all others.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from bench.chat.report import PER_S, TOKEN_CPU, Column
from bench.chat.results import Results

_WIDTH, _LABEL, _BAR, _ROW = 720, 160, 440, 26
_TOP, _PANEL_GAP = 34, 22
_CUT = 3.0  # a bar longer than so many times the next smaller one is cut
_OWN, _OTHER, _TEXT = "#d9480f", "#868e96", "#212529"


@dataclass(frozen=True)
class Bar:
    """value: its length. shown: the figure beside it. own: drawn in the colour of Tandem."""

    label: str
    value: float
    shown: str
    own: bool


def draw(results: Results) -> str:
    """The chart of docs/performance.md."""
    panels = [
        ("requests a second, one core (longer is better)", _bars(results, PER_S)),
        ("CPU for one streamed token, 100 streams (shorter is better)", _bars(results, TOKEN_CPU)),
    ]
    y, drawn = 0, []
    for title, bars in panels:
        drawn.append(_panel(title, bars, y))
        y += _TOP + _ROW * len(bars) + _PANEL_GAP
    body = "\n".join(drawn)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {y}" width="{_WIDTH}" height="{y}" font-family="sans-serif"'
        f' font-size="13">\n<rect width="{_WIDTH}" height="{y}" fill="#ffffff"/>\n{body}\n</svg>\n'
    )


def _bars(results: Results, column: Column) -> list[Bar]:
    """Without the direct connection: it is no gateway, and its bar would be the longest by far."""
    direct = results.entrant("direct")
    found = [(entrant, column.of(entrant, direct)) for entrant in results.entrants if entrant.name != "direct"]
    return [Bar(entrant.title, value, column.shown(value), entrant.name == "tandem") for entrant, value in found if value is not None]


def scale(values: Sequence[float]) -> float:
    """The value that fills a panel's width: the largest that is not out of all proportion to the next smaller one."""
    ordered = sorted(values)
    for smaller, larger in itertools.pairwise(ordered):
        # Only a bar in the upper half is cut: small ones may be as small as they are.
        if larger > _CUT * smaller and smaller >= ordered[len(ordered) // 2]:
            return smaller * 1.2
    return ordered[-1] if ordered else 1.0


def _panel(title: str, bars: Sequence[Bar], y: int) -> str:
    full = scale([bar.value for bar in bars])
    lines = [f'<text x="8" y="{y + 22}" font-weight="bold" fill="{_TEXT}">{escape(title)}</text>']
    for number, bar in enumerate(bars):
        lines += _bar(bar, full, y + _TOP + number * _ROW)
    return "\n".join(lines)


def _bar(bar: Bar, full: float, y: int) -> list[str]:
    width = max(1.0, min(1.0, bar.value / full) * _BAR)
    lines = [
        f'<text x="{_LABEL - 8}" y="{y + 16}" text-anchor="end" fill="{_TEXT}">{escape(bar.label)}</text>',
        f'<rect x="{_LABEL}" y="{y + 3}" width="{width:.1f}" height="{_ROW - 8}" fill="{_OWN if bar.own else _OTHER}"/>',
        f'<text x="{_LABEL + width + 6:.1f}" y="{y + 16}" fill="{_TEXT}">{escape(bar.shown)}</text>',
    ]
    if bar.value > full:
        at = _LABEL + width - 40
        lines.append(f'<path class="cut" d="M{at} {y + 22} l8 -20 h6 l-8 20 z" fill="#ffffff"/>')
    return lines
