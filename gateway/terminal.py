"""Printing for people: colours and one moving line on a terminal, plain lines anywhere else."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from types import TracebackType
from typing import Protocol

from gateway.banner import Line, plain


class Terminal(Protocol):
    """Where a long-running command reports. Use it as a context: on leaving, the moving line is gone."""

    def show(self, lines: Iterable[Line]) -> None:
        """Print a block of labelled lines."""

    def say(self, text: str) -> None:
        """Print one line."""

    def busy(self, text: str | None) -> None:
        """Draw the moving line with this text, or take it away."""

    def __enter__(self) -> Terminal: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...


def open_terminal() -> Terminal:
    """What fits standard output."""
    return RichTerminal() if sys.stdout.isatty() else PlainTerminal()


class PlainTerminal:
    """Lines, each written at once."""

    def show(self, lines: Iterable[Line]) -> None:
        for line in plain(lines):
            print(line, flush=True)

    def say(self, text: str) -> None:
        print(text, flush=True)

    def busy(self, text: str | None) -> None:
        return

    def __enter__(self) -> PlainTerminal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        return


class RichTerminal:
    """Labels in colour, and a spinner while something is under way."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.text import Text

        self._console = Console(highlight=False, soft_wrap=True)
        self._text = Text
        self._status = self._console.status("")
        self._spins = False

    def show(self, lines: Iterable[Line]) -> None:
        for label, text in lines:
            self._console.print(self._text.assemble((f"{label:<10}", "bold cyan"), text))
        self._console.print()

    def say(self, text: str) -> None:
        self._console.print(self._text(text))

    def busy(self, text: str | None) -> None:
        if text is None:
            self._status.stop()
            self._spins = False
            return
        self._status.update(self._text(text))
        if not self._spins:
            self._status.start()
            self._spins = True

    def __enter__(self) -> RichTerminal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.busy(None)
