"""A vLLM that dies under its requests: what the clients see, and that whoever asks next gets a new one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import openai
import pytest

from config.schema import Settings
from tests.gateway.live import Live, live_gateway, settings_of
from tests.scripted_upstream import answering, scripted_upstream

FAKE_VLLM = {"kind": "vllm", "python": sys.executable, "env": {"PYTHONPATH": str(Path(__file__).parent.parent / "fake_vllm")}}
ENGINE = "here:o/m"


def settings(model: str = "o/m", hosted: str | None = None) -> Settings:
    deployments = [{"upstream": "here", "model": model}, *([{"upstream": "hosted", "model": "x"}] if hosted else [])]
    upstreams = {"here": FAKE_VLLM, **({"hosted": {"kind": "openai", "base_url": hosted}} if hosted else {})}
    return settings_of([{"name": "m", "kind": "chat", "deployments": deployments}], upstreams)


def messages(prompt: str) -> Any:
    return [{"role": "user", "content": prompt}]


async def read_into(text: list[str], stream: Any) -> None:
    async for part in stream:
        text.append(part.choices[0].delta.content or "")


async def ask(live: Live, prompt: str) -> str:
    async with live.sdk() as client:
        reply = await client.chat.completions.create(model="m", messages=messages(prompt))
        return str(reply.choices[0].message.content)


@pytest.mark.parametrize("prompt", ["die", "engine dies", "abort"])
async def test_what_breaks_in_mid_stream_is_an_error_event_after_the_text(tmp_path: Path, prompt: str) -> None:
    async with live_gateway(settings(), data_dir=tmp_path) as live, live.sdk() as client:
        text: list[str] = []
        with pytest.raises(openai.APIError) as caught:
            await read_into(text, await client.chat.completions.create(model="m", messages=messages(prompt), stream=True))
        assert "".join(text) == ("Hello there" if prompt != "die" else "Hello")
        assert caught.value.code == ("upstream_aborted" if prompt == "abort" else "engine_unavailable")
        assert await ask(live, "hi") == "Hello there"
        assert live.runtime.status(ENGINE).restarts == (0 if prompt == "abort" else 1)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_dead_engine_is_503_with_a_time_to_come_back_and_no_plain_500(tmp_path: Path, stream: bool) -> None:
    async with live_gateway(settings(), data_dir=tmp_path) as live, live.sdk() as client:
        with pytest.raises(openai.APIStatusError) as caught:
            await client.chat.completions.create(model="m", messages=messages("engine is dead"), stream=stream)
        assert (caught.value.status_code, caught.value.code) == (503, "engine_unavailable")
        assert "engine 'here:o/m' ended before the answer was complete: it kept answering 503 to GET /health" in caught.value.message
        assert int(caught.value.response.headers["retry-after"]) >= 1
        assert await ask(live, "hi") == "Hello there"
        assert live.runtime.status(ENGINE).restarts == 1


async def test_an_aborted_answer_that_does_not_stream_is_502(tmp_path: Path) -> None:
    async with live_gateway(settings(), data_dir=tmp_path) as live:
        with pytest.raises(openai.APIStatusError) as caught:
            await ask(live, "abort")
        assert (caught.value.status_code, caught.value.code) == (502, "upstream_aborted")


@pytest.mark.parametrize("prompt", ["engine is dead", "abort"])
async def test_before_its_text_another_deployment_answers(tmp_path: Path, prompt: str) -> None:
    async with (
        scripted_upstream(answering("from elsewhere")) as hosted,
        live_gateway(settings(hosted=hosted.base_url), data_dir=tmp_path) as live,
    ):
        assert await ask(live, prompt) == "from elsewhere"
        assert len(hosted.asked) == 1


async def test_a_checkpoint_that_kills_its_engine_is_given_up_with_the_reason_for_everybody(tmp_path: Path) -> None:
    async with live_gateway(settings("no/kernels"), data_dir=tmp_path) as live, live.sdk() as client:
        for said in ("did not start", "is given up for now"):
            with pytest.raises(openai.APIStatusError) as caught:
                await client.chat.completions.create(model="m", messages=messages("hi"))
            assert (caught.value.status_code, caught.value.code) == (503, "engine_unavailable")
            assert said in caught.value.message
            assert "head dimension of 32" in caught.value.message
        [model] = (await client.models.list()).data
        deployment = model.model_dump()["tandem"]["deployments"][0]
        assert deployment["state"] == "failed"
        assert "given up: it crashed once, because" in deployment["reason"]
        assert "head dimension of 32" in deployment["reason"]
        assert live.runtime.status("here:no/kernels").restarts == 0
