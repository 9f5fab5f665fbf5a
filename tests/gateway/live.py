"""A gateway that really listens, for tests to talk to over HTTP, and engines that are scripted upstreams."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from fastapi import APIRouter
from openai import AsyncOpenAI

from adapters.build import engine_specs, memory_rules
from config.schema import Settings
from gateway.app import Gateway, create_app
from gateway.auth import KeyRing
from gateway.client_connection import ClientConnection
from gateway.record import Sink
from gateway.service import Service, service
from gateway.startup import listen
from local_models.errors import EngineLost, StartFailed
from local_models.launch import EngineSpec
from local_models.runtime import EngineStatus, Lease, Runtime

KEY = "sk-test"


class ScriptedRuntime(Runtime):
    """A runtime whose engines run already, at the given ports; port 0 is an engine that does not start."""

    def __init__(self, specs: Mapping[str, EngineSpec], ports: Mapping[str, int]) -> None:
        super().__init__(specs, data_dir=Path("/nonexistent"))
        self._ports = ports
        self.leases = 0
        self.loading: asyncio.Event | None = None  # leases wait for it, as for an engine that loads
        self.stage = "reading weights"

    def lease(self, engine_id: str) -> AbstractAsyncContextManager[Lease]:
        return self._scripted(engine_id)

    @asynccontextmanager
    async def _scripted(self, engine_id: str) -> AsyncIterator[Lease]:
        self.leases += 1
        try:
            if self.loading is not None:
                await self.loading.wait()
            if not self._ports[engine_id]:
                raise StartFailed(engine_id, "it ended with exit code 1: no such checkpoint", retry_after_s=3)
            yield Lease(engine_id, "127.0.0.1", self._ports[engine_id], "engine-key")
        finally:
            self.leases -= 1

    async def notice_end(self, lease: Lease, within_s: float) -> EngineLost | None:
        return None

    def status(self, engine_id: str) -> EngineStatus:
        waiting = self.loading is not None and not self.loading.is_set()
        return EngineStatus("starting" if waiting else "ready", 0.4, self.stage, self.leases, 0, None, None, Path("log"))


@dataclass
class Live:
    """A running gateway. leaving out `key` from a call means no key."""

    app: Gateway
    runtime: Runtime
    port: int
    server: uvicorn.Server
    serving: asyncio.Task[None]

    async def stop(self) -> None:
        """Return when it has ended."""
        self.server.should_exit = True
        await self.serving

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def sdk(self, **options: Any) -> AsyncOpenAI:
        return AsyncOpenAI(base_url=self.base_url, api_key=options.pop("key", KEY), max_retries=options.pop("max_retries", 0), **options)

    def http(self, key: str | None = KEY) -> httpx.AsyncClient:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        return httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.port}", headers=headers, timeout=20, trust_env=False)


@asynccontextmanager
async def live_gateway(
    settings: Settings,
    runtime: Runtime | None = None,
    *,
    data_dir: Path = Path("/nonexistent"),
    keys: KeyRing | None = None,
    sinks: Sequence[Sink] = (),
    routes: Sequence[APIRouter] = (),
) -> AsyncIterator[Live]:
    owned = runtime or Runtime(engine_specs(settings), data_dir=data_dir, memory=memory_rules(settings))
    app = create_app(settings, owned, keys or KeyRing.of([KEY], "ask the operator"), sinks, routes)
    async with _served(app, owned) as live:
        try:
            yield live
        finally:
            await live.stop()
            app.close()
            await owned.close()


@asynccontextmanager
async def whole_gateway(
    settings: Settings, data_dir: Path, runtime: Runtime | None = None, *, keys: KeyRing | None = None, environ: Mapping[str, str] = {}
) -> AsyncIterator[tuple[Live, Service]]:
    """The same with everything that `tandem serve` has: usage, budgets, metrics, logs (to nowhere), traces if `environ` says so."""
    ring = keys or KeyRing.of([KEY], "ask the operator")
    whole = service(settings, data_dir=data_dir, keys=ring, environ=environ, write=lambda _: None, runtime=runtime)
    await whole.start()
    async with _served(whole.app, whole.runtime) as live:
        try:
            yield live, whole
        finally:
            await live.stop()
            await whole.close()


@asynccontextmanager
async def _served(app: Gateway, runtime: Runtime) -> AsyncIterator[Live]:
    listener = listen("127.0.0.1", 0, "--port")
    config = uvicorn.Config(
        app, http=ClientConnection, ws="none", lifespan="off", log_config=None, access_log=False, timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign,assignment] # signals belong to pytest
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started:
        await asyncio.sleep(0.005)
    try:
        yield Live(app, runtime, listener.getsockname()[1], server, serving)
    finally:
        listener.close()


def settings_of(models: list[dict[str, Any]], upstreams: dict[str, Any], **more: Any) -> Settings:
    return Settings.model_validate({"models": models, "upstreams": upstreams, **more})


def chat_settings(*base_urls: str, model: dict[str, Any] | None = None, upstream: dict[str, Any] | None = None, **more: Any) -> Settings:
    """One chat model `m` whose deployments are hosted at `base_urls`, in order; none is asked twice unless `model` says so."""
    names = [f"up{number}" for number in range(len(base_urls))]
    deployments = [{"upstream": name, "model": f"vendor/{name}"} for name in names]
    spec = {"name": "m", "kind": "chat", "deployments": deployments, "routing": {"max_wait_s": 0}}
    upstreams = {
        name: {"kind": "openai", "base_url": url, "api_key": "upstream-secret", **(upstream or {})}
        for name, url in zip(names, base_urls, strict=True)
    }
    return settings_of([spec | (model or {})], upstreams, **more)


IMAGE_MODEL: dict[str, Any] = {
    "name": "draw",
    "kind": "image",
    "deployments": [{"upstream": "pictures", "model": "x"}],
    "image": {"default_size": "128x128", "size_multiple": 32, "min_side": 64, "max_side": 256, "max_n": 4, "num_inference_steps": 8},
}


def image_settings(**upstream: Any) -> Settings:
    """One image model `draw`, and one chat model `m` that nobody answers for."""
    chat_model = {"name": "m", "kind": "chat", "deployments": [{"upstream": "up", "model": "m"}]}
    return settings_of(
        [IMAGE_MODEL, chat_model],
        {"pictures": {"kind": "diffusers", **upstream}, "up": {"kind": "openai", "base_url": "http://127.0.0.1:9/v1"}},
    )
