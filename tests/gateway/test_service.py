"""Everything at once: keys, limits, usage, budgets, metrics around real requests over HTTP, and what is left of them afterwards."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from adapters.build import engine_specs
from config.schema import Settings
from gateway.api_key import NewKey
from gateway.auth import KeyRing, load_or_create_keys
from tests.gateway.live import IMAGE_MODEL, KEY, Live, ScriptedRuntime, chat_settings, settings_of, whole_gateway
from tests.scripted_upstream import Exchange, Request, answering, chunk, completion, failing, scripted_upstream

HELLO: list[Any] = [{"role": "user", "content": "Hello"}]
CHAT = "/v1/chat/completions"
PRICE = {"input_usd_per_million": 100_000, "output_usd_per_million": 200_000, "as_of": "2026-11-24"}


def priced(base_url: str, **model: Any) -> Settings:
    deployment = {"upstream": "up0", "model": "vendor/up0", "price": PRICE}
    return chat_settings(base_url, model={"deployments": [deployment], **model})


def ring(data_dir: Path) -> KeyRing:
    keys, _ = load_or_create_keys(data_dir, {"TANDEM_API_KEY": KEY})
    return keys


def new_key(keys: KeyRing, **wish: Any) -> tuple[str, str]:
    """(id, secret)"""
    assert keys.file is not None
    key, plain = keys.file.create(NewKey.model_validate({"name": "test", **wish}), keys.clock())
    keys.refresh()
    return key.id, plain


async def usage_of(live: Live, requests: int, key: str = KEY) -> dict[str, Any]:
    """The one result of GET /v1/usage, once that many requests are in it."""
    async with live.http(key) as http:
        async with asyncio.timeout(10):
            while True:
                page = (await http.get("/v1/usage", params={"start_time": 1, "bucket_width": "all"})).json()
                results = page["data"][0]["results"]
                if results and results[0]["num_model_requests"] >= requests:
                    result: dict[str, Any] = results[0]
                    return result
                await asyncio.sleep(0.02)


async def metric(live: Live, name: str, **labels: str) -> float:
    async with live.http() as http:
        text = (await http.get("/metrics")).text
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples if sample.name == name]
    assert samples, name
    return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())


async def test_a_request_is_priced_counted_and_shown_to_its_key(tmp_path: Path) -> None:
    keys = ring(tmp_path)
    async with scripted_upstream(answering("Hi")) as upstream, whole_gateway(priced(upstream.base_url), tmp_path, keys=keys) as (live, _):
        _, other = new_key(keys)
        async with live.http(other) as http:
            reply = await http.post(CHAT, json={"model": "m", "messages": HELLO})
        used = await usage_of(live, 1, other)
        assert (used["input_tokens"], used["output_tokens"], used["estimated_requests"]) == (1, 2, 0)
        assert used["cost_usd"] == pytest.approx(0.5)
        assert re.fullmatch(r"total;dur=[\d.]+, upstream;dur=[\d.]+, overhead;dur=[\d.]+", reply.headers["server-timing"])
        assert "x-ratelimit-limit-requests" not in reply.headers
        assert await metric(live, "tandem_requests_total", model="m", outcome="ok") == 1
        assert await metric(live, "tandem_cost_usd_total", model="m") == pytest.approx(0.5)
        async with live.http() as http:  # another key's usage is none of mine
            page = (await http.get("/v1/usage", params={"start_time": 1, "bucket_width": "all"})).json()
        assert page["data"][0]["results"] == []


async def test_what_a_client_left_is_estimated_and_nothing_is_held(tmp_path: Path) -> None:
    async def scenario(request: Request, exchange: Exchange) -> None:
        await exchange.start_stream()
        for _ in range(3):
            await exchange.events(chunk("word"))
        await exchange.until_left()

    async with scripted_upstream(scenario) as upstream, whole_gateway(priced(upstream.base_url), tmp_path) as (live, whole):
        async with live.sdk() as client:
            stream = await client.chat.completions.create(model="m", messages=HELLO, stream=True)
            parts = aiter(stream)
            for _ in range(3):
                await anext(parts)
            assert whole.app.admission.in_flight().by_model == {"m": 1}
            await stream.close()
        used = await usage_of(live, 1)
        assert (used["client_left"], used["estimated_requests"]) == (1, 1)
        assert (used["input_tokens"], used["output_tokens"]) == (2, 3)
        assert whole.app.admission.in_flight().by_model == {"m": 0}


async def test_limits_refuse_at_once_and_give_back_what_ended(tmp_path: Path) -> None:
    go = asyncio.Event()

    async def slow(request: Request, exchange: Exchange) -> None:
        await go.wait()
        await exchange.json(200, completion("x"))

    keys = ring(tmp_path)
    async with scripted_upstream(slow) as upstream, whole_gateway(priced(upstream.base_url), tmp_path, keys=keys) as (live, whole):
        key_id, limited = new_key(keys, limits={"concurrent_requests": 2, "requests_per_minute": 100})
        async with live.http(limited) as http:
            body = {"model": "m", "messages": HELLO}
            running = [asyncio.create_task(http.post(CHAT, json=body)) for _ in range(2)]
            while len(upstream.asked) < 2:
                await asyncio.sleep(0.002)
            refused = await http.post(CHAT, json=body)
            assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
            assert int(refused.headers["retry-after"]) >= 1
            assert "2 requests at the same time" in refused.json()["error"]["message"]
            running[0].cancel()
            await asyncio.gather(running[0], return_exceptions=True)
            async with asyncio.timeout(1):
                while whole.app.admission.in_flight().by_key[key_id] > 1:
                    await asyncio.sleep(0.002)
            go.set()
            good = await http.post(CHAT, json=body)
            assert good.status_code == 200
            assert good.headers["x-ratelimit-limit-requests"] == "100"
            assert good.headers["x-ratelimit-remaining-requests"] == "97"
            await running[1]
        assert set(whole.app.admission.in_flight().by_key.values()) == {0}
        assert await metric(live, "tandem_requests_in_flight") == 0


async def test_a_budget_outlasts_a_restart(tmp_path: Path) -> None:
    keys = ring(tmp_path)
    _, poor = new_key(keys, limits={"budget_usd_per_day": 0.4})
    async with scripted_upstream(answering("Hi")) as upstream:
        settings = priced(upstream.base_url)
        async with whole_gateway(settings, tmp_path, keys=keys) as (live, _), live.http(poor) as http:
            assert (await http.post(CHAT, json={"model": "m", "messages": HELLO})).status_code == 200
            await _refused_for_money(http)
        async with whole_gateway(settings, tmp_path, keys=ring(tmp_path)) as (live, _), live.http(poor) as http:
            await _refused_for_money(http)
        assert len(upstream.asked) == 1


async def _refused_for_money(http: httpx.AsyncClient) -> None:
    refused = await http.post(CHAT, json={"model": "m", "messages": HELLO})
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "insufficient_quota")
    assert refused.headers["x-should-retry"] == "false"


async def test_tokens_a_minute_are_estimated_before_and_corrected_after(tmp_path: Path) -> None:
    keys = ring(tmp_path)
    async with scripted_upstream(answering("Hi")) as upstream, whole_gateway(priced(upstream.base_url), tmp_path, keys=keys) as (live, _):
        _, limited = new_key(keys, limits={"tokens_per_minute": 100})
        async with live.http(limited) as http:
            first = await http.post(CHAT, json={"model": "m", "messages": HELLO, "max_tokens": 50})
            assert first.headers["x-ratelimit-remaining-tokens"] == "48"  # when it was admitted
            second = await http.post(CHAT, json={"model": "m", "messages": HELLO, "max_tokens": 50})
            assert second.status_code == 200  # the first has used three
            assert int(second.headers["x-ratelimit-remaining-tokens"]) in range(45, 50)
            large = await http.post(CHAT, json={"model": "m", "messages": HELLO, "max_completion_tokens": 200})
            assert large.status_code == 429
            assert "200" not in large.headers.get("retry-after", "")
            assert large.headers["x-should-retry"] == "false"


async def test_a_key_for_some_models_gets_no_other(tmp_path: Path) -> None:
    keys = ring(tmp_path)
    async with scripted_upstream(answering("Hi")) as upstream, whole_gateway(priced(upstream.base_url), tmp_path, keys=keys) as (live, _):
        _, narrow = new_key(keys, models=["other*"])
        async with live.sdk(key=narrow) as client:
            with pytest.raises(openai.PermissionDeniedError, match="may not use the model 'm'"):
                await client.chat.completions.create(model="m", messages=HELLO)
            assert [model.id async for model in await client.models.list()] == []


@pytest.mark.parametrize("stream", [True, False])
async def test_in_flight_is_zero_after_every_kind_of_end(tmp_path: Path, stream: bool) -> None:
    async def cut(request: Request, exchange: Exchange) -> None:
        if stream:
            await exchange.start_stream()
            await exchange.events(chunk("partial"))
        exchange.cut()

    async def silent(request: Request, exchange: Exchange) -> None:
        await exchange.until_left()

    scenarios = [answering("ok"), failing(500, {"error": {"message": "x"}}), failing(401, {}), failing(400, {}), cut]
    body = {"model": "m", "messages": HELLO, "stream": stream}
    async with scripted_upstream(silent) as upstream, whole_gateway(chat_settings(upstream.base_url), tmp_path) as (live, whole):
        async with live.http() as http:
            for scenario in scenarios:
                upstream.scenario = scenario
                await http.post(CHAT, json=body)
            upstream.scenario = silent
            with pytest.raises(httpx.ReadTimeout):
                await http.post(CHAT, json=body, timeout=0.1)
            await http.post(CHAT, content=b"{")
            await http.post(CHAT, json={"model": "nothing", "messages": HELLO})
        async with asyncio.timeout(1):
            while any(whole.app.admission.in_flight().by_model.values()) or upstream.open_connections:
                await asyncio.sleep(0.002)
        assert [condition.in_flight for _, _, condition in whole.app.router.conditions()] == [0]
        await usage_of(live, 7)  # all but the refusals before a model was known
        assert await metric(live, "tandem_requests_total") == 8


PICTURE: list[dict[str, Any]] = [
    {"type": "progress", "image_index": 0, "step": 1, "steps": 2},
    {"type": "image", "image_index": 0, "b64_json": "aGk=", "seed": 1, "width": 128, "height": 128, "duration_s": 0.1},
    {"type": "done"},
]


@pytest.mark.parametrize("stream", [True, False])
async def test_pictures_have_limits_records_and_a_lease_that_ends(tmp_path: Path, stream: bool) -> None:
    async def draws(request: Request, exchange: Exchange) -> None:
        await exchange.start_stream()
        await exchange.events(*PICTURE)
        await exchange.end_stream()

    model = IMAGE_MODEL | {"limits": {"requests_per_minute": 2}}
    settings = settings_of([model], {"pictures": {"kind": "diffusers"}})
    async with scripted_upstream(draws) as worker:
        runtime = ScriptedRuntime(engine_specs(settings), {"pictures:x": worker.port})
        async with whole_gateway(settings, tmp_path, runtime) as (live, whole), live.http() as http:
            body = {"model": "draw", "prompt": "a circle", "stream": stream}
            good = await http.post("/v1/images/generations", json=body)
            assert good.status_code == 200
            assert good.headers["x-ratelimit-remaining-requests"] == "1"
            worker.scenario = failing(500, {"error": {"message": "out of paint"}})
            assert (await http.post("/v1/images/generations", json=body)).status_code == 500
            refused = await http.post("/v1/images/generations", json=body)
            assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
            used = await usage_of(live, 3)
            assert (used["images"], used["failures"]) == (1, 2)
            assert whole.app.admission.in_flight().by_model == {"draw": 0}
            assert runtime.leases == 0
            assert await metric(live, "tandem_images_total", model="draw") == 1


async def test_a_client_that_leaves_while_a_picture_is_made_is_recorded_as_gone(tmp_path: Path) -> None:
    async def never_ready(request: Request, exchange: Exchange) -> None:
        await exchange.start_stream()
        await exchange.events(PICTURE[0])
        await exchange.until_left()

    settings = settings_of([IMAGE_MODEL], {"pictures": {"kind": "diffusers"}})
    async with scripted_upstream(never_ready) as worker:
        runtime = ScriptedRuntime(engine_specs(settings), {"pictures:x": worker.port})
        async with whole_gateway(settings, tmp_path, runtime) as (live, whole), live.http() as http:
            for stream in (True, False):
                with pytest.raises(httpx.ReadTimeout):
                    await http.post("/v1/images/generations", json={"model": "draw", "prompt": "x", "stream": stream}, timeout=0.2)
            used = await usage_of(live, 2)
            assert (used["client_left"], used["failures"], used["images"]) == (2, 0, 0)
            assert whole.app.admission.in_flight().by_model == {"draw": 0}
            assert runtime.leases == 0


async def test_a_gateway_whose_usage_store_is_broken_starts_and_answers(tmp_path: Path) -> None:
    (tmp_path / "usage.sqlite").write_bytes(b"this is no database, whatever its name says" * 100)
    async with scripted_upstream(answering("Hi")) as upstream, whole_gateway(priced(upstream.base_url), tmp_path) as (live, _):
        async with live.http() as http:
            assert (await http.post(CHAT, json={"model": "m", "messages": HELLO})).status_code == 200
            unavailable = await http.get("/v1/usage")
        assert (unavailable.status_code, unavailable.json()["error"]["code"]) == (503, "usage_unavailable")
