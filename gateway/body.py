"""Reading a request's body, with a bound.

A client that still sends cannot hear an answer, and closing on it resets the connection before it does: what is too large is
read on and thrown away, within bounds of its own, so that the 413 arrives.
"""

from __future__ import annotations

import asyncio

from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope

from gateway.errors import too_large

DISCARD_FACTOR = 8  # times the limit that is thrown away at most
DISCARD_S = 10.0


async def read_body(scope: Scope, receive: Receive, limit: int) -> bytes:
    """The whole body. Raises GatewayError (413) above `limit` bytes, ClientDisconnect where the client leaves before its end."""
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit() and int(value) > limit:
            await _discard(receive, limit)
            raise too_large(limit)
    parts: list[bytes] = []
    size = 0
    while True:
        part, more = await _next_part(receive)
        size += len(part)
        if size > limit:
            if more:
                await _discard(receive, limit)
            raise too_large(limit)
        parts.append(part)
        if not more:
            return parts[0] if len(parts) == 1 else b"".join(parts)


async def _discard(receive: Receive, limit: int) -> None:
    left = limit * DISCARD_FACTOR
    try:
        async with asyncio.timeout(DISCARD_S):
            more = True
            while more and left > 0:
                part, more = await _next_part(receive)
                left -= len(part)
    except TimeoutError:
        return


async def _next_part(receive: Receive) -> tuple[bytes, bool]:
    message = await receive()
    if message["type"] == "http.disconnect":
        raise ClientDisconnect
    return message.get("body", b""), message.get("more_body", False)
