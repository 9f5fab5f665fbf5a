"""Where lines go: a file descriptor, written to directly, or the terminal that people look at.

A descriptor, not `sys.stderr`: its buffer has a lock, and a thread that hangs in it on a full pipe would take the process's end with it.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable

from gateway.terminal import RichTerminal, Terminal

Write = Callable[[str], None]
STANDARD_ERROR = 2


def descriptor(number: int = STANDARD_ERROR) -> Write:
    """A function that writes text there, all of it, however long that takes. It raises OSError where nobody can read it any more."""

    def write(text: str) -> None:
        left = memoryview(text.encode("utf-8", "replace"))
        while left:
            try:
                left = left[os.write(number, left) :]
            except BlockingIOError:  # somebody else who shares the terminal or the pipe has made it non-blocking
                select.select([], [number], [])

    return write


def through(terminal: Terminal) -> Write | None:
    """A function that prints by way of a terminal that draws a moving line: written beside it, a line would cut into that one.

    None where nothing moves, or where standard error goes elsewhere: then a descriptor will do.
    """
    if not isinstance(terminal, RichTerminal) or not os.isatty(STANDARD_ERROR):
        return None
    return lambda text: terminal.say(text.removesuffix("\n"))
