"""/v1/engines: the engine processes of this machine, looked at, loaded and unloaded over HTTP by keys that are marked `admin` only.

A load or an unload goes on when whoever asked for it has left; a request that needs an engine starts it as ever.
"""

from __future__ import annotations

import asyncio
from typing import Annotated, Literal

from fastapi import APIRouter, Query
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict

from gateway.admin_keys import require_admin
from gateway.auth import KeyRing
from gateway.description import errors, reply
from gateway.errors import MAX_NAME, GatewayError
from local_models.errors import UnknownEngine
from local_models.launch import EngineKind
from local_models.process import State
from local_models.runtime import Runtime

PATH = "/v1/engines"
DRAIN_S, LONGEST_DRAIN_S = 30.0, 3600.0


class EngineView(BaseModel):
    """One engine process as it is now."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    object: Literal["engine"] = "engine"
    id: str
    """Upstream and model, as in `local:Qwen/Qwen3.5-9B`."""
    kind: EngineKind
    model: str
    """What it serves: an id on the Hub, a folder, or `builtin:` and a name."""
    state: State
    progress: float | None
    """Of loading, 0 to 1; null: it does not load, or does not say."""
    stage: str | None
    leases: int
    """Requests that use it or wait for it."""
    restarts: int
    """Starts that followed a crash."""
    reason: str | None
    """Why it failed last."""
    pid: int | None


class EngineList(BaseModel):
    """Every engine of the configuration."""

    object: Literal["list"] = "list"
    data: list[EngineView]


def engine_routes(runtime: Runtime, keys: KeyRing) -> APIRouter:
    """The routes over this runtime."""
    routes = APIRouter(prefix=PATH, dependencies=[require_admin(keys, "engines")], responses=errors(401, 403, 500))

    @routes.get("")
    async def list_engines() -> EngineList:
        """Every engine, running or not, and what it does."""
        return EngineList(data=[_view(runtime, engine_id) for engine_id in runtime.engines()])

    begun = {200: reply(EngineView, "It is ready."), 202: reply(EngineView, "It starts."), **errors(400, 404, 503)}

    @routes.post("/{engine_id:path}/load", response_model=None, responses=begun)
    async def load_engine(
        engine_id: str, wait: Annotated[bool, Query(description="Answer when it is ready, or has failed.")] = False
    ) -> JSONResponse:
        """Start it, even if it was given up."""
        known = _known(runtime, engine_id)
        loading = runtime.load(known)
        if wait:
            await asyncio.shield(loading)
        else:
            await asyncio.sleep(0)  # the task takes its first step: the state that is answered is the one after it
        return JSONResponse(_view(runtime, known).model_dump(), 200 if loading.done() else 202)

    @routes.post("/{engine_id:path}/unload", responses=errors(400, 404))
    async def unload_engine(
        engine_id: str,
        drain_s: Annotated[
            float,
            Query(ge=0, le=LONGEST_DRAIN_S, description="Seconds that requests under way have to end; then it is stopped all the same."),
        ] = DRAIN_S,
    ) -> EngineView:
        """Stop it once nobody uses it, and answer when it is gone. Requests that come meanwhile wait, and start it again."""
        known = _known(runtime, engine_id)
        await asyncio.shield(runtime.unload(known, drain_s))
        return _view(runtime, known)

    return routes


def _known(runtime: Runtime, engine_id: str) -> str:
    """Raises GatewayError (404)."""
    if engine_id in runtime.engines():
        return engine_id
    known = ", ".join(f"'{name}'" for name in runtime.engines()) or "none is configured"
    raise GatewayError(404, f"the engine '{engine_id[:MAX_NAME]}' does not exist; engines here: {known}", "engine_not_found")


def _view(runtime: Runtime, engine_id: str) -> EngineView:
    """Raises GatewayError (404) where the configuration has changed meanwhile."""
    try:
        spec, status = runtime.engines()[engine_id], runtime.status(engine_id)
    except (KeyError, UnknownEngine) as error:
        raise GatewayError(404, f"the engine '{engine_id}' has left the configuration", "engine_not_found") from error
    return EngineView(
        id=engine_id,
        kind=spec.kind,
        model=spec.model,
        state=status.state,
        progress=status.progress,
        stage=status.stage,
        leases=status.leases,
        restarts=status.restarts,
        reason=status.reason,
        pid=status.pid,
    )
