"""The life of the real vLLM below a gateway: each of its processes killed, clients that leave, a checkpoint that it cannot compute.

Minutes long. Prints how long everything took.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import time
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest

from config.schema import Settings
from local_models.launch import resolve_model
from local_models.process import is_taken
from tests.gateway.live import KEY, Live, live_gateway, settings_of
from tests.local_models.conftest import is_running

REAL_VLLM = os.environ.get("TANDEM_TEST_VLLM")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(not REAL_VLLM, reason="TANDEM_TEST_VLLM does not name the Python of an environment that has vLLM"),
]
NOTICED_S = 5.0
LEFT_S = 2.0
CLIENTS = 200
HELLO: list[Any] = [{"role": "user", "content": "Hello"}]
ENDLESS = {"ignore_eos": True}


def settings_for(model: Path) -> Settings:
    flags = {"max-model-len": 2048, "enforce-eager": True}
    upstream: dict[str, Any] = {"kind": "vllm", "python": REAL_VLLM, "device": "cpu", "dtype": "bfloat16"}
    upstream |= {"args": flags, "env": {"VLLM_CPU_KVCACHE_SPACE": "1"}}
    return settings_of([{"name": "m", "kind": "chat", "deployments": [{"upstream": "here", "model": str(model)}]}], {"here": upstream})


@dataclass
class Stage:
    """A gateway and the vLLM that it runs."""

    live: Live
    engine: str

    @property
    def status(self) -> Any:
        return self.live.runtime.status(self.engine)

    def processes(self) -> dict[str, int]:
        """Process ids of the API process, the engine core and the worker."""
        api = psutil.Process(self.status.pid)
        found = {"API process": api.pid}
        for child in api.children(recursive=True):
            title = " ".join([child.name(), *child.cmdline()])
            for name, mark in (("engine core", "EngineCore"), ("worker", "Worker")):
                if mark in title:
                    found.setdefault(name, child.pid)
        return found

    def everything(self) -> list[int]:
        api = psutil.Process(self.status.pid)
        return [api.pid, *(child.pid for child in api.children(recursive=True))]

    async def port(self) -> int:
        async with self.live.runtime.lease(self.engine) as lease:
            return lease.port


@asynccontextmanager
async def stage_of(model: Path, data_dir: Path) -> AsyncIterator[Stage]:
    async with live_gateway(settings_for(model), data_dir=data_dir) as live:
        yield Stage(live, f"here:{model}")


async def answer(client: openai.AsyncOpenAI) -> str:
    reply = await client.chat.completions.create(model="m", messages=HELLO, max_tokens=8)
    assert reply.usage is not None
    assert reply.usage.completion_tokens
    return reply.choices[0].message.content or ""


async def until_s(condition: Callable[[], bool], limit_s: float) -> float:
    """How long it took until `condition` held."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < limit_s, f"waited in vain for {limit_s} s"
        await asyncio.sleep(0.02)
    return time.monotonic() - started


async def killed_in_mid_stream(stage: Stage, client: openai.AsyncOpenAI, pid: int) -> float:
    """Seconds from the kill to the error event."""
    stream = await client.chat.completions.create(model="m", messages=HELLO, max_tokens=1500, stream=True, extra_body=ENDLESS)
    for _ in range(5):
        await anext(stream)
    os.kill(pid, signal.SIGKILL)
    killed_at = time.monotonic()
    with pytest.raises(openai.APIError) as caught:
        await drained(stream)
    took_s = time.monotonic() - killed_at
    assert (caught.value.code, caught.value.type) == ("engine_unavailable", "service_unavailable_error"), caught.value
    return took_s


async def drained(stream: AsyncIterable[object]) -> None:
    async for _ in stream:
        pass


async def killed_while_idle(stage: Stage, client: openai.AsyncOpenAI, pid: int) -> float:
    """Seconds from the kill to the moment from which a request gets a new engine."""
    os.kill(pid, signal.SIGKILL)
    return await until_s(lambda: stage.status.state != "ready", 30)


