"""Measure both demo models on what training never saw and print one table; end with status 1 where a model is worse than it must be.

    python -m local_models.demo.evaluate [--share 0.2] [--only chat|image] [--chat DIR] [--image DIR] [--show-mistakes]

Pictures are judged by checker.py, answers by required and forbidden facts; decoding is greedy.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from local_models.demo.build import WEIGHTS
from local_models.demo.measured import Row


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=1.0, help="of the questions and pictures, 0 to 1 (default: all)")
    parser.add_argument("--chat", type=Path, default=WEIGHTS / "demo")
    parser.add_argument("--image", type=Path, default=WEIGHTS / "demo-image")
    parser.add_argument("--only", choices=("chat", "image"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--show-mistakes", action="store_true")
    options = parser.parse_args()
    mistake: Callable[[str], None] = print if options.show_mistakes else _ignored
    good = True
    for row in measure(options.chat, options.image, options.only, options.share, options.seed, mistake):
        print(row, flush=True)
        good = good and row.is_good
    return 0 if good else 1


def measure(
    chat: Path, image: Path, only: str | None = None, share: float = 1.0, seed: int = 1, mistake: Callable[[str], None] | None = None
) -> Iterator[Row]:
    """The table, row by row as it is found."""
    note = mistake or _ignored
    if only != "chat":
        from local_models.demo import evaluate_image

        yield from evaluate_image.measure(image, share, seed, note)
    if only != "image":
        from local_models.demo import evaluate_chat

        yield from evaluate_chat.measure(chat, image, share, seed, note)


def _ignored(text: str) -> None:
    pass


if __name__ == "__main__":
    sys.exit(main())
