"""Chat through a gateway that listens, with the OpenAI SDK and with bare HTTP."""

from __future__ import annotations

import asyncio
import gc
import json
import re
from typing import Any

import httpx
import openai
import pytest

from adapters.build import engine_specs
from gateway import client_stream
from gateway.client_stream import ClientStream
from gateway.departure import Departure
from gateway.http_protocol import Cycle
from tests.gateway.live import ScriptedRuntime, chat_settings, live_gateway, settings_of
from tests.scripted_upstream import Exchange, Request, answering, chunk, completion, failing, scripted_upstream

HELLO: list[Any] = [{"role": "user", "content": "Hello"}]
CHAT = "/v1/chat/completions"


async def stream_text(client: openai.AsyncOpenAI, **options: Any) -> str:
    stream = await client.chat.completions.create(model="m", messages=HELLO, stream=True, **options)
    return "".join([part.choices[0].delta.content or "" async for part in stream if part.choices])


async def test_an_answer_passes_streamed_and_whole() -> None:
    async with scripted_upstream(answering("Hel", "lo")) as upstream, live_gateway(chat_settings(upstream.base_url)) as live:
        async with live.sdk() as client:
            assert await stream_text(client, temperature=0.5, extra_body={"top_k": 7}) == "Hello"
            whole = await client.chat.completions.create(model="m", messages=HELLO)
        assert whole.choices[0].message.content == "Hello"
        assert whole.usage is not None
        assert whole.usage.total_tokens == 3
        sent = upstream.asked[0]
        options = {"stream": True, "stream_options": {"include_usage": True}, "temperature": 0.5, "top_k": 7}
        assert sent.json == {"model": "vendor/up0", "messages": HELLO, **options}
        assert sent.headers["authorization"] == "Bearer upstream-secret"


async def test_bytes_pass_untouched_and_the_reply_says_who_answered() -> None:
    async with scripted_upstream(answering("Hel", "lo")) as upstream, live_gateway(chat_settings(upstream.base_url)) as live:
        async with live.http() as http:
            reply = await http.post(
                CHAT, json={"model": "m", "messages": HELLO, "stream": True}, headers={"x-request-id": "mine-1", "traceparent": "x"}
            )
        frames = [chunk("", role="assistant"), chunk("Hel"), chunk("lo"), chunk(finish="stop")]
        expected = "".join(f"data: {json.dumps(frame, separators=(',', ':'))}\n\n" for frame in frames) + "data: [DONE]\n\n"
        assert reply.text == expected
        assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert reply.headers["x-request-id"] == "mine-1"
        assert reply.headers["x-tandem-upstream"] == "up0"
        assert upstream.asked[0].headers["x-request-id"].startswith("mine-1-")  # never the same twice: vLLM keys its engine by it
        assert "traceparent" not in upstream.asked[0].headers


async def test_a_request_without_an_id_gets_one_and_a_bad_one_is_replaced() -> None:
    async with (
        scripted_upstream(answering("x")) as upstream,
        live_gateway(chat_settings(upstream.base_url)) as live,
        live.http() as http,
    ):
        for given in (None, "has space", "x" * 200):
            headers = {"x-request-id": given} if given else {}
            reply = await http.post(CHAT, json={"model": "m", "messages": HELLO}, headers=headers)
            assert reply.headers["x-request-id"].startswith("req_")


@pytest.mark.parametrize("stream", [True, False])
async def test_the_next_deployment_answers_where_the_first_cannot(stream: bool) -> None:
    async with (
        scripted_upstream(failing(503, {"error": {"message": "down"}})) as down,
        scripted_upstream(answering("from the second")) as good,
        live_gateway(chat_settings(down.base_url, good.base_url)) as live,
        live.http() as http,
    ):
        reply = await http.post(CHAT, json={"model": "m", "messages": HELLO, "stream": stream})
        assert reply.status_code == 200
        assert "from the second" in reply.text
        assert reply.headers["x-tandem-upstream"] == "up1"
        assert (len(down.asked), len(good.asked)) == (1, 1)
        assert good.asked[0].json["model"] == "vendor/up1"


