"""The API's description: valid, complete, and true of every reply that schemathesis can get out of a whole gateway.

TANDEM_TEST_SCHEMA=1 tries many more requests. The seed is fixed: what fails once fails again.
"""

from __future__ import annotations

import asyncio
import os
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from fastapi import FastAPI
from fastapi.routing import APIRoute, iter_route_contexts
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import events, from_schema
from schemathesis.hooks import GLOBAL_HOOK_DISPATCHER

from adapters.build import engine_specs
from gateway import chat
from gateway.app import _ControlPlane, _Served
from gateway.errors import ROUTES
from tests.gateway.live import IMAGE_MODEL, KEY, Live, ScriptedRuntime, settings_of, whole_gateway
from tests.gateway.test_service import PICTURE, new_key, ring
from tests.scripted_upstream import Exchange, Request, answering, scripted_upstream

EXAMPLES = 300 if os.environ.get("TANDEM_TEST_SCHEMA") else 30
SEED = 20261124
CHAT_MODEL = {"name": "m", "kind": "chat", "deployments": [{"upstream": "up", "model": "vendor/m"}], "routing": {"max_wait_s": 0}}
# Names that a client finds in the API's lists, and no generator would guess.
MODELS = {"/v1/chat/completions": "m", "/v1/images/generations": "draw"}


async def draws(request: Request, exchange: Exchange) -> None:
    """A picture for each that is asked for."""
    await exchange.start_stream()
    *pictures, done = PICTURE
    for index in range(request.json["n"]):
        await exchange.events(*({**event, "image_index": index} for event in pictures))
    await exchange.events(done)
    await exchange.end_stream()


@dataclass
class Whole:
    """A gateway for which everything works. key_id: of a managed key."""

    live: Live
    key_id: str
    document: dict[str, Any]


@asynccontextmanager
async def everything(data_dir: Path) -> AsyncIterator[Whole]:
    async with scripted_upstream(answering("Hello", " there")) as upstream, scripted_upstream(draws) as worker:
        upstreams = {"up": {"kind": "openai", "base_url": upstream.base_url, "api_key": "secret"}, "pictures": {"kind": "diffusers"}}
        settings = settings_of([CHAT_MODEL, IMAGE_MODEL], upstreams)
        keys = ring(data_dir)
        runtime = ScriptedRuntime(engine_specs(settings), {"pictures:x": worker.port})
        async with whole_gateway(settings, data_dir, runtime, keys=keys) as (live, _), live.http(None) as http:
            key_id, _ = new_key(keys)
            yield Whole(live, key_id, (await http.get("/openapi.json")).json())


def api_of(live: Live) -> FastAPI:
    served = live.app._serving
    assert isinstance(served, _Served)
    assert isinstance(served.rest, _ControlPlane)
    return served.rest


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


async def test_the_description_is_valid_openapi(tmp_path: Path) -> None:
    async with everything(tmp_path) as whole:
        schemathesis.openapi.from_dict(whole.document).validate()
        broken = whole.document | {"paths": {"/x": {"get": {"responses": {"200": {}}}}}}
        with pytest.raises(Exception, match="description"):
            schemathesis.openapi.from_dict(broken).validate()


async def test_it_describes_every_route_and_nothing_else(tmp_path: Path) -> None:
    async with everything(tmp_path) as whole:
        described = {(method, path) for method, path, _ in operations(whole.document)}
        served = {
            (method, (context.path or "").replace(":path}", "}"))
            for context in iter_route_contexts(api_of(whole.live).routes)
            if isinstance(context.original_route, APIRoute)
            for method in context.methods or ()
        }
    assert len(served) > 8
    assert described == served | {("POST", chat.PATH)}


