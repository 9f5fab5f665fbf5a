"""Swapping what answers is a line of configuration: one client script, unchanged, against each kind of upstream."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import openai
import pytest

from adapters.build import engine_specs
from config.schema import Settings
from local_models.launch import resolve_model
from local_models.runtime import Runtime
from tests.gateway.live import KEY, Live, live_gateway, settings_of
from tests.openrouter_like import COST, openrouter_like
from tests.scripted_upstream import answering, scripted_upstream

TESTS = Path(__file__).parent.parent
FAKE_VLLM = {"kind": "vllm", "python": sys.executable, "env": {"PYTHONPATH": str(TESTS / "fake_vllm")}, "max_restarts": 3}
REAL_VLLM = os.environ.get("TANDEM_TEST_VLLM")
DEMO = {"kind": "transformers", "env": {"OMP_NUM_THREADS": "1"}}
CHAT = "/v1/chat/completions"


def one_model(*deployments: tuple[str, str], upstreams: dict[str, Any]) -> Settings:
    listed = [{"upstream": upstream, "model": model} for upstream, model in deployments]
    return settings_of([{"name": "m", "kind": "chat", "reasoning": True, "deployments": listed}], upstreams)


async def run_client(live: Live, python: str = sys.executable) -> dict[str, Any]:
    script = str(TESTS / "swap_client.py")
    process = await asyncio.create_subprocess_exec(python, script, live.base_url, KEY, "m", stdout=asyncio.subprocess.PIPE)
    out, _ = await process.communicate()
    assert process.returncode == 0
    said: dict[str, Any] = json.loads(out)
    return said


def check(said: dict[str, Any]) -> None:
    """What must hold whoever answers."""
    assert said["models"] == ["m"]
    assert said["retrieved"] == "m"
    assert said["unknown model"] == ["NotFoundError", "model_not_found"]
    for mode in ("thinking", "not thinking"):
        answer = said[mode]
        assert answer["text"]
        assert answer["text"] == answer["whole text"]
        assert answer["reasoning"] == answer["whole reasoning"]
        assert answer["finish"] == answer["whole finish"]
        assert answer["total_tokens"]
        assert bool(answer["reasoning"]) is (mode == "thinking")


async def test_against_the_demo_worker(tmp_path: Path) -> None:
    settings = one_model(("here", "builtin:demo"), upstreams={"here": DEMO})
    async with live_gateway(settings, data_dir=tmp_path) as live:
        check(await run_client(live))


async def test_against_something_like_openrouter() -> None:
    async with scripted_upstream(openrouter_like) as hosted:
        upstream = {"kind": "openrouter", "base_url": hosted.base_url, "api_key": "or-key", "title": "Tandem", "referer": "http://t"}
        async with live_gateway(one_model(("or", "openrouter/qwen/qwen3.5-9b"), upstreams={"or": upstream})) as live:
            check(await run_client(live))
        asked = hosted.asked[0]
        assert asked.json["model"] == "qwen/qwen3.5-9b"
        assert asked.headers["authorization"] == "Bearer or-key"
        assert (asked.headers["x-openrouter-title"], asked.headers["http-referer"]) == ("Tandem", "http://t")


async def test_against_something_like_vllm_that_tandem_starts(tmp_path: Path) -> None:
    async with live_gateway(one_model(("here", "Qwen/Qwen3.5-9B"), upstreams={"here": FAKE_VLLM}), data_dir=tmp_path) as live:
        check(await run_client(live))


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.skipif(not REAL_VLLM, reason="TANDEM_TEST_VLLM does not name the Python of an environment that has vLLM")
async def test_against_the_real_vllm(tmp_path: Path) -> None:
    arguments = {"max-model-len": 2048, "enforce-eager": True, "reasoning-parser": "qwen3"}
    upstream = {"kind": "vllm", "python": REAL_VLLM, "device": "cpu", "args": arguments, "env": {"VLLM_CPU_KVCACHE_SPACE": "1"}}
    demo = str(resolve_model("builtin:demo"))
    async with live_gateway(one_model(("here", demo), upstreams={"here": upstream}), data_dir=tmp_path) as live:
        check(await run_client(live))


async def test_against_a_vllm_that_runs_elsewhere(tmp_path: Path) -> None:
    runs = settings_of([{"name": "org/m", "kind": "chat", "deployments": [{"upstream": "here", "model": "org/m"}]}], {"here": FAKE_VLLM})
    runtime = Runtime(engine_specs(runs), data_dir=tmp_path)
    async with runtime.lease("here:org/m") as lease:
        elsewhere = {
            "kind": "openai",
            "base_url": f"http://{lease.host}:{lease.port}/v1",
            "api_key": lease.key,
            "thinking": "chat_template_kwargs",
        }
        async with live_gateway(one_model(("lab", "org/m"), upstreams={"lab": elsewhere})) as live:
            check(await run_client(live))
    await runtime.close()


async def ask(live: Live, prompt: str, *, stream: bool = True) -> str:
    messages: Any = [{"role": "user", "content": prompt}]
    async with live.sdk() as client:
        if not stream:
            return str((await client.chat.completions.create(model="m", messages=messages)).choices[0].message.content)
        parts = await client.chat.completions.create(model="m", messages=messages, stream=True)
        return "".join([part.choices[0].delta.content or "" async for part in parts if part.choices])


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("prompt", "kind", "status", "said"),
    [
        ("402", openai.InternalServerError, 502, "has no credits left"),
        ("429", openai.RateLimitError, 429, "Rate limited: slow down"),
        ("error in 200", openai.InternalServerError, 503, "No provider"),
    ],
)
async def test_openrouter_s_failures_have_their_real_status(
    prompt: str, kind: type[openai.APIStatusError], status: int, said: str, stream: bool
) -> None:
    async with scripted_upstream(openrouter_like) as hosted:
        upstream = {"kind": "openrouter", "base_url": hosted.base_url, "api_key": "or-key"}
        async with live_gateway(one_model(("or", "a/b"), upstreams={"or": upstream})) as live:
            with pytest.raises(kind, match=said) as caught:
                await ask(live, prompt, stream=stream)
            assert caught.value.status_code == status
            assert caught.value.response.headers.get("retry-after") == ("7" if prompt == "429" else None)


@pytest.mark.parametrize(("prompt", "said"), [("cut", "in the middle of its reply"), ("error late", "Provider died")])
async def test_a_failure_after_the_first_token_is_an_error_event_and_nobody_else_s_answer(prompt: str, said: str) -> None:
    async with scripted_upstream(openrouter_like) as hosted, scripted_upstream(answering("not this")) as other:
        upstreams = {
            "or": {"kind": "openrouter", "base_url": hosted.base_url, "api_key": "or-key"},
            "other": {"kind": "openai", "base_url": other.base_url},
        }
        async with live_gateway(one_model(("or", "a/b"), ("other", "x"), upstreams=upstreams)) as live:
            with pytest.raises(openai.APIError, match=said):
                await ask(live, prompt)
            assert other.asked == []


async def test_usage_with_cost_and_keep_alive_comments_reach_the_client() -> None:
    async with scripted_upstream(openrouter_like) as hosted:
        upstream = {"kind": "openrouter", "base_url": hosted.base_url, "api_key": "or-key"}
        async with live_gateway(one_model(("or", "a/b"), upstreams={"or": upstream})) as live, live.http() as http:
            body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True}
            reply = await http.post(CHAT, json=body | {"stream_options": {"include_usage": True}})
            assert f'"cost":{COST}' in reply.text
            assert "usage" not in (await http.post(CHAT, json=body)).text  # nobody gets what was not asked for
            assert ": OPENROUTER PROCESSING" in reply.text


async def test_a_local_engine_that_dies_before_its_first_token_falls_back_after_it_is_an_error(tmp_path: Path) -> None:
    async with scripted_upstream(openrouter_like) as hosted:
        broken = FAKE_VLLM | {"env": {"PYTHONPATH": str(tmp_path)}}  # there is no vllm to import: it ends while starting
        upstreams = {
            "here": FAKE_VLLM,
            "broken": broken,
            "or": {"kind": "openrouter", "base_url": hosted.base_url, "api_key": "or-key"},
        }
        settings = settings_of(
            [
                {"name": "dies", "kind": "chat", "deployments": [{"upstream": "here", "model": "o/m"}, {"upstream": "or", "model": "a/b"}]},
                {"name": "m", "kind": "chat", "deployments": [{"upstream": "broken", "model": "o/m"}, {"upstream": "or", "model": "a/b"}]},
            ],
            upstreams,
        )
        async with live_gateway(settings, data_dir=tmp_path) as live, live.sdk() as client:
            assert await ask(live, "hi") == "Hello there"
            assert len(hosted.asked) == 1
            deadly: Any = [{"role": "user", "content": "die"}]
            with pytest.raises(openai.APIError, match="ended before the answer was complete"):
                async for _ in await client.chat.completions.create(model="dies", messages=deadly, stream=True):
                    pass
            assert len(hosted.asked) == 1
            alive: Any = [{"role": "user", "content": "hi"}]
            again = await client.chat.completions.create(model="dies", messages=alive, extra_headers={"x-request-id": "again"})
            assert again.choices[0].message.content == "Hello there"
