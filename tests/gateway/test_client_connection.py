"""Clients that keep a connection busy, at the level of their sockets: each comes to an end, and so does what was done for it."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import uvloop

from gateway import body, client_connection
from gateway.record import RequestRecord
from gateway.startup import UNSENT
from tests.gateway.live import KEY, Live, chat_settings, image_settings, live_gateway
from tests.scripted_upstream import Exchange, Request, ScriptedUpstream, chunk, completion, scripted_upstream

CHAT = "/v1/chat/completions"
ENDLESS = 1_000_000
LOOPS: list[Callable[[], asyncio.AbstractEventLoop]] = [asyncio.new_event_loop, uvloop.new_event_loop]


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes minutes otherwise."""
    monkeypatch.setattr(client_connection, "LOOK_S", 0.02)
    monkeypatch.setattr(client_connection, "HEAD_S", 0.1)
    monkeypatch.setattr(client_connection, "BODY_MARGIN_S", 0.1)
    monkeypatch.setattr(client_connection, "STALLED_S", 0.2)
    monkeypatch.setattr(body, "WHOLE_S", 0.1)


def request(document: object = None, *, stream: bool = False, path: str = CHAT) -> bytes:
    content = json.dumps(document or {"model": "m", "messages": [{"role": "user", "content": "x"}], "stream": stream}).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\ncontent-length: {len(content)}\r\n\r\n"
    return head.encode() + content


async def drip(writer: asyncio.StreamWriter) -> None:
    """A byte, and again, for as long as anybody takes them."""
    while True:
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.01)


async def reply_to(live: Live, beginning: bytes, *, dripping: bool) -> bytes:
    """All that the gateway says until it closes; nothing where it closed on what was still being sent, which resets the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", live.port)
    writer.write(beginning)
    more = asyncio.create_task(drip(writer) if dripping else asyncio.sleep(0))
    try:
        return await reader.read()
    except ConnectionResetError:
        return b""
    finally:
        more.cancel()
        await asyncio.gather(more, return_exceptions=True)
        writer.close()


async def all_gone(live: Live) -> None:
    """Return when the gateway has neither a connection nor a request; the test's time limit ends it otherwise."""
    while live.server.server_state.connections or live.server.server_state.tasks:
        await asyncio.sleep(0.01)
    assert set(live.app.admission.in_flight().by_key.values()) <= {0}


# -- slow to ask --------------------------------------------------------------------------------------------------------


async def test_a_client_that_never_comes_to_the_end_of_its_head_is_told_408() -> None:
    async with live_gateway(image_settings()) as live:
        await reply_to(live, b"GET /healthz HTTP/1.1\r\nhost: x\r\nx-", dripping=True)
        reply = await reply_to(live, b"GET /healthz HTTP/1.1\r\nhost: x\r\nx-", dripping=False)
        await all_gone(live)
    head, _, content = reply.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 ")
    assert b"connection: close" in head
    error = json.loads(content)["error"]
    assert (error["code"], error["type"]) == ("request_timeout", "timeout_error")
    assert "headers of the request" in error["message"]


async def test_a_client_that_says_nothing_is_parted_from() -> None:
    async with live_gateway(image_settings()) as live:
        assert await reply_to(live, b"", dripping=False) == b""
        await all_gone(live)


@pytest.mark.parametrize("path", [CHAT, "/v1/images/generations"])
async def test_a_client_that_never_comes_to_the_end_of_its_body_is_told_408(path: str) -> None:
    records: list[RequestRecord] = []
    async with live_gateway(image_settings(), sinks=[records.append]) as live:
        head = f"POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\ncontent-length: 1000000\r\n\r\n"
        for dripping in (True, False):
            reply = await reply_to(live, head.encode(), dripping=dripping)
        await all_gone(live)
    assert [(record.status, record.error_code) for record in records] == [(408, "request_timeout")] * 2
    assert "not complete within 0.1 s" in json.loads(reply.partition(b"\r\n\r\n")[2])["error"]["message"]


async def test_a_body_that_nobody_reads_comes_to_an_end_too() -> None:
    async with live_gateway(image_settings()) as live:
        await reply_to(live, b"GET /healthz HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n", dripping=True)
        await all_gone(live)