async def test_every_failure_has_the_one_shape(tmp_path: Path) -> None:
    async with everything(tmp_path) as whole:
        document = whole.document
    shapes = {
        (status, str(response["content"]))
        for _, path, operation in operations(document)
        for status, response in operation["responses"].items()
        if path != "/readyz" and not status.startswith("2")
    }
    assert {status for status, _ in shapes} >= {"400", "401", "403", "404", "413", "429", "500", "502", "503", "504", "default"}
    assert "422" not in str(document)
    assert {content for _, content in shapes} == {str({"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}})}
    assert set(document["components"]["schemas"]["ErrorFields"]["required"]) == {"message", "type", "param", "code"}


async def test_what_needs_a_key_says_so(tmp_path: Path) -> None:
    async with everything(tmp_path) as whole, whole.live.http(None) as http:
        for method, path, operation in operations(whole.document):
            reply = await http.request(method, path.replace("{", "").replace("}", ""))
            assert (reply.status_code == 401) == ("401" in operation["responses"]) == ("security" not in operation), (method, path)
        assert set(whole.document["components"]["securitySchemes"]) == {name for way in whole.document["security"] for name in way}


async def test_a_wrong_route_is_told_those_of_the_description(tmp_path: Path) -> None:
    async with everything(tmp_path) as whole:
        paths = {path for path in whole.document["paths"] if path.startswith("/v1/") and "{" not in path}
    assert set(ROUTES.replace(" and ", ", ").split(", ")) == paths


@pytest.mark.timeout(10 * EXAMPLES + 300)
async def test_no_request_gets_a_5xx_or_a_reply_that_is_not_described(tmp_path: Path) -> None:
    async with everything(tmp_path) as whole:
        tried, problems = await asyncio.to_thread(found_by_schemathesis, whole)
        paths = {f"{method} {path}" for method, path, _ in operations(whole.document)}
        in_flight = whole.live.app.admission.in_flight().by_model
    assert not problems, "\n\n".join(problems[:20])
    assert set(tried) == paths
    assert tried["POST /v1/chat/completions"] >= {200, 400, 401}
    assert tried["POST /v1/images/generations"] >= {200, 400, 401}
    assert tried["POST /v1/admin/keys"] >= {201, 400, 401}
    assert tried["DELETE /v1/admin/keys/{key_id}"] >= {200, 404, 401}
    assert not any(in_flight.values())


async def test_schemathesis_would_find_it(tmp_path: Path) -> None:
    """A description that is not true of the replies."""
    async with everything(tmp_path) as whole:
        whole.document["components"]["schemas"]["Health"]["properties"]["status"]["const"] = "splendid"
        whole.document["paths"] = {"/healthz": whole.document["paths"]["/healthz"]}
        _, problems = await asyncio.to_thread(found_by_schemathesis, whole)
    assert "splendid" in "".join(problems)


@contextmanager
def everywhere(name: str, hook: Callable[..., None]) -> Iterator[None]:
    """schemathesis knows this kind of hook for the whole process only."""
    GLOBAL_HOOK_DISPATCHER.register_hook_with_name(hook, name)
    try:
        yield
    finally:
        GLOBAL_HOOK_DISPATCHER.unregister(hook)


def found_by_schemathesis(whole: Whole) -> tuple[dict[str, set[int]], list[str]]:
    """Blocks. Operation to the statuses that it gave, and what was wrong."""
    schema = schemathesis.openapi.from_dict(whole.document, config=configuration(whole.live.port))
    tried: dict[str, set[int]] = {}
    problems: list[str] = []

    def steer(context: Any, case: Any, kwargs: dict[str, Any]) -> None:
        if isinstance(case.body, dict) and isinstance(case.body.get("model"), str) and case.body["model"]:
            case.body["model"] = MODELS.get(case.path, case.body["model"])
        key_id = (case.path_parameters or {}).get("key_id")
        if isinstance(key_id, str) and len(key_id) % 2:
            case.path_parameters["key_id"] = whole.key_id

    with everywhere("before_call", steer), warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"schemathesis|hypothesis|jsonschema")
        for event in from_schema(schema).execute():
            if isinstance(event, events.ScenarioFinished):
                label = event.recorder.label
                for interaction in event.recorder.interactions.values():
                    if interaction.response is not None:
                        tried.setdefault(label, set()).add(interaction.response.status_code)
                for checks in event.recorder.checks.values():
                    for check in checks:
                        if check.failure_info is not None:
                            failure = check.failure_info
                            problems.append(f"{label} {check.name}: {failure.failure}\n{failure.code_sample}")
            elif isinstance(event, events.NonFatalError):
                problems.append(f"{event.label}: {event.info.format()}")
            elif isinstance(event, events.FatalError):
                raise event.exception
    return tried, problems


def configuration(port: int) -> SchemathesisConfig:
    return SchemathesisConfig.from_dict(
        {
            "seed": SEED,
            "base-url": f"http://127.0.0.1:{port}",
            "headers": {"Authorization": f"Bearer {KEY}"},
            "continue-on-failure": True,
            "workers": 1,
            "request-timeout": 20,
            "suppress-health-check": ["all"],
            "generation": {"max-examples": EXAMPLES, "deterministic": True, "database": "none"},
            "phases": {"stateful": {"enabled": False}},
            # What a valid chat field means to an upstream, or a size to a model, no description can say: a 400 for it is right.
            "checks": {"positive_data_acceptance": {"enabled": False}},
        }
    )
