"""/v1/admin/keys over HTTP: who may manage keys, and that a change holds with the answer."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest

from adapters.build import engine_specs
from gateway.api_key import NewKey, installation_key
from gateway.auth import KeyRing
from gateway.key_file import KeyFile
from tests.gateway.live import KEY, Live, ScriptedRuntime, image_settings, live_gateway

PATH = "/v1/admin/keys"


@pytest.fixture
def file(tmp_path: Path) -> KeyFile:
    return KeyFile(tmp_path / "keys.json")


@pytest.fixture
async def live(file: KeyFile) -> AsyncIterator[Live]:
    settings = image_settings()
    keys = KeyRing([installation_key(KEY)], "ask the operator", file)
    async with live_gateway(settings, ScriptedRuntime(engine_specs(settings), {}), keys=keys) as running:
        yield running


async def create(live: Live, **fields: Any) -> dict[str, Any]:
    async with live.http() as http:
        reply = await http.post(PATH, json={"name": "a", **fields})
        assert reply.status_code == 201, reply.text
        assert reply.headers["cache-control"] == "no-store"
        made: dict[str, Any] = reply.json()
        return made


async def status(live: Live, key: str, method: str = "GET", path: str = "/v1/models", **more: Any) -> tuple[int, str | None]:
    async with live.http(key) as http:
        reply = await http.request(method, path, **more)
        return reply.status_code, reply.json()["error"]["code"] if reply.status_code >= 400 else None


async def test_a_key_is_made_used_listed_without_its_secret_and_revoked(live: Live) -> None:
    limits = {"requests_per_minute": 5, "budget_usd_per_day": 1}
    made = await create(live, name="laptop", models=["m"], limits=limits, expires_at=int(time.time()) + 3600)
    secret = made.pop("key")
    assert (made["object"], made["name"], made["state"], made["models"], made["admin"]) == ("api_key", "laptop", "active", ["m"], False)
    assert {name: value for name, value in made["limits"].items() if value is not None} == limits
    assert await status(live, secret) == (200, None)
    async with live.http() as http:
        listed = await http.get(PATH)
        assert listed.json() == {"object": "list", "data": [made]}
        assert secret not in listed.text
        revoked = (await http.delete(f"{PATH}/{made['id']}")).json()
        assert (revoked["state"], revoked["id"]) == ("revoked", made["id"])
        assert revoked["revoked_at"] >= made["created_at"]
        assert (await http.get(PATH)).json()["data"] == [revoked]
    assert await status(live, secret) == (401, "invalid_api_key")


async def test_the_sdk_raises_the_right_class_for_a_revoked_and_an_expired_key(live: Live, file: KeyFile) -> None:
    made = await create(live)
    file.revoke(made["id"], time.time())
    _, expired = file.create(NewKey(name="old", expires_at=1), time.time())
    live_key = (await create(live))["key"]  # its answer means that the file has been read again
    for secret, code in ((made["key"], "invalid_api_key"), (expired, "api_key_expired")):
        async with live.sdk(key=secret) as sdk:
            with pytest.raises(openai.AuthenticationError) as caught:
                await sdk.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}])
            assert caught.value.code == code
            assert secret not in str(caught.value)
    assert await status(live, live_key) == (200, None)


@pytest.mark.parametrize(("method", "path"), [("GET", PATH), ("POST", PATH), ("DELETE", f"{PATH}/key_1")])
async def test_only_admin_keys_may_manage_keys(live: Live, file: KeyFile, method: str, path: str) -> None:
    plain = (await create(live, name="plain"))["key"]
    before = file.path.read_bytes()
    assert await status(live, plain, method, path, json={"name": "b"} if method == "POST" else None) == (403, "admin_required")
    assert await status(live, "sk-none", method, path) == (401, "invalid_api_key")
    assert file.path.read_bytes() == before
    admin = (await create(live, name="admin", admin=True))["key"]
    assert (await status(live, admin, method, path, json={"name": "b"} if method == "POST" else None))[0] in (200, 201, 404)


@pytest.mark.parametrize(
    ("body", "param", "code", "said"),
    [
        (b"{", None, "invalid_json", "not valid JSON"),
        (b"[]", None, "invalid_type", "must be a JSON object"),
        (b"{}", "name", "missing_required_parameter", "'name' is missing"),
        (b'{"name": ""}', "name", "invalid_value", "at least 1 character"),
        (b'{"name": "a", "nmae": 1}', "nmae", "unknown_parameter", "the fields of a key are name, models, expires_at, limits, admin"),
        (b'{"name": "a", "models": ["a b"]}', "models[0]", "invalid_value", "match pattern"),
        (b'{"name": "a", "limits": {"rpm": 1}}', "limits.rpm", "unknown_parameter", "those of limits requests_per_minute"),
        (b'{"name": "a", "limits": {"requests_per_minute": "9"}}', "limits.requests_per_minute", "invalid_value", "valid integer"),
        (b'{"name": "a", "expires_at": 5}', "expires_at", "invalid_value", "expires_at 5 is past"),
    ],
)
async def test_a_wish_that_makes_no_sense_is_told_why(
    live: Live, file: KeyFile, body: bytes, param: str | None, code: str, said: str
) -> None:
    async with live.http() as http:
        reply = await http.post(PATH, content=body)
        error = reply.json()["error"]
        assert (reply.status_code, error["param"], error["code"]) == (400, param, code)
        assert said in error["message"]
    assert file.read() == ()


async def test_a_key_that_is_not_there_is_404(live: Live) -> None:
    assert await status(live, KEY, "DELETE", f"{PATH}/key_1") == (404, "key_not_found")
    await create(live)
    assert await status(live, KEY, "DELETE", f"{PATH}/installation") == (404, "key_not_found")


async def test_a_broken_file_is_500_with_the_reason_and_is_left_as_it_is(live: Live, file: KeyFile) -> None:
    file.path.write_text("{}")
    for method, path in (("GET", PATH), ("POST", PATH), ("DELETE", f"{PATH}/key_1")):
        assert await status(live, KEY, method, path, json={"name": "a"}) == (500, "key_file_unusable")
    assert file.path.read_text() == "{}"


async def test_a_wrong_method_is_told_all_the_right_ones(live: Live) -> None:
    async with live.http() as http:
        reply = await http.put(PATH)
        assert (reply.status_code, reply.headers["allow"]) == (405, "GET, POST")
        assert "takes GET or POST, not PUT" in reply.json()["error"]["message"]


async def test_a_body_that_is_too_large_is_refused(live: Live) -> None:
    assert await status(live, KEY, "POST", PATH, content=b" " * (21 * 1024 * 1024)) == (413, "request_too_large")


async def test_a_key_sees_the_models_that_it_may_use(live: Live) -> None:
    secret = (await create(live, models=["dr*"]))["key"]
    async with live.http(secret) as http:
        assert [model["id"] for model in (await http.get("/v1/models")).json()["data"]] == ["draw"]
        assert (await http.get("/v1/models/draw")).status_code == 200
    assert await status(live, secret, path="/v1/models/m") == (403, "model_not_allowed")
    async with live.http() as http:
        assert [model["id"] for model in (await http.get("/v1/models")).json()["data"]] == ["draw", "m"]


async def test_the_description_names_nothing_that_it_does_not_describe(live: Live) -> None:
    async with live.http(None) as http:
        text = (await http.get("/openapi.json")).text
        described = (await http.get("/openapi.json")).json()
    assert {"get", "post"} == set(described["paths"][PATH])
    for name in re.findall(r'"\$ref":"#/components/schemas/(\w+)"', text):
        assert name in described["components"]["schemas"]
    fields = described["paths"][PATH]["post"]["requestBody"]["content"]["application/json"]["schema"]["properties"]
    assert set(fields) == set(NewKey.model_fields)
