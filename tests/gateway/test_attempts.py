"""Attempts through a gateway that listens: who is asked, how often, after how long, and what the client is told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from gateway.record import RequestRecord
from tests.gateway.live import Live, chat_settings, live_gateway, settings_of
from tests.scripted_upstream import Exchange, Request, Scenario, answering, chunk, completion, failing, scripted_upstream

HELLO: list[Any] = [{"role": "user", "content": "Hello"}]
CHAT = "/v1/chat/completions"
DOWN = {"error": {"message": "down"}}


def in_turn(*scenarios: Scenario) -> Scenario:
    """One scenario for each request; the last one for all that follow."""
    left: Iterator[Scenario] = iter(scenarios)
    now = next(left)

    async def scenario(request: Request, exchange: Exchange) -> None:
        nonlocal now
        answer, now = now, next(left, now)
        await answer(request, exchange)

    return scenario


async def ask(live: Live, *, model: str = "m", **headers: str) -> openai.types.chat.ChatCompletion:
    async with live.sdk() as client:
        return await client.chat.completions.create(model=model, messages=HELLO, extra_headers=headers)


@pytest.mark.parametrize("stream", [True, False])
async def test_one_deployment_is_asked_again_after_a_passing_failure(stream: bool) -> None:
    flaky = in_turn(failing(503, DOWN, retry_after="0.01"), failing(429, DOWN, retry_after_ms="5"), answering("at last"))
    async with (
        scripted_upstream(flaky) as upstream,
        live_gateway(chat_settings(upstream.base_url, model={"routing": {"max_attempts": 3}})) as live,
        live.http() as http,
    ):
        reply = await http.post(CHAT, json={"model": "m", "messages": HELLO, "stream": stream})
        assert (reply.status_code, len(upstream.asked)) == (200, 3)
        assert "at last" in reply.text


async def test_the_budget_of_attempts_is_one_for_all_deployments_and_the_sdk_is_told_not_to_multiply_it() -> None:
    quick = failing(500, DOWN, retry_after_ms="1")
    async with (
        scripted_upstream(quick) as one,
        scripted_upstream(failing(500, DOWN)) as two,
        live_gateway(chat_settings(one.base_url, two.base_url, model={"routing": {"max_attempts": 3}})) as live,
        live.sdk(max_retries=2) as client,
    ):
        with pytest.raises(openai.InternalServerError, match=r"tried before: down; down") as caught:
            await client.chat.completions.create(model="m", messages=HELLO)
        assert caught.value.response.headers["x-should-retry"] == "false"
        assert len(one.asked) + len(two.asked) == 3


async def test_a_wait_beyond_the_budget_is_left_to_the_client() -> None:
    async with (
        scripted_upstream(failing(429, DOWN, retry_after="60")) as upstream,
        live_gateway(chat_settings(upstream.base_url, model={"routing": {"max_wait_s": 2}})) as live,
    ):
        with pytest.raises(openai.RateLimitError) as caught:
            await ask(live)
        assert caught.value.response.headers["retry-after"] == "60"
        assert "x-should-retry" not in caught.value.response.headers
        assert len(upstream.asked) == 1


async def test_what_the_sdk_tries_again_by_itself_is_not_tried_again_here() -> None:
    async with (
        scripted_upstream(failing(500, DOWN, retry_after_ms="1")) as upstream,
        live_gateway(chat_settings(upstream.base_url, model={"routing": {}})) as live,
    ):
        with pytest.raises(openai.InternalServerError):
            await ask(live, **{"x-stainless-retry-count": "1"})
        assert len(upstream.asked) == 1


async def test_a_client_that_leaves_during_a_wait_ends_it() -> None:
    async with (
        scripted_upstream(failing(503, DOWN, retry_after="3")) as upstream,
        live_gateway(chat_settings(upstream.base_url, model={"routing": {}})) as live,
    ):
        asking = asyncio.create_task(ask(live))
        while not upstream.asked or upstream.open_connections:
            await asyncio.sleep(0.001)
            if upstream.asked and live.server.server_state.tasks:
                break
        await asyncio.sleep(0.05)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        async with asyncio.timeout(0.1):
            while live.server.server_state.tasks:
                await asyncio.sleep(0.001)
        assert len(upstream.asked) == 1


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            {"message": "This model's maximum context length is 100 tokens", "type": "BadRequestError", "code": 400},
            "context_length_exceeded",
        ),
        ({"message": "too long", "type": "invalid_request_error", "code": "context_length_exceeded"}, "context_length_exceeded"),
        ({"message": "not allowed", "code": "content_filter"}, "content_filter"),
        ({"message": "flagged", "code": 403, "metadata": {"reasons": ["violence"], "flagged_input": "x"}}, "content_filter"),
    ],
)
async def test_a_refusal_goes_to_the_deployment_that_is_there_for_it(error: dict[str, Any], reason: str) -> None:
    status = 403 if error.get("code") == 403 else 400
    async with (
        scripted_upstream(failing(status, {"error": error})) as first,
        scripted_upstream(answering("never asked")) as second,
        scripted_upstream(answering("the special one")) as special,
    ):
        settings = chat_settings(first.base_url, second.base_url, special.base_url)
        model = settings.models[0].model_dump()
        model["deployments"][2]["only_after"] = [reason]
        given = settings_of([model], {name: spec.model_dump() | {"api_key": "k"} for name, spec in settings.upstreams.items()})
        async with live_gateway(given) as live:
            answer = await ask(live)
            assert answer.choices[0].message.content == "the special one"
            assert [len(upstream.asked) for upstream in (first, second, special)] == [1, 0, 1]


async def test_the_special_deployment_is_asked_once_and_for_its_reason_only() -> None:
    too_long = failing(400, {"error": {"message": "too long", "code": "context_length_exceeded"}})
    async with (
        scripted_upstream(in_turn(failing(400, {"error": {"message": "bad", "param": "x"}}), too_long)) as first,
        scripted_upstream(too_long) as special,
    ):
        settings = chat_settings(first.base_url, special.base_url)
        model = settings.models[0].model_dump()
        model["deployments"][1]["only_after"] = ["context_length_exceeded"]
        given = settings_of([model], {name: spec.model_dump() | {"api_key": "k"} for name, spec in settings.upstreams.items()})
        async with live_gateway(given) as live:
            with pytest.raises(openai.BadRequestError, match="bad"):
                await ask(live)
            assert len(special.asked) == 0
            with pytest.raises(openai.BadRequestError, match="too long"):
                await ask(live)
            assert (len(first.asked), len(special.asked)) == (2, 1)


async def test_a_deployment_that_fails_again_and_again_is_left_alone_and_then_tried_by_one_request() -> None:
    routing = {"breaker_failures": 3, "breaker_open_s": 2, "max_wait_s": 0}
    flaky = in_turn(*[failing(500, DOWN)] * 3, answering("well again"))
    async with scripted_upstream(flaky) as upstream, live_gateway(chat_settings(upstream.base_url, model={"routing": routing})) as live:
        for _ in range(3):
            with pytest.raises(openai.InternalServerError, match="down"):
                await ask(live)
        ((_, _, condition),) = live.app.router.conditions()
        with pytest.raises(openai.InternalServerError, match="left alone for now") as caught:
            await ask(live)
        assert (caught.value.status_code, caught.value.code, len(upstream.asked)) == (503, "circuit_open", 3)
        assert caught.value.response.headers["retry-after"] in ("1", "2")
        assert (await _deployment(live))["breaker"] == "open"
        await asyncio.sleep(2)
        assert (await _deployment(live))["breaker"] == "half_open"
        answer = await ask(live)
        assert answer.choices[0].message.content == "well again"
        assert (await _deployment(live))["breaker"] == "closed"
        assert condition.in_flight == 0


async def _deployment(live: Live) -> dict[str, Any]:
    async with live.http() as http:
        deployment: dict[str, Any] = (await http.get("/v1/models")).json()["data"][0]["tandem"]["deployments"][0]
        return deployment


async def test_a_client_fault_does_not_open_the_breaker() -> None:
    routing = {"breaker_failures": 1}
    bad = failing(400, {"error": {"message": "bad"}})
    async with scripted_upstream(bad) as upstream, live_gateway(chat_settings(upstream.base_url, model={"routing": routing})) as live:
        for _ in range(3):
            with pytest.raises(openai.BadRequestError):
                await ask(live)
        assert len(upstream.asked) == 3


async def test_the_same_session_meets_the_same_deployment() -> None:
    async with scripted_upstream(answering("a")) as one, scripted_upstream(answering("b")) as two:
        settings = chat_settings(one.base_url, two.base_url, model={"routing": {"strategy": "session"}})
        async with live_gateway(settings) as live:
            for session in range(12):
                before = (len(one.asked), len(two.asked))
                for _ in range(3):
                    await ask(live, **{"x-session-id": f"s{session}"})
                assert sorted((len(one.asked) - before[0], len(two.asked) - before[1])) == [0, 3]
            assert one.asked
            assert two.asked


async def test_requests_go_where_least_is_in_flight() -> None:
    waiting = asyncio.Event()

    async def slow(request: Request, exchange: Exchange) -> None:
        await waiting.wait()
        await exchange.json(200, completion("x"))

    async with scripted_upstream(slow) as one, scripted_upstream(slow) as two:
        settings = chat_settings(one.base_url, two.base_url, model={"routing": {"strategy": "least_in_flight"}})
        async with live_gateway(settings) as live:
            asking = [asyncio.create_task(ask(live)) for _ in range(10)]
            while len(one.asked) + len(two.asked) < 10:
                await asyncio.sleep(0.002)
            assert (len(one.asked), len(two.asked)) == (5, 5)
            waiting.set()
            await asyncio.gather(*asking)
            assert [condition.in_flight for _, _, condition in live.app.router.conditions()] == [0, 0]


async def test_a_name_that_begins_as_a_wildcard_passes_the_rest_to_the_upstream() -> None:
    async with scripted_upstream(answering("x")) as upstream:
        models = [
            {"name": "lab/*", "kind": "chat", "deployments": [{"upstream": "up", "model": "vendor/*"}]},
            {"name": "lab/known", "kind": "chat", "deployments": [{"upstream": "up", "model": "its-own"}]},
            {"name": "lab/big/*", "kind": "chat", "deployments": [{"upstream": "up", "model": "*"}]},
        ]
        async with live_gateway(settings_of(models, {"up": {"kind": "openai", "base_url": upstream.base_url}})) as live:
            for name in ("lab/a/b:free", "lab/known", "lab/big/c"):
                await ask(live, model=name)
            assert [request.json["model"] for request in upstream.asked] == ["vendor/a/b:free", "its-own", "c"]
            for name in ("lab/", "lab/*", "other"):
                with pytest.raises(openai.NotFoundError, match="does not exist"):
                    await ask(live, model=name)
            async with live.sdk() as client:
                assert [model.id async for model in await client.models.list()] == ["lab/known"]
                assert (await client.models.retrieve("lab/a/b:free")).id == "lab/a/b:free"


USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5, "prompt_tokens_details": {"cached_tokens": 1}, "cost": 0.25}


@pytest.mark.parametrize("asked", [True, False])
@pytest.mark.parametrize("with_choices", [True, False])
async def test_usage_of_a_stream_is_always_known_here_and_shown_to_whom_asks(asked: bool, with_choices: bool) -> None:
    async def scenario(request: Request, exchange: Exchange) -> None:
        await exchange.start_stream()
        choices = chunk("")["choices"] if with_choices else []
        await exchange.events(chunk("Hi"), chunk(finish="stop"), chunk() | {"choices": choices, "usage": USAGE}, "[DONE]")
        await exchange.end_stream()

    records: list[RequestRecord] = []
    async with scripted_upstream(scenario) as upstream, live_gateway(chat_settings(upstream.base_url), sinks=[records.append]) as live:
        options = {"stream_options": {"include_usage": True}} if asked else {}
        async with live.http() as http:
            reply = await http.post(CHAT, json={"model": "m", "messages": HELLO, "stream": True, **options})
        frames = [json.loads(frame[6:]) for frame in reply.text.strip().split("\n\n")[:-1]]
        assert [frame["usage"] for frame in frames if "usage" in frame] == ([USAGE] if asked else [])
        assert len(frames) == (3 if asked or with_choices else 2)
        assert upstream.asked[0].json["stream_options"] == {"include_usage": True}
    (record,) = records
    assert record.usage is not None
    assert (record.usage.prompt_tokens, record.usage.completion_tokens, record.usage.cached_tokens) == (3, 2, 1)
    assert record.usage.cost_usd == 0.25


async def test_an_upstream_that_refuses_stream_options_is_not_asked_for_usage() -> None:
    async with (
        scripted_upstream(answering("x")) as upstream,
        live_gateway(chat_settings(upstream.base_url, upstream={"usage_in_streams": False})) as live,
        live.http() as http,
    ):
        await http.post(CHAT, json={"model": "m", "messages": HELLO, "stream": True})
        assert "stream_options" not in upstream.asked[0].json


async def test_every_request_leaves_one_record_that_says_how_it_ended() -> None:
    records: list[RequestRecord] = []
    async with (
        scripted_upstream(failing(503, DOWN)) as down,
        scripted_upstream(answering("Hel", "lo")) as good,
        live_gateway(chat_settings(down.base_url, good.base_url), sinks=[records.append]) as live,
        live.http() as http,
    ):
        await http.post(CHAT, json={"model": "m", "messages": HELLO, "stream": True})
        await http.post(CHAT, json={"model": "m", "messages": HELLO})
        await http.post(CHAT, json={"model": "unknown", "messages": HELLO})
        await http.post(CHAT, content=b"not json")
    streamed, whole, unknown, garbage = records
    assert [(a.upstream, a.model, a.error) for a in streamed.attempts] == [
        ("up0", "vendor/up0", "upstream_http_503"),
        ("up1", "vendor/up1", None),
    ]
    assert (streamed.outcome, streamed.status, streamed.model, streamed.upstream, streamed.stream) == ("ok", 200, "m", "up1", True)
    assert streamed.first_token_s is not None
    assert 0 < streamed.first_token_s < streamed.duration_s
    assert streamed.chunks >= 3
    assert 0 < streamed.upstream_s < streamed.duration_s
    assert whole.usage is not None
    assert (whole.usage.total_tokens, whole.outcome, whole.stream) == (3, "ok", False)
    assert (unknown.outcome, unknown.status, unknown.error_code, unknown.attempts) == ("failed", 404, "model_not_found", [])
    assert (garbage.status, garbage.error_code) == (400, "invalid_json")


async def test_a_record_says_that_the_client_has_left() -> None:
    records: list[RequestRecord] = []

    async def scenario(request: Request, exchange: Exchange) -> None:
        await exchange.start_stream()
        await exchange.events(chunk("one"))
        await exchange.until_left()

    async with scripted_upstream(scenario) as upstream, live_gateway(chat_settings(upstream.base_url), sinks=[records.append]) as live:
        async with live.sdk() as client:
            stream = await client.chat.completions.create(model="m", messages=HELLO, stream=True)
            await anext(aiter(stream))
            await stream.close()
        while not records:
            await asyncio.sleep(0.001)
    (record,) = records
    assert (record.outcome, record.status, record.error_code, record.attempts[0].error) == ("client_left", 200, None, "cancelled")


async def waits(request: Request, exchange: Exchange) -> None:
    await exchange.until_left()


@pytest.mark.parametrize("header", ["x-stainless-read-timeout", "x-stainless-timeout"])
async def test_a_whole_answer_is_not_made_for_longer_than_its_client_waits(header: str) -> None:
    records: list[RequestRecord] = []
    async with (
        scripted_upstream(waits) as upstream,
        live_gateway(chat_settings(upstream.base_url), sinks=[records.append]) as live,
    ):
        with pytest.raises(openai.InternalServerError, match=r"within the 0\.2 s that the client waits") as caught:
            await ask(live, **{header: "0.2"})
        while not upstream.left:
            await asyncio.sleep(0.001)
    assert caught.value.status_code == 504
    assert [(record.outcome, record.error_code) for record in records] == [("failed", "request_timeout")]


@pytest.mark.parametrize("value", ["", "nan", "inf", "-1", "0", "soon"])
async def test_a_wait_that_is_none_bounds_nothing(value: str) -> None:
    async with scripted_upstream(answering("yes")) as upstream, live_gateway(chat_settings(upstream.base_url)) as live:
        assert (await ask(live, **{"x-stainless-read-timeout": value})).choices[0].message.content == "yes"


async def test_a_stream_goes_on_for_longer_than_its_client_waits_for_one_piece_of_it() -> None:
    async def scenario(request: Request, exchange: Exchange) -> None:
        await exchange.start_stream()
        await exchange.events(chunk("one"))
        await asyncio.sleep(0.3)
        await exchange.events(chunk("two"), chunk(finish="stop"), "[DONE]")
        await exchange.end_stream()

    async with scripted_upstream(scenario) as upstream, live_gateway(chat_settings(upstream.base_url)) as live, live.http() as http:
        body = {"model": "m", "messages": HELLO, "stream": True}
        reply = await http.post(CHAT, json=body, headers={"x-stainless-read-timeout": "0.2"})
    assert reply.text.endswith("data: [DONE]\n\n")
    assert "error" not in reply.text


async def test_a_retry_that_its_client_would_not_live_to_see_is_not_waited_for() -> None:
    async with (
        scripted_upstream(failing(503, DOWN, retry_after="5")) as upstream,
        live_gateway(chat_settings(upstream.base_url, model={"routing": {"max_wait_s": 60}})) as live,
    ):
        with pytest.raises(openai.InternalServerError, match="down") as caught:
            await ask(live, **{"x-stainless-read-timeout": "4"})
        assert caught.value.response.headers["retry-after"] == "5"
        assert len(upstream.asked) == 1


async def test_the_sdk_says_how_long_it_waits() -> None:
    async with (
        scripted_upstream(answering("yes")) as upstream,
        openai.AsyncOpenAI(base_url=upstream.base_url, api_key="x", timeout=7, max_retries=0) as client,
    ):
        await client.chat.completions.create(model="m", messages=HELLO)
    assert float(upstream.asked[0].headers["x-stainless-read-timeout"]) == 7
