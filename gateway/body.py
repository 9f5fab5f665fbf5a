"""Reading a request's body, with a bound on its size, on each wait for more of it and on all of them together.

A client that still sends cannot hear an answer, and closing on it resets the connection before it does: what is too large is
read on and thrown away, within bounds of its own, so that the 413 arrives.
"""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope

from gateway.errors import body_too_slow, too_large, too_slow
from gateway.http_protocol import cycle_of
from gateway.stepping import Stepped

PART_S = 60.0  # that a client may let pass between two parts of its body
WHOLE_S = 300.0  # for all of it
DISCARD_FACTOR = 8  # times the limit that is thrown away at most
DISCARD_S = 10.0


async def read_body(scope: Scope, receive: Receive, limit: int) -> bytes:
    """The whole body. Raises GatewayError (413 above `limit` bytes, 408 where it stops coming or takes too long), ClientDisconnect."""
    whole = cycle_of(scope).whole_body(limit)
    if whole is not None:
        return whole
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit() and int(value) > limit:
            await _discard(receive, limit)
            raise too_large(limit)
    parts: list[bytes] = []
    size = 0
    ends = asyncio.get_running_loop().time() + WHOLE_S
    while True:
        part, more = await _next_part(receive, ends)
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
            more, ends = True, asyncio.get_running_loop().time() + WHOLE_S
            while more and left > 0:
                part, more = await _next_part(receive, ends)
                left -= len(part)
    except TimeoutError:
        return


async def _next_part(receive: Receive, ends: float) -> tuple[bytes, bool]:
    """A part, and whether there are more. ends: the loop's time. Raises GatewayError (408), ClientDisconnect."""
    # receive() is a coroutine in every ASGI server; the type only promises an awaitable
    coming: Any = receive()
    try:
        waiting = coming.send(None)
    except StopIteration as here:  # it has come already, as small bodies have: no clock is needed
        message = here.value
    else:
        message = await _in_time(coming, waiting, ends - asyncio.get_running_loop().time())
    if message["type"] == "http.disconnect":
        raise ClientDisconnect
    return message.get("body", b""), message.get("more_body", False)


async def _in_time(coming: Any, waiting: asyncio.Future[Any] | None, left_s: float) -> Any:
    """What `coming` returns, which waits for `waiting` now. Raises GatewayError (408)."""
    arrived: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    stepped = Stepped(coming, arrived.set_result)
    stepped.wait_for(waiting)
    try:
        async with asyncio.timeout(min(PART_S, left_s)):
            return await arrived
    except TimeoutError:
        raise (too_slow(PART_S) if left_s > PART_S else body_too_slow(WHOLE_S)) from None
    finally:
        stepped.close()
