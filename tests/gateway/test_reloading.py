"""A configuration that changes while requests run."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Any

import openai
import pytest
import yaml

from adapters.build import engine_specs
from config import loader
from config.schema import Settings
from gateway.reloading import Reloading, Source, needs_restart
from tests.gateway.live import Live, ScriptedRuntime, chat_settings, live_gateway, settings_of
from tests.scripted_upstream import Exchange, Request, answering, chunk, scripted_upstream

HELLO: list[Any] = [{"role": "user", "content": "Hello"}]


def document(base_url: str, name: str = "m") -> dict[str, Any]:
    return {
        "models": [{"name": name, "kind": "chat", "deployments": [{"upstream": "up", "model": "x"}]}],
        "upstreams": {"up": {"kind": "openai", "base_url": base_url}},
    }


async def text_of(live: Live, model: str) -> str | None:
    async with live.sdk() as client:
        return (await client.chat.completions.create(model=model, messages=HELLO)).choices[0].message.content


async def test_a_request_under_way_ends_as_it_began_and_the_next_one_meets_the_new_configuration() -> None:
    more, waiting = asyncio.Event(), asyncio.Event()

    async def slow(request: Request, exchange: Exchange) -> None:
        await exchange.start_stream()
        await exchange.events(chunk("old "))
        waiting.set()
        await more.wait()
        await exchange.events(chunk("answer"), chunk(finish="stop"), "[DONE]")
        await exchange.end_stream()

    async with (
        scripted_upstream(slow) as before,
        scripted_upstream(answering("new answer")) as after,
        live_gateway(chat_settings(before.base_url)) as live,
        live.sdk() as client,
    ):
        stream = await client.chat.completions.create(model="m", messages=HELLO, stream=True)
        await waiting.wait()
        live.app.reconfigure(settings_of(**document(after.base_url, "n")))
        assert await text_of(live, "n") == "new answer"
        with pytest.raises(openai.NotFoundError):
            await text_of(live, "m")
        more.set()
        said = [part.choices[0].delta.content or "" async for part in stream if part.choices]
        assert "".join(said) == "old answer"
        async with asyncio.timeout(1):
            while before.open_connections:  # the old configuration's connections go with its last request
                await asyncio.sleep(0.001)
        async with live.sdk() as other:
            assert [model.id async for model in await other.models.list()] == ["n"]


async def test_hundreds_of_requests_and_many_swaps_lose_none() -> None:
    async with (
        scripted_upstream(answering("a")) as one,
        scripted_upstream(answering("b")) as two,
        live_gateway(chat_settings(one.base_url)) as live,
        live.http() as http,
    ):
        body = {"model": "m", "messages": HELLO, "stream": True}

        async def ask() -> int:
            return (await http.post("/v1/chat/completions", json=body)).status_code

        asking: list[asyncio.Task[int]] = []
        for swap in range(20):
            asking += [asyncio.create_task(ask()) for _ in range(10)]
            await asyncio.sleep(0.01)
            live.app.reconfigure(chat_settings((one, two)[swap % 2].base_url))
        assert await asyncio.gather(*asking) == [200] * 200
        assert two.asked


async def test_a_changed_file_is_taken_over_and_a_wrong_one_is_refused_with_its_error(tmp_path: Path) -> None:
    said: list[str] = []
    file = tmp_path / "tandem.yaml"
    async with scripted_upstream(answering("a")) as upstream:
        file.write_text(yaml.safe_dump(document(upstream.base_url)))

        def load() -> Settings:
            return loader.load("hosted", file, {})

        settings = load()
        async with live_gateway(settings) as live:
            reloading = Reloading(Source(file, load, said.append), settings, live.app.reconfigure)
            watching = asyncio.create_task(reloading.watch(interval_s=0.02))
            await asyncio.sleep(0.05)
            assert said == []
            file.write_text(yaml.safe_dump(document(upstream.base_url, "renamed") | {"server": {"port": 9}}))
            await _until(said, 1)
            assert "taken over" in said[0]
            assert "server.port only at the next start" in said[0]
            assert await text_of(live, "renamed") == "a"
            file.write_text("models: [{nam: x}]\n")
            await _until(said, 2)
            assert "not taken over" in said[1]
            assert "tandem.yaml" in said[1]
            assert await text_of(live, "renamed") == "a"
            draft = tmp_path / "draft"
            draft.write_text(yaml.safe_dump(document(upstream.base_url, "third")))
            draft.replace(file)  # as editors and ConfigMaps do
            await _until(said, 3)
            assert await text_of(live, "third") == "a"
            watching.cancel()
            with suppress(asyncio.CancelledError):
                await watching


async def _until(said: list[str], count: int) -> None:
    async with asyncio.timeout(10):
        while len(said) < count:
            await asyncio.sleep(0.005)


async def test_settings_that_cannot_be_served_change_nothing() -> None:
    async with scripted_upstream(answering("a")) as upstream, live_gateway(chat_settings(upstream.base_url)) as live:
        broken = document(upstream.base_url, "broken")
        broken["upstreams"]["up"]["headers"] = {"X-A": "line\r\nbreak"}
        with pytest.raises(ValueError, match="line break"):
            live.app.reconfigure(settings_of(**broken))
        assert await text_of(live, "m") == "a"
        assert live.app.settings.models[0].name == "m"


async def test_an_engine_that_stays_keeps_its_connections_and_one_that_goes_is_unknown() -> None:
    def local(*names: str) -> Settings:
        models = [{"name": name, "kind": "chat", "deployments": [{"upstream": "here", "model": name}]} for name in names]
        return settings_of(models, {"here": {"kind": "vllm"}})

    async with scripted_upstream(answering("hi")) as engine:
        runtime = ScriptedRuntime(engine_specs(local("a", "b")), {"here:a": engine.port, "here:b": engine.port})
        async with live_gateway(local("a", "b"), runtime) as live:
            assert await text_of(live, "b") == "hi"
            live.app.reconfigure(local("a"))
            assert await text_of(live, "a") == "hi"
            assert list(runtime.engines()) == ["here:a"]


def test_what_is_looked_at_only_at_the_start_is_named() -> None:
    base = document("http://127.0.0.1:9/v1")
    assert needs_restart(settings_of(**base), settings_of(**base, server={"max_body_bytes": 4096})) == []
    changed = settings_of(**base, server={"port": 1, "host": "::1"}, chat_app={"port": 2})
    assert needs_restart(settings_of(**base), changed) == ["server.host", "server.port", "chat_app.port"]
