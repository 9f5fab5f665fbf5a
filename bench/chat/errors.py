"""What can keep the bench from measuring."""

from __future__ import annotations


class CannotBench(Exception):
    """Nothing can be measured here; the message is one line, ready to print."""


class EntrantFailed(Exception):
    """One entrant cannot be measured; the message is one line, and the others go on."""
