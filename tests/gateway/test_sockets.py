"""No small frame waits for an acknowledgement: TCP_NODELAY on the sockets to upstreams and to clients, on both event loops."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable

import pytest
import uvloop

from tests.gateway.live import KEY, Live, chat_settings, live_gateway
from tests.scripted_upstream import Exchange, Request, chunk, scripted_upstream

LOOPS: list[Callable[[], asyncio.AbstractEventLoop]] = [asyncio.new_event_loop, uvloop.new_event_loop]


def no_delay(transport: asyncio.BaseTransport) -> bool:
    sock: socket.socket = transport.get_extra_info("socket")
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0


def transports_of(live: Live) -> tuple[list[asyncio.BaseTransport], list[asyncio.BaseTransport]]:
    """(to clients, to upstreams) of a gateway now."""
    target = live.app.router.chat("m")[0].targets[0]
    to_upstreams = [connection._transport for connection in target.upstream._endpoint.pool._open]  # type: ignore[attr-defined]
    return [connection.transport for connection in live.server.server_state.connections], to_upstreams


async def options_while_a_stream_runs() -> tuple[list[bool], list[bool]]:
    async def scenario(request: Request, exchange: Exchange) -> None:
        await exchange.start_stream()
        await exchange.events(chunk("one"))
        await exchange.until_left()

    async with scripted_upstream(scenario) as upstream, live_gateway(chat_settings(upstream.base_url)) as live:
        reader, writer = await asyncio.open_connection("127.0.0.1", live.port)
        body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "x"}], "stream": True}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\ncontent-length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        await reader.readuntil(b'"one"')
        to_clients, to_upstreams = transports_of(live)
        writer.close()
        return [*map(no_delay, to_clients)], [*map(no_delay, to_upstreams)]


@pytest.mark.parametrize("loop", LOOPS, ids=["asyncio", "uvloop"])
def test_small_frames_leave_at_once_on_both_sides(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    with asyncio.Runner(loop_factory=loop) as runner:
        assert runner.run(options_while_a_stream_runs()) == ([True], [True])
