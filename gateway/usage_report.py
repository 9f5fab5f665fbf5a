"""`tandem usage`: what was used, as a table on a terminal, as plain lines or JSON anywhere else."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from config.schema import Settings
from gateway.startup import CannotStart
from gateway.usage_store import UsageStore, store_at
from gateway.usage_totals import GROUPS, Group, StoreUnavailable, Total

_SPAN = re.compile(r"([1-9]\d{0,5})([dh])")
_HEADINGS = {"day": "day", "key_id": "key", "model": "model"}
_FIGURES = ("requests", "failed", "prompt", "cached", "answer", "images", "cost", "unpriced", "first token")
_WHERE_ANY = ("failed", "cached", "images", "unpriced")  # columns that are shown only where they hold something

Line = list[str]


def report(settings: Settings, data_dir: Path, *, by: Sequence[Group], since: str, key_id: str | None, as_json: bool) -> int:
    """Print it. Returns 0. Raises CannotStart where the time makes no sense or the store does not answer."""
    start = start_time(since, time.time())
    store = store_at(settings.usage, data_dir)
    try:
        exists = store.exists()
        rows = store.summary(start, None, by, key_id) if exists else []
        whole = next(iter(store.summary(start, None, (), key_id)), None) if exists else None
    except StoreUnavailable as error:
        raise CannotStart(f"{error}; see usage.url in the configuration") from error
    finally:
        store.close()
    if as_json:
        print(json.dumps(_document(start, by, rows, whole), indent=2))
    elif whole is None:
        print(_nothing(store, exists, since, key_id))
    else:
        _print(by, rows, whole)
    return 0


def start_time(text: str, now: float) -> float | None:
    """Unix time that --since names, None for all. Raises CannotStart."""
    if text == "all":
        return None
    span = _SPAN.fullmatch(text)
    if span:
        return max(0.0, now - int(span[1]) * timedelta(**{"days" if span[2] == "d" else "hours": 1}).total_seconds())
    try:
        return datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC).timestamp()
    except ValueError:
        raise CannotStart(f"--since '{text}' is no time; write 7d, 12h, a day like 2026-11-01, or all") from None


def _nothing(store: UsageStore, exists: bool, since: str, key_id: str | None) -> str:
    if not exists:
        return f"no usage is kept yet: there is nothing at {store.place}; it begins with the first request to the gateway"
    whose = f" of key '{key_id}'" if key_id else ""
    return f"no request{whose} since {since}" if since != "all" else f"no request{whose}"


def _document(start: float | None, by: Sequence[Group], rows: list[Total], whole: Total | None) -> dict[str, Any]:
    return {"since": start, "by": list(by), "rows": [_object(by, row) for row in rows], "total": _object((), whole) if whole else None}


def _object(by: Sequence[Group], total: Total) -> dict[str, Any]:
    shown = {name: value for name, value in asdict(total).items() if name not in GROUPS or name in by}
    return {**shown, "day": total.day.isoformat()} if total.day else shown


def _print(by: Sequence[Group], rows: list[Total], whole: Total) -> None:
    lines = table(by, rows, whole)
    if sys.stdout.isatty():
        _print_rich(lines, len(set(by)))
        return
    for line in plain(lines, len(set(by))):
        print(line)


def table(by: Sequence[Group], rows: list[Total], whole: Total) -> list[Line]:
    """Headings, a line for each row, and the total where there is more than one row."""
    groups = [group for group in GROUPS if group in by]
    shown = rows if len(rows) == 1 else [*rows, whole]
    figures = [_figures(row) for row in shown]
    kept = [name for name in _FIGURES if name not in _WHERE_ANY or any(figure[name] != "0" for figure in figures)]
    lines = [[*(_HEADINGS[group] for group in groups), *kept]]
    for row, figure in zip(shown, figures, strict=True):
        names = ["all", *[""] * (len(groups) - 1)][: len(groups)] if row is whole else [_name(row, group) for group in groups]
        lines.append([*names, *(figure[name] for name in kept)])
    return lines


def _name(row: Total, group: Group) -> str:
    # a model's name may be whatever a client wrote: nothing in it may steer the terminal
    text = "".join(character if character.isprintable() else "?" for character in str(getattr(row, group)))
    return text or "-"


def _figures(row: Total) -> dict[str, str]:
    return {
        "requests": f"{row.requests:,}",
        "failed": f"{row.failures:,}",
        "prompt": f"{row.prompt_tokens:,}",
        "cached": f"{row.cached_tokens:,}",
        "answer": f"{row.completion_tokens:,}",
        "images": f"{row.images:,}",
        "cost": f"${row.cost_usd:,.4f}",
        "unpriced": f"{row.unpriced:,}",
        "first token": "-" if row.mean_first_token_s is None else f"{row.mean_first_token_s:.3f} s",
    }


def plain(lines: list[Line], names: int) -> list[str]:
    """Aligned columns: names to the left, figures to the right."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    cells = [
        [
            f"{cell:<{width}}" if column < names else f"{cell:>{width}}"
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        for line in lines
    ]
    return ["  ".join(line).rstrip() for line in cells]


def _print_rich(lines: list[Line], names: int) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(header_style="bold cyan", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column, heading in enumerate(lines[0]):
        shown.add_column(heading, justify="left" if column < names else "right", no_wrap=column >= names, overflow="fold")
    for number, line in enumerate(lines[1:], 1):
        is_total = number == len(lines) - 1 and number > 1
        shown.add_row(*(Text(cell) for cell in line), style="bold" if is_total else None)
    Console(highlight=False).print(shown)