async def test_a_stream_that_fails_before_its_first_content_falls_back_and_leaves_no_trace() -> None:
    async def dies_early(request: Request, exchange: Exchange) -> None:
        await exchange.start_stream()
        await exchange.events(chunk("", role="assistant"))
        await exchange.events({"error": {"code": 502, "message": "provider died"}, "choices": []})

    async with (
        scripted_upstream(dies_early) as early,
        scripted_upstream(answering("good")) as good,
        live_gateway(chat_settings(early.base_url, good.base_url)) as live,
        live.sdk() as client,
    ):
        assert await stream_text(client) == "good"
        assert early.left == 1 or early.open_connections == 0


async def test_after_the_first_content_a_failure_is_one_error_event_and_the_end() -> None:
    async def dies_late(request: Request, exchange: Exchange) -> None:
        await exchange.start_stream()
        await exchange.events(chunk("partial"))
        exchange.cut()

    async with (
        scripted_upstream(dies_late) as late,
        scripted_upstream(answering("never")) as good,
        live_gateway(chat_settings(late.base_url, good.base_url)) as live,
        live.http() as http,
    ):
        reply = await http.post(CHAT, json={"model": "m", "messages": HELLO, "stream": True})
        assert reply.status_code == 200
        frames = reply.text.strip().split("\n\n")
        assert json.loads(frames[0][6:])["choices"][0]["delta"]["content"] == "partial"
        assert json.loads(frames[1][6:]) == {
            "error": {
                "message": "upstream 'up0' closed the connection in the middle of its reply",
                "type": "api_error",
                "param": None,
                "code": "upstream_disconnected",
            }
        }
        assert len(frames) == 2
        assert good.asked == []
        async with live.sdk() as client:
            with pytest.raises(openai.APIError, match="in the middle of its reply"):
                await stream_text(client)


async def test_the_last_error_names_what_was_tried_before() -> None:
    async with (
        scripted_upstream(failing(503, {"error": {"message": "down"}})) as down,
        scripted_upstream(
            failing(429, {"error": {"message": "slow", "code": "rate_limit_exceeded"}}, retry_after="9", x_ratelimit_reset="7")
        ) as slow,
        live_gateway(chat_settings(down.base_url, slow.base_url)) as live,
        live.sdk() as client,
    ):
        for stream in (True, False):
            with pytest.raises(openai.RateLimitError, match=r"slow \(tried before: down\)") as caught:
                await client.chat.completions.create(model="m", messages=HELLO, stream=stream)
            assert caught.value.response.headers["retry-after"] == "9"
            assert caught.value.response.headers["x-ratelimit-reset"] == "7"
            assert caught.value.code == "rate_limit_exceeded"


async def test_a_client_fault_is_not_tried_elsewhere() -> None:
    error = {"error": {"message": "temperature too high", "type": "invalid_request_error", "param": "temperature", "code": "x"}}
    async with (
        scripted_upstream(failing(400, error)) as strict,
        scripted_upstream(answering("never")) as good,
        live_gateway(chat_settings(strict.base_url, good.base_url)) as live,
        live.sdk() as client,
    ):
        with pytest.raises(openai.BadRequestError) as caught:
            await client.chat.completions.create(model="m", messages=HELLO, temperature=99)
        assert (caught.value.param, caught.value.code, good.asked) == ("temperature", "x", [])


async def test_our_own_refused_key_is_502_and_not_worth_a_retry() -> None:
    async with (
        scripted_upstream(failing(401, {"error": {"message": "bad key upstream-secret"}})) as upstream,
        live_gateway(chat_settings(upstream.base_url)) as live,
        live.sdk(max_retries=3) as client,
    ):
        with pytest.raises(openai.InternalServerError) as caught:
            await client.chat.completions.create(model="m", messages=HELLO)
        assert caught.value.code == "upstream_auth_failed"
        assert "upstream-secret" not in str(caught.value)
        assert len(upstream.asked) == 1


