"""A whole response in two ASGI messages."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.types import Send

from adapters.errors import RATE_HEADERS
from gateway.errors import GatewayError

RawHeaders = list[tuple[bytes, bytes]]


def rates_of(upstream: Mapping[bytes, bytes], ours: RawHeaders) -> RawHeaders:
    """An upstream's x-ratelimit-*, for its client; none where `ours` has such: two accounts in one reply would be of no use to anybody."""
    if any(name.startswith(RATE_HEADERS) for name, _ in ours):
        return []
    return [(name, value) for name, value in upstream.items() if name.startswith(RATE_HEADERS)]


async def send_json(send: Send, status: int, body: bytes, headers: RawHeaders) -> None:
    """Send `body`, which is JSON already."""
    fixed = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": fixed + headers})
    await send({"type": "http.response.body", "body": body})


async def send_error(send: Send, error: GatewayError, headers: RawHeaders) -> None:
    """headers: ours. Of an upstream's error everything goes with them but the rates of its account where we have our own."""
    kept = {name: value for name, value in error.headers.items() if not name.startswith(RATE_HEADERS)}
    await send_json(send, error.status, error.body, [*headers, *kept.items(), *rates_of(error.headers, headers)])
