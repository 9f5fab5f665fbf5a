"""A body of 10 MB, pictures in it: what the upstream gets of it, and what others notice of it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from adapters import openai_compatible, rewrite
from adapters.connection import UpstreamConnection
from gateway import chat
from tests.gateway.live import KEY, Live, chat_settings, live_gateway
from tests.scripted_upstream import Exchange, Request, chunk, completion, scripted_upstream

PICTURE = "data:image/png;base64," + "iVBORw0KGgo" * 240_000  # 2.6 MB
# Spaces, escapes and an order of keys that no serializer would choose: the bytes tell whether one has been at work.
BODY = (
    b'{ "temperature" : 1.0e0,\n "messages":[{"role":"user","content":[{"type":"text","text":"caf\\u00e9 \\/ x"}'
    + b"".join(b', {"type":"image_url","image_url":{"url":"%s"}}' % PICTURE.encode() for _ in range(4))
    + b']}] , "model" : "m" }'
)


def request_with(body: bytes) -> bytes:
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n"
    return f"{head}content-length: {len(body)}\r\nconnection: close\r\n\r\n".encode() + body


async def answer_to(live: Live, body: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", live.port)
    writer.write(request_with(body))
    await writer.drain()
    reply = await reader.read()
    writer.close()
    return reply


def refuse_to_serialize(document: object) -> bytes:
    raise AssertionError("the body was serialized again")


async def test_the_upstream_gets_the_clients_bytes_but_for_the_models_name(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(request: Request, exchange: Exchange) -> None:
        await exchange.json(200, completion("seen"))

    monkeypatch.setattr(rewrite, "_dumps", refuse_to_serialize)
    async with scripted_upstream(scenario) as upstream, live_gateway(chat_settings(upstream.base_url)) as live:
        reply = await answer_to(live, BODY)
        assert reply.startswith(b"HTTP/1.1 200"), reply[:500]
        assert len(BODY) > 10_000_000
        # == in two steps: a difference of 10 MB is not to be printed
        same = upstream.asked[0].body == BODY.replace(b'"model" : "m"', b'"model":"vendor/up0"')
        assert same


async def test_each_step_over_a_large_body_has_a_turn_of_the_loop_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Together they would hold every other stream up for as long as all of them take."""
    turns = 0
    steps: list[int] = []

    def count() -> None:
        nonlocal turns
        turns += 1
        asyncio.get_running_loop().call_soon(count)

    def noted(module: object, name: str) -> None:
        step = getattr(module, name)

        def noting(*arguments: Any) -> Any:
            steps.append(turns)
            return step(*arguments)

        monkeypatch.setattr(module, name, noting)

    async def scenario(request: Request, exchange: Exchange) -> None:
        await exchange.json(200, completion("seen"))

    noted(chat, "parse")
    noted(openai_compatible, "rewrite")
    noted(UpstreamConnection, "exchange")
    async with scripted_upstream(scenario) as upstream, live_gateway(chat_settings(upstream.base_url)) as live:
        await answer_to(live, BODY.replace(PICTURE.encode(), b""))  # a connection to take from the pool: nothing else waits
        steps.clear()
        asyncio.get_running_loop().call_soon(count)
        reply = await answer_to(live, BODY)
    assert reply.startswith(b"HTTP/1.1 200"), reply[:500]
    assert len(steps) == len(set(steps)) == 3


async def test_a_stream_goes_on_while_a_large_body_comes_in_and_goes_out() -> None:
    """The stream's next event is sent when the last has arrived, so each arrival counts a turn that the large body has left it."""
    arrived = asyncio.Event()

    async def scenario(request: Request, exchange: Exchange) -> None:
        if not request.json.get("stream"):
            await exchange.json(200, completion("seen"))
            return
        await exchange.start_stream()
        while True:
            arrived.clear()
            await exchange.events(chunk("one"))
            await arrived.wait()

    async with scripted_upstream(scenario) as upstream, live_gateway(chat_settings(upstream.base_url)) as live:
        counted = 0
        begun = asyncio.Event()

        async def follow() -> None:
            nonlocal counted
            reader, writer = await asyncio.open_connection("127.0.0.1", live.port)
            document = {"model": "m", "messages": [{"role": "user", "content": "x"}], "stream": True}
            writer.write(request_with(json.dumps(document).encode()))
            try:
                while True:
                    await reader.readuntil(b'"one"')
                    counted += 1
                    arrived.set()
                    begun.set()
            finally:
                writer.close()

        following = asyncio.create_task(follow())
        await begun.wait()
        before = counted
        reply = await answer_to(live, BODY)
        between = counted - before
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
    assert reply.startswith(b"HTTP/1.1 200"), reply[:500]
    assert between >= 10