@pytest.mark.parametrize(("stream", "begun"), [(True, True), (True, False), (False, False)])
async def test_a_client_that_leaves_stops_the_upstream_within_100_ms(stream: bool, begun: bool) -> None:
    async def scenario(request: Request, exchange: Exchange) -> None:
        if begun:
            await exchange.start_stream()
            await exchange.events(chunk("one"))
        await exchange.until_left()

    async with scripted_upstream(scenario) as upstream, live_gateway(chat_settings(upstream.base_url)) as live:
        http = live.http()
        asking = asyncio.create_task(_open_and_wait(http, stream))
        while not upstream.asked:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.02)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await http.aclose()
        async with asyncio.timeout(0.1):
            while upstream.open_connections:
                await asyncio.sleep(0.001)
        assert upstream.left == 1


async def _open_and_wait(http: httpx.AsyncClient, stream: bool) -> None:
    async with http.stream("POST", CHAT, json={"model": "m", "messages": HELLO, "stream": stream}) as reply:
        async for _ in reply.aiter_bytes():
            pass
        await asyncio.sleep(60)


async def test_nothing_of_an_answered_request_waits_for_the_collector() -> None:
    async with (
        scripted_upstream(answering("Hello")) as upstream,
        live_gateway(chat_settings(upstream.base_url)) as live,
        live.http() as http,
    ):
        gc.collect()
        gc.disable()
        try:
            for stream in (True, False):
                await http.post(CHAT, json={"model": "m", "messages": HELLO, "stream": stream})
            while live.server.server_state.tasks:
                await asyncio.sleep(0.001)
            # type(), not isinstance(): that would ask every object of every library for its class, and some warn when asked
            kept = [thing for thing in gc.get_objects() if type(thing) in (Departure, ClientStream, Cycle)]
            assert [type(thing).__name__ for thing in kept] == ["Cycle"]  # of the connection that is still open
        finally:
            gc.enable()


async def test_a_slow_client_holds_its_own_upstream_back_and_loses_nothing() -> None:
    text, count, sent = "x" * 10_000, 1500, 0

    async def scenario(request: Request, exchange: Exchange) -> None:
        nonlocal sent
        await exchange.start_stream()
        for number in range(count):
            await exchange.events(chunk(f"{number};{text}"))
            sent += 1
        await exchange.events(chunk(finish="stop"), "[DONE]")
        await exchange.end_stream()

    async with scripted_upstream(scenario) as upstream, live_gateway(chat_settings(upstream.base_url)) as live:
        reader, writer = await asyncio.open_connection("127.0.0.1", live.port, limit=1 << 16)
        body = json.dumps({"model": "m", "messages": HELLO, "stream": True}).encode()
        head = (
            f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer sk-test\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        writer.write(head.encode() + body)
        await asyncio.sleep(0.5)
        assert sent < count
        stopped_at = sent
        await asyncio.sleep(0.2)
        assert sent == stopped_at
        received = await reader.read(-1)
        assert [int(number) for number in re.findall(rb'"content":"(\d+);', received)] == list(range(count))
        assert b"[DONE]" in received
        writer.close()
        await writer.wait_closed()


async def test_comments_keep_a_waiting_client_awake_and_a_late_failure_is_an_event(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_stream, "HOLD_S", 0.05)
    monkeypatch.setattr(client_stream, "HEARTBEAT_S", 0.05)

    give_up = asyncio.Event()

    async def scenario(request: Request, exchange: Exchange) -> None:
        await give_up.wait()
        await exchange.json(503, {"error": {"message": "too late"}})

    async with (
        scripted_upstream(scenario) as upstream,
        live_gateway(chat_settings(upstream.base_url)) as live,
        live.http() as http,
        http.stream("POST", CHAT, json={"model": "m", "messages": HELLO, "stream": True}) as reply,
    ):
        received = ""
        async for part in reply.aiter_text():
            received += part
            if received.count(": keep-alive\n\n") >= 3:
                give_up.set()
        assert reply.status_code == 200
        *comments, error = received.strip().split("\n\n")
        assert set(comments) == {": keep-alive"}
        assert json.loads(error[6:])["error"]["message"] == "too late"


async def test_a_stream_that_waits_for_an_engine_hears_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_stream, "HOLD_S", 0.02)
    monkeypatch.setattr(client_stream, "NEWS_S", 0.01)
    settings = settings_of([{"name": "m", "kind": "chat", "deployments": [{"upstream": "here", "model": "x"}]}], {"here": {"kind": "vllm"}})
    async with scripted_upstream(answering("ready")) as upstream:
        runtime = ScriptedRuntime(engine_specs(settings), {"here:x": upstream.port})
        runtime.loading = asyncio.Event()
        async with (
            live_gateway(settings, runtime) as live,
            live.http() as http,
            http.stream("POST", CHAT, json={"model": "m", "messages": HELLO, "stream": True}) as reply,
        ):
            received = ""
            async for part in reply.aiter_text():
                received += part
                if ": loading 40% (reading weights)\n\n" in received:
                    runtime.stage = "reading more"
                if ": loading 40% (reading more)\n\n" in received:
                    runtime.loading.set()
    comments = [line for line in received.split("\n") if line.startswith(":")]
    assert comments == [": loading 40% (reading weights)", ": loading 40% (reading more)"], "each piece of news once"
    assert '"content":"ready"' in received
    assert received.endswith("data: [DONE]\n\n")


