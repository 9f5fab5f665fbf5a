"""Token ids to text, piece by piece, never cutting a character in half."""

from __future__ import annotations

from collections.abc import Callable, Sequence

REPLACEMENT = "\ufffd"
WINDOW = 8  # tokens: more than any character's bytes and any decoder's left context


class Detokenizer:
    """Feed ids, get the text they complete.

    `decode` turns ids into text and puts U+FFFD where bytes are missing; those of an unfinished character wait.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._ids: list[int] = []
        self._given = 0  # characters of decode(ids) already returned

    def feed(self, token_id: int) -> str:
        self._ids.append(token_id)
        text = self._decode(self._ids)
        settled = text[: len(text) - _unfinished(text)]
        piece = settled[self._given :]
        self._given = max(self._given, len(settled))
        if len(self._ids) > 2 * WINDOW and len(settled) == len(text):
            self._ids = self._ids[-WINDOW:]
            self._given = len(self._decode(self._ids))
        return piece

    def finish(self) -> str:
        """What is left: an unfinished character shows as U+FFFD."""
        piece = self._decode(self._ids)[self._given :]
        self._given += len(piece)
        return piece


def _unfinished(text: str) -> int:
    """Trailing U+FFFD that the next token may still turn into a character: at most three bytes."""
    return min(3, len(text) - len(text.rstrip(REPLACEMENT)))
