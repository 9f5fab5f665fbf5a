"""Server-sent events as bytes: whole frames out of reads that are cut anywhere. Nothing here decodes text.

A frame is everything up to and including its blank line, so joining the frames gives the stream back byte for byte.
Source: WHATWG HTML, section 9.2.6 (event streams). A lone CR as line end is not supported: no known API sends it.
"""

from __future__ import annotations

import re
from typing import Any

import orjson

MAX_FRAME_BYTES = 32 << 20  # an answer frame may carry a picture as base64
DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"

_BLANK_LINE = re.compile(rb"\r?\n\r?\n")


class FrameTooLong(Exception):
    """More than MAX_FRAME_BYTES came without a blank line."""


class Frames:
    """Cuts a byte stream at frame ends: `feed` returns the complete part, the rest waits for the next read."""

    __slots__ = ("_end", "_parts", "_size")

    def __init__(self) -> None:
        self._parts: list[bytes] = []  # the beginning of a frame; joined once, when its end has come
        self._size = 0
        self._end = b""  # the last bytes of it: a blank line may lie across two reads

    def feed(self, data: bytes) -> bytes:
        if self._parts:
            if not _has_end(self._end + data):
                self._keep(data)
                return b""
            data = b"".join((*self._parts, data))
            self._parts.clear()
            self._size = 0
        if data.endswith(b"\n\n"):
            return data
        end = max(data.rfind(b"\n\n") + 2, data.rfind(b"\n\r\n") + 3)
        if end < 3:  # neither was found (-1 + 2, -1 + 3)
            end = 0
        if end < len(data):
            self._end = b""
            self._keep(data[end:])
        return data[:end]

    @property
    def tail(self) -> bytes:
        """What came after the last blank line."""
        return b"".join(self._parts)

    def _keep(self, data: bytes) -> None:
        self._parts.append(data)
        self._size += len(data)
        self._end = (self._end + data)[-2:]
        if self._size > MAX_FRAME_BYTES:
            raise FrameTooLong


def _has_end(data: bytes) -> bool:
    return b"\n\n" in data or b"\n\r\n" in data


def split(frames: bytes) -> list[bytes]:
    """The single frames of what `Frames.feed` returned."""
    found = []
    start = 0
    for blank in _BLANK_LINE.finditer(frames):
        found.append(frames[start : blank.end()])
        start = blank.end()
    return found


def data_of(frame: bytes) -> bytes | None:
    """The data of a frame, its lines joined as the standard says; None for a comment."""
    lines = [line[5:].removeprefix(b" ") for line in frame.splitlines() if line.startswith(b"data:")]
    return b"\n".join(lines) if lines else None


def comment(text: str) -> bytes:
    """A frame that every reader of events passes over."""
    return b": %s\n\n" % " ".join(text.split()).encode()


def event(document: Any, name: str | None = None) -> bytes:
    """One frame that carries `document` as JSON."""
    head = b"event: %s\n" % name.encode() if name else b""
    return b"%sdata: %s\n\n" % (head, orjson.dumps(document))
