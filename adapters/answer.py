"""What an upstream's chat answer means while it passes: has content begun, has it ended well, is it an error.

Pure state machines: bytes in, bytes out, no I/O. `StreamedAnswer` looks for byte patterns and parses only the frames that hit;
`WholeAnswer` collects one JSON document. Both leave bytes alone unless something must change: `reasoning` and
`reasoning_content` are given both names, since clients read either, and a foreign error takes our shape.
"""

from __future__ import annotations

from typing import Any

import orjson

from adapters import sse
from adapters.base import Meter
from adapters.errors import UpstreamError, bad_reply, disconnected, excerpt, from_document
from adapters.usage import usage_in

MAX_HELD_BYTES = 256 << 10  # frames without content that are held back before content must come
MAX_WHOLE_BYTES = 128 << 20  # an answer that does not stream

_REASONING = (b'"reasoning":"', b'"reasoning": "', b'"reasoning_content":"', b'"reasoning_content": "')


class StreamedAnswer:
    """One streamed answer. `feed` and `end` return the bytes to pass on. A failure before content is raised as UpstreamError; a later

    one is kept in `failure`, because what came before it has to be passed on first.
    """

    def __init__(self, upstream: str, secret: str | None, meter: Meter, wants_usage: bool = True) -> None:
        self.began = False  # content has been passed on: no other deployment may answer any more
        self.finished = False  # a finish_reason was seen
        self.done = False  # [DONE] was seen
        self.failure: UpstreamError | None = None
        self._upstream, self._secret, self._meter, self._wants_usage = upstream, secret, meter, wants_usage
        self._frames = sse.Frames()
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        try:
            frames = self._frames.feed(data)
        except sse.FrameTooLong:
            raise bad_reply(self._upstream, f"an event of more than {sse.MAX_FRAME_BYTES} bytes") from None
        if not frames:
            return b""
        if not self.began or _may_matter(frames):
            frames = self._pass_all(frames)
        self._meter.answer_bytes += len(frames)
        self._meter.chunks += frames.count(b"data:")
        return frames

    def _pass_all(self, frames: bytes) -> bytes:
        """The frames up to the one that fails, if any. Where nothing had been passed on before, the failure is raised at once."""
        begun_before = self.began
        passed: list[bytes] = []
        try:
            for frame in sse.split(frames):
                passed.append(self._pass(frame))
        except UpstreamError as error:
            if not begun_before:
                raise
            self.failure = error
        return b"".join(passed)

    def end(self) -> bytes:
        """The upstream's stream is over. A cut one raises; a finished one that lacks [DONE] gets it."""
        rest = b""
        tail = sse.data_of(self._frames.tail)
        if tail is not None:  # a last frame without its blank line
            if not tail.startswith(b"[DONE]") and not _is_json(tail):
                raise self._cut()
            rest = self.feed(b"\n\n")
        if self.failure is not None:
            raise self.failure
        if self.done:
            return rest
        if not self.finished:
            raise self._cut()
        return rest + sse.DONE

    def _cut(self) -> UpstreamError:
        return disconnected(self._upstream, "in the middle of the answer" if self.began else "before the first token")

    def _pass(self, frame: bytes) -> bytes:
        if b"[DONE]" in frame and (sse.data_of(frame) or b"").startswith(b"[DONE]"):
            if not self.began and not self.finished:
                raise bad_reply(self._upstream, "[DONE] without an answer before it")
            self.done = True
            return self._release(frame)
        if _finishes(frame):
            self.finished = True
        counts = _counts(frame)
        hit = b'"error"' in frame or b'"abort"' in frame or _reasons(frame)
        if self.began and not hit and not counts:
            return frame
        data = sse.data_of(frame)
        if data is None:
            return b"" if not self.began else frame  # a comment: before content, our own keep-alive serves
        document = self._parse(data)
        error = from_document(self._upstream, document, self._secret)
        if error is not None:
            raise error
        if counts:
            self._meter.usage = usage_in(document) or self._meter.usage
            if not self._wants_usage:
                if not document.get("choices"):
                    return b""
                del document["usage"]
                frame = sse.event(document)
        if hit and _name_reasoning_twice(document, "delta"):
            frame = sse.event(document)
        return frame if self.began else self._hold(frame, document)

    def _hold(self, frame: bytes, document: dict[str, Any]) -> bytes:
        if _has_content(document):
            return self._release(frame)
        self._held += frame
        if len(self._held) > MAX_HELD_BYTES:
            return self._release(b"")
        return b""

    def _release(self, frame: bytes) -> bytes:
        self.began = True
        held, self._held = self._held, b""
        return held + frame

    def _parse(self, data: bytes) -> dict[str, Any]:
        try:
            document = orjson.loads(data)
        except orjson.JSONDecodeError:
            document = None
        if not isinstance(document, dict):
            raise bad_reply(self._upstream, f"an event that is not a JSON object: {excerpt(data, self._secret)}")
        return document


