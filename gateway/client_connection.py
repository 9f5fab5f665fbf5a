"""One client's connection: uvicorn's HTTP protocol, with an end to everything that a client can keep us waiting for.

A head has HEAD_S, a body what `gateway.body` allows, and whoever takes nothing of an answer for STALLED_S is cut off. One timer for each
connection looks every LOOK_S, and counts; nothing is timed for a request.

One request at a time: what a client sends ahead of its answer is not answered. The connection ends with the answer under way, and the
client sends it again (RFC 9112, 9.3.2). uvicorn would queue it and stop reading, and nobody would notice that the client has left.
"""

from __future__ import annotations

import asyncio
import math

from gateway import body
from gateway.errors import GatewayError, head_too_slow
from gateway.http_protocol import GatewayProtocol

LOOK_S = 10.0
HEAD_S = 60.0  # from the connection's start, or from a request's first byte, to the end of the head
BODY_MARGIN_S = 30.0  # over what `gateway.body` gives a body: for one that nobody reads any more
STALLED_S = 300.0  # that a client may take nothing of what is there for it


class ClientConnection(GatewayProtocol):
    """See the module. The private state of uvicorn's class that it relies on: `cycle`, its `response_complete` and `keep_alive`."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn's
        super().connection_made(transport)
        self._ahead = False  # a further request has begun before the answer to the last: nothing is read as a request any more
        self._head_begun = False
        self._looks_left: int | None = _looks(HEAD_S)  # until what is being received must have come; None: nothing is
        self._untaken = self._looks_untaken = 0  # bytes of answers that the client has yet to take, and how often they were as many
        self._looking = self.loop.call_later(LOOK_S, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        self._looking.cancel()
        super().connection_lost(exc)

    # -- what comes in ----------------------------------------------------------------------------------------------
    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self.cycle is not None and not self.cycle.response_complete:
            self._ahead = True
            self.cycle.keep_alive = False
        else:
            self._head_begun = True
            self._looks_left = _looks(HEAD_S)

    def on_headers_complete(self) -> None:
        if not self._ahead:
            self._looks_left = _looks(body.WHOLE_S + BODY_MARGIN_S)
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if not self._ahead:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._looks_left, self._head_begun = None, False
        if not self._ahead:
            super().on_message_complete()

    # -- time -------------------------------------------------------------------------------------------------------
    def _look(self) -> None:
        self._looking = self.loop.call_later(LOOK_S, self._look)
        if self._is_stalled():
            self.transport.abort()
        elif self._looks_left is not None:
            self._looks_left -= 1
            if self._looks_left < 0 and not self.transport.is_closing():
                self._give_up()

    def _is_stalled(self) -> bool:
        untaken = self.transport.get_write_buffer_size()
        self._looks_untaken = self._looks_untaken + 1 if untaken and untaken == self._untaken else 0
        self._untaken = untaken
        return self._looks_untaken >= _looks(STALLED_S)

    def _give_up(self) -> None:
        """What was to come has not. Whoever waits for the rest of a body, or for a client to say anything at all, is told nothing."""
        in_head = self._head_begun and (self.cycle is None or self.cycle.response_complete)
        if in_head:
            self.transport.write(_reply(head_too_slow(HEAD_S)))
            self.transport.close()
        else:
            self.transport.abort()


def _looks(seconds: float) -> int:
    return math.ceil(seconds / LOOK_S)


def _reply(error: GatewayError) -> bytes:
    head = f"HTTP/1.1 {error.status} Request Timeout\r\ncontent-type: application/json\r\ncontent-length: {len(error.body)}\r\n"
    return head.encode() + b"".join(b"%b: %b\r\n" % header for header in error.headers.items()) + b"\r\n" + error.body
