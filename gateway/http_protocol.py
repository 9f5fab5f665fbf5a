"""uvicorn's HTTP/1.1 protocol with less work for each request.

The head of a reply whose length is known leaves with its body, in one write; a head is checked once, not header by header; the idle
limit of a connection is one timer that looks when it is due, not one that each reply arms anew; and whoever handles a request is told of
its client's departure by a call (`watch`), not by a coroutine that waits for it. What is overridden here is internal to uvicorn, so its
version is locked.
"""

from __future__ import annotations

import asyncio
import re
import urllib.parse
from collections.abc import Callable
from typing import Any, cast

import httptools
from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

_CYCLE = "tandem.cycle"  # in the scope's extensions
_H2C_OFFER = re.compile(rb"\r\nupgrade:[ \t]*h2c[^\r\n]*", re.IGNORECASE)
_HEAD = 8192  # bytes of a request's first read that are looked at
_UNSAFE = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")  # in a header; line ends are counted. RFC 9110, 5.5
_NEEDS_PARSING = re.compile(rb"[^A-Za-z0-9/._~:@!$&'()*+,;=-]")  # anything but a plain path


def cycle_of(scope: Scope) -> Cycle:
    """The request and reply that this scope belongs to."""
    return cast("Cycle", scope["extensions"][_CYCLE])


class GatewayProtocol(HttpToolsProtocol):
    """See the module. Deaf to offers of HTTP/2: a server may ignore them (RFC 9110, 7.8), but httptools would stop reading there.

    Java's HttpClient and `curl --http2` send `Upgrade: h2c` with their first request, body included.
    """

    _idle_since = 0.0  # the loop's time

    def data_received(self, data: bytes) -> None:
        begins = self.cycle is None or self.cycle.response_complete
        if begins and b"h2c" in data[:_HEAD]:
            head, blank_line, body = data.partition(b"\r\n\r\n")
            data = _H2C_OFFER.sub(b"", head) + blank_line + body
        super().data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self.timeout_keep_alive_task is not None:
            self.timeout_keep_alive_task.cancel()
            self.timeout_keep_alive_task = None
        if self.cycle is not None and self.cycle.disconnected:
            cast("Cycle", self.cycle).left()

    # --- what uvicorn's does for each request, done with less

    def on_headers_complete(self) -> None:
        scope: dict[str, Any] = self.scope  # type: ignore[assignment]
        version = self.parser.get_http_version()
        scope["method"] = self.parser.get_method().decode("ascii")
        if version != "1.1":
            scope["http_version"] = version
        if self.url[:1] == b"/" and not _NEEDS_PARSING.search(self.url):
            path, query = self.url, b""
        else:
            parsed = httptools.parse_url(self.url)
            path, query = parsed.path or b"/", parsed.query or b""
        text = path.decode("ascii")
        scope["path"] = urllib.parse.unquote(text) if "%" in text else text
        scope["raw_path"], scope["query_string"] = path, query
        cycle = self.cycle = Cycle(self, version != "1.0" and self.parser.should_keep_alive())
        scope["extensions"] = {_CYCLE: cycle}
        self._start_asgi_task(cycle, self.app)  # one at a time: `gateway.client_connection` lets none begin before

    def on_response_complete(self) -> None:
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        self._idle_since = self.loop.time()
        if self.timeout_keep_alive_task is None:
            self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def _unset_keepalive_if_required(self) -> None:
        """The timer runs on: when it is due it looks whether the connection is idle, and since when."""

    def timeout_keep_alive_handler(self) -> None:
        self.timeout_keep_alive_task = None
        if self.transport.is_closing() or not self.cycle.response_complete:
            return
        due = self._idle_since + self.timeout_keep_alive
        if self.loop.time() >= due:
            self.transport.close()
        else:
            self.timeout_keep_alive_task = self.loop.call_at(due, self.timeout_keep_alive_handler)