class WholeAnswer:
    """One answer that comes as a single JSON document."""

    def __init__(self, upstream: str, secret: str | None, meter: Meter) -> None:
        self._upstream, self._secret, self._meter = upstream, secret, meter
        self._parts: list[bytes] = []
        self._size = 0

    def feed(self, data: bytes) -> None:
        self._parts.append(data)
        self._size += len(data)
        if self._size > MAX_WHOLE_BYTES:
            raise bad_reply(self._upstream, f"an answer of more than {MAX_WHOLE_BYTES} bytes")

    @property
    def raw(self) -> bytes:
        return b"".join(self._parts)

    def end(self) -> bytes:
        """The document to pass on. Raises UpstreamError for an error under HTTP 200 and for what is no chat completion."""
        body = self.raw
        try:
            document = orjson.loads(body)
        except orjson.JSONDecodeError:
            document = None
        if not isinstance(document, dict):
            raise bad_reply(self._upstream, f"an answer that is not a JSON object: {excerpt(body, self._secret)}")
        error = from_document(self._upstream, document, self._secret)
        if error is not None:
            raise error
        if not isinstance(document.get("choices"), list):
            raise bad_reply(self._upstream, "a JSON object without `choices`")
        self._meter.usage, self._meter.answer_bytes = usage_in(document), len(body)
        if _reasons(body) and _name_reasoning_twice(document, "message"):
            return orjson.dumps(document)
        return body


# Chains of `in`, written out: this runs for each read of each stream, and a generator over patterns takes five times as long.
def _may_matter(frames: bytes) -> bool:
    """Whether frames after the first content hold anything that must be looked at."""
    return (
        b'"error"' in frames
        or b"[DONE]" in frames
        or b'"finish_reason":"' in frames
        or b'"finish_reason": "' in frames
        or b'"usage":{' in frames
        or b'"usage": {' in frames
        or (b'"reasoning' in frames and any(pattern in frames for pattern in _REASONING))
    )


def _finishes(frames: bytes) -> bool:
    return b'"finish_reason":"' in frames or b'"finish_reason": "' in frames


def _counts(frames: bytes) -> bool:
    """Whether there is a usage object; `"usage":null` is none."""
    return b'"usage":{' in frames or b'"usage": {' in frames


def _reasons(frames: bytes) -> bool:
    return b'"reasoning' in frames and any(pattern in frames for pattern in _REASONING)


def _is_json(data: bytes) -> bool:
    try:
        orjson.loads(data)
    except orjson.JSONDecodeError:
        return False
    return True


def _choices(document: dict[str, Any]) -> list[dict[str, Any]]:
    choices = document.get("choices")
    return [choice for choice in choices if isinstance(choice, dict)] if isinstance(choices, list) else []


def _has_content(document: dict[str, Any]) -> bool:
    """Whether a chunk carries more than the role: text, reasoning, a tool call, or an end."""
    for choice in _choices(document):
        if choice.get("finish_reason") or choice.get("text"):
            return True
        delta = choice.get("delta")
        if isinstance(delta, dict) and any(value for key, value in delta.items() if key != "role"):
            return True
    return False


def _name_reasoning_twice(document: dict[str, Any], holder: str) -> bool:
    """Copy `reasoning` and `reasoning_content` to each other where one is missing. Returns whether anything changed."""
    changed = False
    for choice in _choices(document):
        said = choice.get(holder)
        if not isinstance(said, dict):
            continue
        for given, wanted in (("reasoning", "reasoning_content"), ("reasoning_content", "reasoning")):
            if said.get(given) and not said.get(wanted):
                said[wanted] = said[given]
                changed = True
    return changed