async def test_a_connection_between_two_requests_is_not_hurried() -> None:
    async with live_gateway(image_settings()) as live:
        reader, writer = await asyncio.open_connection("127.0.0.1", live.port)
        for _ in range(2):
            writer.write(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
            await reader.readuntil(b"ok")
            await reader.readexactly(2)
            await asyncio.sleep(0.3)  # three times as long as a head may take
        writer.close()


# -- ahead of its answer ------------------------------------------------------------------------------------------------


@asynccontextmanager
async def held(records: list[RequestRecord]) -> AsyncIterator[tuple[Live, ScriptedUpstream, asyncio.Event]]:
    """A gateway whose upstream answers once the event is set."""
    answer = asyncio.Event()

    async def scenario(request: Request, exchange: Exchange) -> None:
        await answer.wait()
        await exchange.json(200, completion("seen"))

    async with scripted_upstream(scenario) as upstream, live_gateway(chat_settings(upstream.base_url), sinks=[records.append]) as live:
        yield live, upstream, answer


@pytest.mark.parametrize("at_once", [True, False])
async def test_what_a_client_asks_ahead_of_its_answer_is_left_to_be_sent_again(at_once: bool) -> None:
    records: list[RequestRecord] = []
    async with held(records) as (live, upstream, answer):
        reader, writer = await asyncio.open_connection("127.0.0.1", live.port)
        writer.write(request() + (request() if at_once else b""))
        while not upstream.asked:
            await asyncio.sleep(0.01)
        if not at_once:
            writer.write(request())
            await asyncio.sleep(0.05)
        answer.set()
        reply = await reader.read()
        writer.close()
        await all_gone(live)
    assert reply.count(b"HTTP/1.1 200 ") == 1
    assert b"connection: close" in reply
    assert json.loads(reply.partition(b"\r\n\r\n")[2])["choices"]
    assert (len(upstream.asked), [record.outcome for record in records]) == (1, ["ok"])


async def test_a_client_that_asks_ahead_and_leaves_is_missed_at_once() -> None:
    records: list[RequestRecord] = []
    async with held(records) as (live, upstream, _):
        _, writer = await asyncio.open_connection("127.0.0.1", live.port)
        writer.write(request() + request())
        while not upstream.asked:
            await asyncio.sleep(0.01)
        writer.close()
        await all_gone(live)
        while not upstream.left:
            await asyncio.sleep(0.01)
    assert (len(upstream.asked), [record.outcome for record in records]) == (1, ["client_left"])


@pytest.mark.parametrize("ahead", [b"G", b"GET /healthz HTTP/1.1\r\nhost"])
async def test_the_beginning_of_a_further_request_does_not_disturb_the_answer(ahead: bytes) -> None:
    async with held([]) as (live, upstream, answer):
        reader, writer = await asyncio.open_connection("127.0.0.1", live.port)
        writer.write(request() + ahead)
        while not upstream.asked:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.3)  # three times as long as a head may take
        answer.set()
        assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
        writer.close()


# -- slow to take -------------------------------------------------------------------------------------------------------


def small_socket(live: Live) -> socket.socket:
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(("127.0.0.1", live.port))
    connection.setblocking(False)
    return connection


async def endless(request: Request, exchange: Exchange) -> None:
    await exchange.start_stream()
    for _ in range(ENDLESS):
        await exchange.events(chunk("x" * 1000))


async def much(request: Request, exchange: Exchange) -> None:
    """More than anybody holds in a buffer, and then the end."""
    if not request.json.get("stream"):
        await exchange.json(200, completion("x" * 8_000_000))
        return
    await exchange.start_stream()
    await exchange.events(*(chunk("x" * 10_000) for _ in range(50)), chunk(finish="stop"), "[DONE]")
    await exchange.end_stream()


@pytest.mark.parametrize(("scenario", "stream"), [(endless, True), (much, True), (much, False)], ids=["endless", "ended", "whole"])
@pytest.mark.parametrize("loop", LOOPS, ids=["asyncio", "uvloop"])
def test_a_client_that_reads_nothing_any_more_is_cut_off(
    scenario: Callable[[Request, Exchange], asyncio.Future[None]], stream: bool, loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    records: list[RequestRecord] = []

    async def ask() -> None:
        async with scripted_upstream(scenario) as upstream, live_gateway(chat_settings(upstream.base_url), sinks=[records.append]) as live:
            connection = small_socket(live)
            try:
                await asyncio.get_running_loop().sock_sendall(connection, request(stream=stream))
                while not records:
                    await asyncio.sleep(0.01)
                await all_gone(live)
            finally:
                connection.close()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(ask())
    assert len(records) == 1


@pytest.mark.skipif(not hasattr(socket, "TCP_NOTSENT_LOWAT"), reason="this system has no such option")
async def test_the_kernel_holds_little_for_a_client_that_is_slow() -> None:
    async with live_gateway(image_settings()) as live:
        reader, writer = await asyncio.open_connection("127.0.0.1", live.port)
        writer.write(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
        await reader.readuntil(b"ok")
        (connection,) = live.server.server_state.connections
        accepted: socket.socket = connection.transport.get_extra_info("socket")
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) == UNSENT
        writer.close()


async def test_a_client_that_reads_slowly_and_without_a_pause_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_connection, "STALLED_S", 0.5)
    async with scripted_upstream(endless) as upstream, live_gateway(chat_settings(upstream.base_url)) as live:
        connection = small_socket(live)
        loop = asyncio.get_running_loop()
        try:
            await loop.sock_sendall(connection, request(stream=True))
            begun = loop.time()
            while loop.time() < begun + 2.0:  # four times as long as it may take nothing
                assert await loop.sock_recv(connection, 4096)
                await asyncio.sleep(0.01)
        finally:
            connection.close()