@pytest.mark.parametrize("kill", [killed_in_mid_stream, killed_while_idle])
async def test_each_of_its_processes_may_be_killed(
    tmp_path: Path, kill: Callable[[Stage, openai.AsyncOpenAI, int], Awaitable[float]]
) -> None:
    async with stage_of(resolve_demo(), tmp_path) as stage, stage.live.sdk(timeout=1200) as client:
        started = time.monotonic()
        await answer(client)
        print(f"\nfirst answer after {time.monotonic() - started:.1f} s", flush=True)
        for name in ("engine core", "worker", "API process"):
            stage.live.runtime.reset(stage.engine)  # each of them is the first crash
            restarts, port, before = stage.status.restarts, await stage.port(), stage.everything()
            noticed_s = await kill(stage, client, stage.processes()[name])
            asked = time.monotonic()
            await answer(client)
            served_s = time.monotonic() - asked
            print(f"{name} {kill.__name__}: noticed after {noticed_s:.2f} s, next answer after {served_s:.1f} s", flush=True)
            assert noticed_s <= NOTICED_S, name
            assert stage.status.restarts == restarts + 1, f"{name}: more than one restart"
            assert not [pid for pid in before if is_running(pid)], f"{name}: orphans"
            assert await stage.port() == port or not is_taken("127.0.0.1", port), f"{name}: its port is still taken"
        last = stage.everything()
    assert not [pid for pid in last if is_running(pid)]


async def test_a_checkpoint_that_kills_the_engine_is_given_up_with_the_reason(tmp_path: Path) -> None:
    async with (
        stage_of(build_checkpoint(tmp_path / "head32", linear_head_dim=32), tmp_path) as stage,
        stage.live.sdk(timeout=1200) as client,
    ):
        started = time.monotonic()
        with pytest.raises(openai.APIStatusError) as first:
            await answer(client)
        print(f"\nrefused after {time.monotonic() - started:.1f} s: {first.value}")
        with pytest.raises(openai.APIStatusError) as second:
            await answer(client)
        models = await client.models.list()
    for error in (first.value, second.value):
        assert (error.status_code, error.code) == (503, "engine_unavailable")
        assert "head dimension of 32" in str(error)
        assert "retry-after" in error.response.headers
    assert "is given up for now" in str(second.value)
    deployment = models.data[0].model_dump()["tandem"]["deployments"][0]
    assert deployment["state"] == "failed"
    assert deployment["reason"].startswith("given up: it crashed once")
    assert stage.status.restarts == 0


async def test_when_200_clients_leave_in_mid_stream_nothing_is_left_running(tmp_path: Path) -> None:
    async with stage_of(resolve_demo(), tmp_path) as stage, stage.live.sdk(timeout=1200) as client:
        await answer(client)
        writers = [await streaming_client(stage.live.port) for _ in range(CLIENTS)]
        async with httpx.AsyncClient(trust_env=False, timeout=60) as http:
            url = f"http://127.0.0.1:{await stage.port()}/metrics"
            busy = (0.0, 0.0)
            while sum(busy) < CLIENTS:
                busy = await counts(http, url)
                await asyncio.sleep(0.2)
            for _, writer in writers:
                writer.transport.abort()
            left_at = time.monotonic()
            while sum(await counts(http, url)):
                assert time.monotonic() - left_at < 60, await counts(http, url)
                await asyncio.sleep(0.05)
            took_s = time.monotonic() - left_at
        print(f"\n{busy[0]:.0f} running and {busy[1]:.0f} waiting; none {took_s:.2f} s after the clients left")
        assert stage.status.leases == 0
        await answer(client)
    assert took_s <= LEFT_S


async def streaming_client(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection on which an answer of many tokens has been asked for."""
    body = json.dumps({"model": "m", "messages": HELLO, "stream": True, "max_tokens": 1500, **ENDLESS}).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        + body
    )
    return reader, writer


async def counts(http: httpx.AsyncClient, url: str) -> tuple[float, float]:
    """How many requests vLLM runs and lets wait, by its own metrics."""
    text = (await http.get(url)).text
    lines = [line for line in text.splitlines() if line.startswith(("vllm:num_requests_running", "vllm:num_requests_waiting{"))]
    found = {line.partition("{")[0]: float(line.rpartition(" ")[2]) for line in lines}
    return found["vllm:num_requests_running"], found["vllm:num_requests_waiting"]


def resolve_demo() -> Path:
    return Path(resolve_model("builtin:demo"))


def build_checkpoint(folder: Path, linear_head_dim: int) -> Path:
    """The demo model's architecture with random weights and another head dimension of its linear attention."""
    import torch
    from transformers import Qwen3_5Config, Qwen3_5ForConditionalGeneration

    folder.mkdir()
    for file in resolve_demo().iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, folder)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] |= {"linear_key_head_dim": linear_head_dim, "linear_value_head_dim": linear_head_dim}
    torch.manual_seed(0)
    Qwen3_5ForConditionalGeneration(Qwen3_5Config.from_dict(config)).to(torch.bfloat16).save_pretrained(folder)
    return folder
