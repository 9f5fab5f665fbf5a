"""How much of the soak runs: all of it with TANDEM_TEST_SOAK=1, otherwise a small part that stays under a minute on a busy machine."""

from __future__ import annotations

import os

FULL = os.environ.get("TANDEM_TEST_SOAK") == "1"
LIMIT_S = 3600 if FULL else 120  # for one test, to end one that hangs


def sized(full: int, small: int) -> int:
    """The number that this run works with."""
    return full if FULL else small
