"""Chat and pictures on a machine that has memory for one of them: real engines that take each other's place, asked over HTTP."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from config.schema import Settings
from local_models.launch import resolve_model
from tests.gateway.live import Live, settings_of, whole_gateway

REAL_VLLM = os.environ.get("TANDEM_TEST_VLLM")
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
WORKER = {"device": "cpu", "env": ONE_THREAD, "memory": "2GiB"}
PICTURES = {"kind": "diffusers", **WORKER}


def settings_with(chat: dict[str, Any], model: str, wait_s: float = 240) -> Settings:
    """A chat model `m` and an image model `draw`, each of 2 GiB, where 3 GiB may be taken."""
    image = {"default_size": "64x64", "size_multiple": 32, "min_side": 64, "max_side": 256, "num_inference_steps": 2}
    return settings_of(
        [
            {"name": "m", "kind": "chat", "thinking": False, "deployments": [{"upstream": "here", "model": model}]},
            {"name": "draw", "kind": "image", "deployments": [{"upstream": "pictures", "model": "builtin:demo-image"}], "image": image},
        ],
        {"here": chat, "pictures": PICTURES},
        memory={"budgets": {"cpu": "3GiB"}, "wait_s": wait_s},
    )


DEMO = settings_with({"kind": "transformers", **WORKER}, "builtin:demo")


async def chat(live: Live, *, stream: bool = False) -> str:
    messages: Any = [{"role": "user", "content": "Hello!"}]
    async with live.sdk(timeout=280) as client:
        if not stream:
            reply = await client.chat.completions.create(model="m", messages=messages, max_tokens=8)
            return str(reply.choices[0].message.content)
        parts = await client.chat.completions.create(model="m", messages=messages, max_tokens=8, stream=True)
        return "".join([part.choices[0].delta.content or "" async for part in parts if part.choices])


async def draw(live: Live) -> str:
    async with live.sdk(timeout=280) as client:
        reply = await client.images.generate(model="draw", prompt="a red circle")
        return str(reply.data and reply.data[0].b64_json)


class Watch:
    """Looks at the processes below this one: which engines run, and whether ever both did."""

    def __init__(self, chat_program: str) -> None:
        self.programs = (chat_program, "local_models.workers.image_server")
        self.both = 0
        self.looks = 0
        self.seen: set[str] = set()

    async def __aenter__(self) -> Watch:
        self._task = asyncio.create_task(self._look())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()

    async def _look(self) -> None:
        while True:
            running = await asyncio.to_thread(self._running)
            self.seen |= running
            self.looks += 1
            self.both += len(running) == len(self.programs)
            await asyncio.sleep(0.02)

    def _running(self) -> set[str]:
        lines = []
        for process in psutil.Process().children(recursive=True):
            try:
                lines.append([] if process.status() == psutil.STATUS_ZOMBIE else process.cmdline())
            except psutil.Error:
                continue  # it has ended meanwhile
        # the guard's command line ends with the engine's, and it outlives it by a moment
        return {program for program in self.programs for line in lines if program in line and not any("nanny.py" in word for word in line)}


@pytest.mark.timeout(400)
async def test_chat_and_pictures_take_turns_in_memory_for_one(tmp_path: Path) -> None:
    async with whole_gateway(DEMO, tmp_path) as (live, whole), Watch("local_models.workers.chat_server") as watch:

        async def client(number: int) -> None:
            for turn in range(2):
                if (number + turn) % 2:
                    assert await draw(live)
                else:
                    assert await chat(live, stream=number == 1)

        await asyncio.gather(*(client(number) for number in range(2)))
        assert watch.seen == set(watch.programs)
        assert watch.looks > 10
        assert watch.both == 0
        statuses = [whole.runtime.status(engine) for engine in whole.runtime.engines()]
        assert [status.restarts for status in statuses] == [0, 0]
        assert sum(sum(status.memory.values()) for status in statuses) == 2 * 2**30
        async with live.http() as http:
            assert 'tandem_engine_memory_bytes{device="cpu"' in (await http.get("/metrics")).text


@pytest.mark.timeout(240)
async def test_who_waits_in_vain_is_told_who_holds_the_memory_and_when_to_ask_again(tmp_path: Path) -> None:
    settings = settings_with({"kind": "transformers", **WORKER}, "builtin:demo", wait_s=0.2)
    async with whole_gateway(settings, tmp_path) as (live, whole), live.http() as http, whole.runtime.lease("here:builtin:demo"):
        reply = await http.post("/v1/images/generations", json={"model": "draw", "prompt": "a red circle"})
        assert (reply.status_code, reply.headers["retry-after"]) == (503, "10")
        assert reply.json()["error"]["code"] == "engine_unavailable"
        assert "here:builtin:demo holds 2.0 GiB of 3.0 GiB on cpu and answers 1 request" in reply.json()["error"]["message"]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not REAL_VLLM, reason="TANDEM_TEST_VLLM does not name the Python of an environment that has vLLM")
async def test_the_real_vllm_and_pictures_take_turns_in_memory_for_one(tmp_path: Path) -> None:
    arguments = {"max-model-len": 2048, "enforce-eager": True}
    vllm = {
        "kind": "vllm", "python": REAL_VLLM, "device": "cpu", "args": arguments, "env": {"VLLM_CPU_KVCACHE_SPACE": "1"}, "memory": "2GiB"
    }  # fmt: skip
    settings = settings_with(vllm, str(resolve_model("builtin:demo")))
    took: dict[str, list[float]] = {"chat": [], "picture": []}
    async with whole_gateway(settings, tmp_path) as (live, whole), Watch("vllm.entrypoints.openai.api_server") as watch:
        for _ in range(2):
            for what, ask in (("chat", chat), ("picture", draw)):
                began = time.monotonic()
                assert await ask(live)
                took[what].append(time.monotonic() - began)
        await asyncio.gather(chat(live), draw(live), chat(live, stream=True), draw(live))
        assert watch.seen == set(watch.programs)
        assert watch.both == 0
        assert all(whole.runtime.status(engine).restarts == 0 for engine in whole.runtime.engines())
    for what, seconds in took.items():
        print(f"a {what} that had to swap: {', '.join(f'{one:.1f}' for one in seconds)} s")
