"""/v1/engines over HTTP, with real engine processes: who may, what is said, what happens."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.api_key import NewKey, installation_key
from gateway.auth import KeyRing
from gateway.key_file import KeyFile
from tests.gateway.live import KEY, Live, live_gateway, settings_of
from tests.local_models.conftest import until

FAKE_VLLM = {"kind": "vllm", "python": sys.executable, "env": {"PYTHONPATH": str(Path(__file__).parent.parent / "fake_vllm")}}
ENGINE, BROKEN = "here:o/m", "here:no/kernels"
PATH = "/v1/engines"


@pytest.fixture
async def live(tmp_path: Path) -> AsyncIterator[Live]:
    models = [{"name": name, "kind": "chat", "deployments": [{"upstream": "here", "model": name}]} for name in ("o/m", "no/kernels")]
    keys = KeyRing([installation_key(KEY)], "ask the operator", KeyFile(tmp_path / "keys.json"))
    async with live_gateway(settings_of(models, {"here": FAKE_VLLM}), data_dir=tmp_path, keys=keys) as running:
        yield running


async def engines(http: httpx.AsyncClient) -> dict[str, dict[str, Any]]:
    listed = (await http.get(PATH)).json()
    assert listed["object"] == "list"
    return {engine["id"]: engine for engine in listed["data"]}


async def test_an_engine_is_listed_loaded_and_unloaded(live: Live) -> None:
    async with live.http() as http:
        stopped = {"object": "engine", "id": ENGINE, "kind": "vllm", "model": "o/m", "state": "stopped", "progress": None, "stage": None}
        assert (await engines(http))[ENGINE] == {**stopped, "leases": 0, "restarts": 0, "reason": None, "pid": None}
        begun = await http.post(f"{PATH}/{ENGINE}/load")
        assert (begun.status_code, begun.json()["state"], begun.json()["leases"]) == (202, "starting", 1)
        ready = await http.post(f"{PATH}/{ENGINE}/load?wait=true")
        assert (ready.status_code, ready.json()["state"], ready.json()["leases"]) == (200, "ready", 0)
        assert (await engines(http))[ENGINE]["pid"] == live.runtime.status(ENGINE).pid is not None
        again = await http.post(f"{PATH}/{ENGINE}/load")
        assert (again.status_code, again.json()["state"]) == (200, "ready")
        gone = await http.post(f"{PATH}/{ENGINE}/unload")
        assert (gone.status_code, gone.json()["state"], gone.json()["pid"]) == (200, "stopped", None)


async def test_an_unload_waits_for_requests_under_way_as_long_as_it_may(live: Live) -> None:
    async with live.http() as http, live.runtime.lease(ENGINE):
        unload = asyncio.create_task(http.post(f"{PATH}/{ENGINE}/unload?drain_s=60"))
        await until(lambda: live.runtime.status(ENGINE).leases == 1, "it is leased")
        assert (await http.get("/healthz")).status_code == 200
        assert not unload.done()
        unload.cancel()
        await asyncio.gather(unload, return_exceptions=True)
        assert live.runtime.status(ENGINE).state == "ready"
    await until(lambda: live.runtime.status(ENGINE).state == "stopped", "the unload goes on without whoever asked for it")
    async with live.http() as http, live.runtime.lease(ENGINE):
        assert (await http.post(f"{PATH}/{ENGINE}/unload?drain_s=0")).json()["state"] == "stopped"


async def test_a_load_that_fails_says_why(live: Live) -> None:
    async with live.http() as http:
        failed = await http.post(f"{PATH}/{BROKEN}/load?wait=true")
        assert (failed.status_code, failed.json()["error"]["code"]) == (503, "engine_unavailable")
        engine = (await engines(http))[BROKEN]
        assert (engine["state"], engine["restarts"]) == ("failed", 0)
        for said in (failed.json()["error"]["message"], engine["reason"]):
            assert "head dimension of 32" in said


@pytest.mark.parametrize("action", ["load", "unload"])
async def test_only_engines_of_the_configuration_exist(live: Live, action: str) -> None:
    async with live.http() as http:
        unknown = (await http.post(f"{PATH}/here:other/{action}")).json()["error"]
    assert unknown["code"] == "engine_not_found"
    assert unknown["message"] == f"the engine 'here:other' does not exist; engines here: '{ENGINE}', '{BROKEN}'"


@pytest.mark.parametrize(
    ("query", "param"),
    [("load?wait=perhaps", "query.wait"), ("unload?drain_s=-1", "query.drain_s"), ("unload?drain_s=nan", "query.drain_s")],
)
async def test_what_cannot_be_meant_is_400(live: Live, query: str, param: str) -> None:
    async with live.http() as http:
        refused = await http.post(f"{PATH}/{ENGINE}/{query}")
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)


async def test_only_admin_keys_may_look_or_change(live: Live) -> None:
    file = live.app._keys.file
    assert file is not None
    _, plain = file.create(NewKey(name="someone"), 0.0)
    live.app._keys.refresh()
    for key, status in ((plain, 403), (None, 401)):
        async with live.http(key) as http:
            for method, path in (("GET", PATH), ("POST", f"{PATH}/{ENGINE}/load"), ("POST", f"{PATH}/{ENGINE}/unload")):
                refused = await http.request(method, path)
                assert refused.status_code == status, (method, path)
                assert status == 401 or "may not manage engines" in refused.json()["error"]["message"]
    assert live.runtime.status(ENGINE).state == "stopped"
