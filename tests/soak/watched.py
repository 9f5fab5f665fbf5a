"""`tandem` with a window into its process: on SIGUSR1 it counts what lives there and writes that to a file.

    python -m tests.soak.watched FILE serve ...

What runs is the command line as it is. Tasks and objects cannot be counted from outside; sockets, files and threads can, and are.
"""

from __future__ import annotations

import asyncio
import gc
import json
import signal
import sys
from collections import Counter
from pathlib import Path
from types import FrameType

from gateway.cli import main

PACKAGES = ("gateway", "adapters", "uvicorn")


def census() -> dict[str, object]:
    """tasks: those of the running loop that have not ended. objects: how many of each class of ours and of the server's, by its name."""
    gc.collect()
    kinds = (type(thing) for thing in gc.get_objects())
    objects = Counter(kind.__qualname__ for kind in kinds if kind.__module__.partition(".")[0] in PACKAGES)
    return {"tasks": len(asyncio.all_tasks()), "objects": dict(objects)}


def watch(target: Path) -> None:
    """Write a census to `target`, whole or not at all, whenever SIGUSR1 comes."""

    def write(number: int, frame: FrameType | None) -> None:
        draft = target.with_suffix(".draft")
        draft.write_text(json.dumps(census()))
        draft.replace(target)

    signal.signal(signal.SIGUSR1, write)


if __name__ == "__main__":
    watch(Path(sys.argv[1]))
    sys.exit(main(sys.argv[2:]))
