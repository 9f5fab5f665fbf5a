"""A whole response in two ASGI messages."""

from __future__ import annotations

from starlette.types import Send

from gateway.errors import GatewayError

RawHeaders = list[tuple[bytes, bytes]]


async def send_json(send: Send, status: int, body: bytes, headers: RawHeaders) -> None:
    """Send `body`, which is JSON already."""
    fixed = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": fixed + headers})
    await send({"type": "http.response.body", "body": body})


async def send_error(send: Send, error: GatewayError, headers: RawHeaders) -> None:
    await send_json(send, error.status, error.body, [*headers, *error.headers.items()])
