"""What becomes of a reply's bytes: written to a client as they come, collected as one document, or queued as events.

All of them watch the time: to the first content, between two reads after it, and in total. Time in which the client holds
the upstream back does not count against the upstream.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from adapters import errors, sse
from adapters.answer import StreamedAnswer, WholeAnswer
from adapters.base import ChatCall, Client
from adapters.connection import Headers, UpstreamConnection

if TYPE_CHECKING:
    from adapters.endpoint import Endpoint

MAX_ERROR_BYTES = 1 << 20


class Reply:
    """The common part: status, an error's body, the clock. Subclasses say what content is (`take`) and when it has begun (`began`)."""

    streams = True

    def __init__(self, endpoint: Endpoint, connection: UpstreamConnection) -> None:
        self._endpoint, self._connection = endpoint, connection
        self._loop = asyncio.get_running_loop()
        self._status = 0
        self._headers: dict[bytes, bytes] = {}
        self._foreign = False  # not an answer: its body is read as an error
        self._error_body = bytearray()
        self._paused = self._over = False

    @property
    def began(self) -> bool:
        return False

    @property
    def answered(self) -> bool:
        """Whether the answer is complete already: how its connection ends does not matter any more."""
        return False

    def take(self, data: bytes) -> None:
        """Content, as it comes. May raise UpstreamError."""

    def end(self) -> None:
        """All of it has come. May raise UpstreamError."""

    # -- Receiver ---------------------------------------------------------------------------------------------------
    def on_head(self, status: int, headers: Headers) -> None:
        self._status = status
        self._headers.update(headers)
        is_stream = self._headers.get(b"content-type", b"").lower().startswith(b"text/event-stream")
        self._encoding = self._headers.get(b"content-encoding", b"identity").decode("latin-1").lower()
        self._foreign = status >= 300 or is_stream != self.streams or self._encoding != "identity"

    def on_data(self, data: bytes) -> None:
        self._last = self._loop.time()
        try:
            if self._foreign:
                self._error_body += data[: MAX_ERROR_BYTES - len(self._error_body)]
            else:
                self.take(data)
        except errors.UpstreamError as error:
            self._connection.fail(error)

    # -- Source -----------------------------------------------------------------------------------------------------
    def pause(self) -> None:
        if not self._over:
            self._paused = True
            self._connection.pause()

    def resume(self) -> None:
        if self._paused and not self._over:
            self._paused = False
            self._last = self._loop.time()
            self._connection.resume()

    def let_go(self) -> None:
        """The exchange is over and its connection is somebody else's: a client that is still catching up must not touch it."""
        self.resume()
        self._over = True

    # -- ends -------------------------------------------------------------------------------------------------------
    def finish(self) -> None:
        """Judge the complete reply. Raises UpstreamError."""
        if self._foreign:
            raise self._error()
        self.end()

    def _error(self) -> errors.UpstreamError:
        name, body = self._endpoint.name, bytes(self._error_body) if self._encoding == "identity" else b""
        if self._status >= 300:
            return errors.from_reply(name, self._status, self._headers, body, self._endpoint.key)
        if self._encoding != "identity":
            return errors.bad_reply(name, f"an answer in content-encoding {self._encoding} where none was asked for")
        inside = errors.from_text(name, body, self._endpoint.key)  # an error under HTTP 200, in the form that was not asked for
        wanted = "an event stream" if self.streams else "JSON"
        kind = self._headers.get(b"content-type", b"no content type").decode("latin-1")
        return inside or errors.bad_reply(name, f"{kind} where {wanted} was asked for")

    # -- time -------------------------------------------------------------------------------------------------------
    def watch(self) -> None:
        """From now on, until `unwatch`."""
        self._started = self._last = self._loop.time()
        limits = self._endpoint.timeouts
        first = min(limits.idle_s, limits.total_s, limits.first_token_s if self.streams else limits.total_s)
        self._timer = self._loop.call_at(self._started + first, self._check)

    def unwatch(self) -> None:
        self._timer.cancel()

    def _due(self) -> tuple[float, str, float]:
        """(when, what will have been missing, the limit): the limit that ends this exchange next if nothing more comes."""
        limits = self._endpoint.timeouts
        total = (self._started + limits.total_s, "the answer was not complete", limits.total_s)
        if not self.streams:
            return total
        if not self.began:
            return min(total, (self._started + limits.first_token_s, "no first token", limits.first_token_s))
        last = self._loop.time() if self._paused else self._last
        return min(total, (last + limits.idle_s, "nothing more came", limits.idle_s))

    def _check(self) -> None:
        due, what, limit = self._due()
        if self._loop.time() >= due:
            self._connection.fail(errors.timed_out(self._endpoint.name, what, limit))
        else:
            self._arm(due)

    def _arm(self, due: float) -> None:
        """Look again at `due`, or after one idle limit: which limit comes next changes when content begins."""
        self._timer = self._loop.call_at(min(due, self._loop.time() + self._endpoint.timeouts.idle_s), self._check)


class StreamedReply(Reply):
    """Chat chunks on their way to a client."""

    def __init__(self, endpoint: Endpoint, connection: UpstreamConnection, call: ChatCall, client: Client) -> None:
        super().__init__(endpoint, connection)
        self._answer = StreamedAnswer(endpoint.name, endpoint.key, call.meter, call.wants_usage)
        self._meter = call.meter
        self._meter.headers = self._headers
        self._client = client

    @property
    def began(self) -> bool:
        return self._answer.began

    @property
    def answered(self) -> bool:
        return self._answer.done

    def take(self, data: bytes) -> None:
        if frames := self._answer.feed(data):
            self._meter.note_content()
            self._client.write(frames, self)
        if self._answer.failure is not None:
            raise self._answer.failure

    def end(self) -> None:
        if frames := self._answer.end():
            self._client.write(frames, self)


class WholeReply(Reply):
    """A chat completion as one document."""

    streams = False

    def __init__(self, endpoint: Endpoint, connection: UpstreamConnection, call: ChatCall) -> None:
        super().__init__(endpoint, connection)
        self._answer = WholeAnswer(endpoint.name, endpoint.key, call.meter)
        call.meter.headers = self._headers
        self.document = b""

    def take(self, data: bytes) -> None:
        self._answer.feed(data)

    def end(self) -> None:
        self.document = self._answer.end()


class EventReply(Reply):
    """Events that somebody takes from a queue at leisure: few and bounded, such as an image job's."""

    def __init__(self, endpoint: Endpoint, connection: UpstreamConnection, queue: asyncio.Queue[bytes | None]) -> None:
        super().__init__(endpoint, connection)
        self._frames = sse.Frames()
        self._queue = queue
        self._began = False

    @property
    def began(self) -> bool:
        return self._began

    def take(self, data: bytes) -> None:
        self._began = True
        for frame in sse.split(self._frames.feed(data)):
            if (event := sse.data_of(frame)) is not None:
                self._queue.put_nowait(event)