class Cycle(RequestResponseCycle):
    """One request and its reply."""

    _held: bytes = b""  # a head that leaves with the body
    _on_departure: Callable[[], None] | None = None

    def __init__(self, protocol: GatewayProtocol, keep_alive: bool) -> None:
        self.scope = protocol.scope
        self.method = protocol.scope["method"]
        self.transport = protocol.transport
        self.flow = protocol.flow
        self.logger = protocol.logger
        self.default_headers = protocol.server_state.default_headers
        self.message_event = asyncio.Event()
        self.on_response = protocol.on_response_complete
        self.keep_alive = keep_alive
        self.waiting_for_100_continue = protocol.expect_100_continue
        self.body = bytearray()
        self.more_body = True
        self.disconnected = self.response_started = self.response_complete = False
        self.chunked_encoding = None
        self.expected_content_length = 0

    def whole_body(self, limit: int) -> bytes | None:
        """The request's body where all of it has come with the head and it is no longer than `limit`; only to be asked for once."""
        if self.more_body or self.disconnected or len(self.body) > limit:
            return None
        return bytes(self.body)

    async def run_asgi(self, app: Any) -> None:
        scope = self.scope
        del self.scope  # it refers to this object: together they would stay until the collector comes
        try:
            await app(scope, self.receive, self.send)
        except BaseException as error:
            self.logger.error("Exception in ASGI application\n", exc_info=error)
            if not self.response_started:
                await self.send_500_response()
            else:
                self.transport.close()
        else:
            if self.response_complete or self.disconnected:
                return
            self.logger.error("ASGI callable returned without completing response.")
            if not self.response_started:
                await self.send_500_response()
            else:
                self.transport.close()
        finally:
            self.on_response = _nothing

    def watch(self, on_departure: Callable[[], None]) -> None:
        """Call this once if the client goes before it has its reply; at once if it has gone. The request's body has been read in full."""
        if self.disconnected:
            on_departure()
            return
        self._on_departure = on_departure
        self.flow.resume_reading()

    def unwatch(self) -> None:
        self._on_departure = None

    def left(self) -> None:
        told, self._on_departure = self._on_departure, None
        if told is not None:
            told()

    def push(self, part: bytes) -> bool:
        """`send` of a part of a streamed body, which is not empty, without a coroutine. False where that has to wait."""
        if self.flow.write_paused or not self.chunked_encoding or self.response_complete:
            return False
        if not self.disconnected:
            self.transport.write(b"%x\r\n%b\r\n" % (len(part), part))
        return True

    async def send(self, message: Any) -> None:
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        kind = message["type"]
        if kind == "http.response.body" and self.response_started and not self.response_complete:
            self._send_body(message.get("body", b""), message.get("more_body", False))
        elif kind == "http.response.start" and not self.response_started:
            self._send_start(message["status"], message.get("headers", ()))
        else:
            raise RuntimeError(f"unexpected ASGI message '{kind}'")

    def _send_start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        headers = [*self.default_headers, *headers]
        given = dict(headers)
        lines = [b"%b: %b\r\n" % header for header in headers]
        connection = given.get(b"connection")
        if connection is not None and b"close" in connection.lower():
            self.keep_alive = False
        elif not self.keep_alive:
            lines.append(b"connection: close\r\n")
        length = given.get(b"content-length")
        if length is not None:
            self.expected_content_length = int(length)
            self.chunked_encoding = False
        elif self.method == "HEAD" or status in (204, 304):
            self.chunked_encoding = False
        else:
            self.chunked_encoding = True
            lines.append(b"transfer-encoding: chunked\r\n")
        block = b"".join(lines)
        if _UNSAFE.search(block) or not len(lines) == block.count(b"\n") == block.count(b"\r"):
            raise RuntimeError("a response header holds a character that HTTP does not allow")
        self.response_started = True
        self.waiting_for_100_continue = False
        self._held = b"%b%b\r\n" % (STATUS_LINE[status], block)
        if self.chunked_encoding:  # the first part of the body may be long in coming
            self.transport.write(self._held)
            self._held = b""

    def _send_body(self, body: bytes, more: bool) -> None:
        if self.method == "HEAD":
            data, self.expected_content_length = b"", 0
        elif self.chunked_encoding:
            data = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            if not more:
                data += b"0\r\n\r\n"
        else:
            data = body
            self.expected_content_length -= len(body)
            if self.expected_content_length < 0:
                raise RuntimeError("Response content longer than Content-Length")
        if self._held:
            data, self._held = self._held + data, b""
        if data:
            self.transport.write(data)
        if more:
            return
        if self.expected_content_length:
            raise RuntimeError("Response content shorter than Content-Length")
        self.response_complete = True
        self.message_event.set()
        if not self.keep_alive:
            self.transport.close()
        self.on_response()


def _nothing() -> None:
    """What a reply does at its end once its application has returned."""