async def test_a_late_first_deployment_can_still_be_replaced_by_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_stream, "HOLD_S", 0.02)

    async def scenario(request: Request, exchange: Exchange) -> None:
        await asyncio.sleep(0.2)
        exchange.cut()

    async with (
        scripted_upstream(scenario) as slow,
        scripted_upstream(answering("good")) as good,
        live_gateway(chat_settings(slow.base_url, good.base_url)) as live,
        live.sdk() as client,
    ):
        assert await stream_text(client) == "good"


async def test_reasoning_has_both_names() -> None:
    async def scenario(request: Request, exchange: Exchange) -> None:
        if not request.json.get("stream"):
            await exchange.json(200, completion("4", reasoning="2 and 2"))
            return
        await exchange.start_stream()
        await exchange.events(chunk(reasoning="2 and 2"), chunk("4"), chunk(finish="stop"), "[DONE]")
        await exchange.end_stream()

    async with (
        scripted_upstream(scenario) as upstream,
        live_gateway(chat_settings(upstream.base_url)) as live,
        live.sdk() as client,
    ):
        whole = (await client.chat.completions.create(model="m", messages=HELLO)).choices[0].message
        assert whole.model_extra is not None
        assert whole.model_extra["reasoning"] == whole.model_extra["reasoning_content"] == "2 and 2"
        stream = await client.chat.completions.create(model="m", messages=HELLO, stream=True)
        first = (await anext(aiter(stream))).choices[0].delta
        assert first.model_extra is not None
        assert first.model_extra["reasoning"] == first.model_extra["reasoning_content"] == "2 and 2"
        await stream.close()


async def test_a_local_engine_is_leased_for_the_request_and_told_whether_to_think() -> None:
    model = {"name": "m", "kind": "chat", "reasoning": True, "deployments": [{"upstream": "here", "model": "Org/M"}]}
    settings = settings_of([model], {"here": {"kind": "vllm"}})
    async with scripted_upstream(answering("hi")) as engine:
        runtime = ScriptedRuntime(engine_specs(settings), {"here:Org/M": engine.port})
        async with live_gateway(settings, runtime) as live, live.sdk() as client:
            assert await stream_text(client) == "hi"
            assert await stream_text(client, reasoning_effort="none") == "hi"
            assert runtime.leases == 0
        assert [asked.json["chat_template_kwargs"] for asked in engine.asked] == [{"enable_thinking": True}, {"enable_thinking": False}]
        assert "reasoning_effort" not in engine.asked[1].json
        assert engine.asked[0].headers["authorization"] == "Bearer engine-key"


