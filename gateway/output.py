"""Where lines go: a file descriptor, written to directly.

Not `sys.stderr`: its buffer has a lock, and a thread that hangs in it on a full pipe would take the process's end with it.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable

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
