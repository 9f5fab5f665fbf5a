"""Reading a request's body, with a bound on its size and on each wait for more of it.

A client that still sends cannot hear an answer, and closing on it resets the connection before it does: what is too large is
read on and thrown away, within bounds of its own, so that the 413 arrives.
"""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope

from gateway.errors import too_large, too_slow
from gateway.http_protocol import cycle_of
from gateway.stepping import Stepped

PART_S = 60.0  # that a client may let pass between two parts of its body
DISCARD_FACTOR = 8  # times the limit that is thrown away at most
DISCARD_S = 10.0


async def read_body(scope: Scope, receive: Receive, limit: int) -> bytes:
    """The whole body. Raises GatewayError: 413 above `limit` bytes, 408 where it stops coming. ClientDisconnect where the client leaves."""
    whole = cycle_of(scope).whole_body(limit)
    if whole is not None:
        return whole
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
    # receive() is a coroutine in every ASGI server; the type only promises an awaitable
    coming: Any = receive()
    try:
        waiting = coming.send(None)
    except StopIteration as here:  # it has come already, as small bodies have: no clock is needed
        message = here.value
    else:
        message = await _in_time(coming, waiting)
    if message["type"] == "http.disconnect":
        raise ClientDisconnect
    return message.get("body", b""), message.get("more_body", False)


async def _in_time(coming: Any, waiting: asyncio.Future[Any] | None) -> Any:
    """What `coming` returns, which waits for `waiting` now. Raises GatewayError (408)."""
    arrived: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    stepped = Stepped(coming, arrived.set_result)
    stepped.wait_for(waiting)
    try:
        async with asyncio.timeout(PART_S):
            return await arrived
    except TimeoutError:
        raise too_slow(PART_S) from None
    finally:
        stepped.close()