TRACE = f"00-{'a' * 32}-{'b' * 16}-01"


@pytest.mark.parametrize(("sent", "arrives"), [(TRACE, TRACE), ("nonsense", None), (f"{TRACE}-more", None)])
@pytest.mark.parametrize("stream", [True, False])
async def test_an_engine_of_ours_is_told_the_clients_trace(sent: str, arrives: str | None, stream: bool) -> None:
    model = {"name": "m", "kind": "chat", "deployments": [{"upstream": "here", "model": "Org/M"}]}
    settings = settings_of([model], {"here": {"kind": "vllm"}})
    async with scripted_upstream(answering("hi")) as engine:
        runtime = ScriptedRuntime(engine_specs(settings), {"here:Org/M": engine.port})
        async with live_gateway(settings, runtime) as live, live.http() as http:
            body = {"model": "m", "messages": HELLO, "stream": stream}
            assert (await http.post(CHAT, json=body, headers={"traceparent": sent, "x-request-id": "r"})).status_code == 200
    assert engine.asked[0].headers.get("traceparent") == arrives
    assert engine.asked[0].headers["x-request-id"].startswith("r-")


async def test_nobody_else_is_told_the_clients_trace() -> None:
    async with scripted_upstream(answering("hi")) as upstream, live_gateway(chat_settings(upstream.base_url)) as live, live.http() as http:
        await http.post(CHAT, json={"model": "m", "messages": HELLO}, headers={"traceparent": TRACE})
    assert "traceparent" not in upstream.asked[0].headers


async def test_a_local_engine_that_does_not_start_falls_back_to_the_hosted_one_or_is_503() -> None:
    local = {"upstream": "here", "model": "Org/M"}
    hosted = {"upstream": "away", "model": "org/m"}
    models = [
        {"name": "m", "kind": "chat", "deployments": [local, hosted]},
        {"name": "only-local", "kind": "chat", "deployments": [local]},
    ]
    async with scripted_upstream(answering("hosted")) as upstream:
        settings = settings_of(models, {"here": {"kind": "vllm"}, "away": {"kind": "openai", "base_url": upstream.base_url}})
        runtime = ScriptedRuntime(engine_specs(settings), {"here:Org/M": 0})
        async with live_gateway(settings, runtime) as live, live.sdk() as client:
            assert await stream_text(client) == "hosted"
            with pytest.raises(openai.InternalServerError, match="no such checkpoint") as caught:
                await client.chat.completions.create(model="only-local", messages=HELLO)
            assert caught.value.status_code == 503
            assert caught.value.response.headers["retry-after"] == "3"


async def test_stopping_the_gateway_ends_a_stream_with_an_error_event() -> None:
    async def scenario(request: Request, exchange: Exchange) -> None:
        await exchange.start_stream()
        await exchange.events(chunk("one"))
        await exchange.until_left()

    async with scripted_upstream(scenario) as upstream, live_gateway(chat_settings(upstream.base_url)) as live, live.http() as http:
        async with http.stream("POST", CHAT, json={"model": "m", "messages": HELLO, "stream": True}) as reply:
            parts = reply.aiter_text()
            received = await anext(parts)
            live.server.should_exit = True
            async for part in parts:
                received += part
        assert json.loads(received.strip().split("\n\n")[-1][6:])["error"]["code"] == "shutting_down"


async def test_a_client_that_offers_http_2_is_answered_in_http_1() -> None:
    async with scripted_upstream(answering("ok")) as upstream, live_gateway(chat_settings(upstream.base_url)) as live, live.http() as http:
        offer = {"connection": "Upgrade, HTTP2-Settings", "upgrade": "h2c", "http2-settings": "AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA"}
        for _ in range(2):
            reply = await http.post(CHAT, json={"model": "m", "messages": HELLO}, headers=offer)
            assert (reply.status_code, reply.http_version) == (200, "HTTP/1.1")
        assert upstream.asked[0].json["messages"] == HELLO
