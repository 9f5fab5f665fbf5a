"""Names in labels, lines and spans: only those that the configuration or this program knows."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from adapters.errors import _STATUS_OF_TYPE
from gateway.known_names import CODES, KnownNames, known_code, known_route
from tests.gateway.live import chat_settings, image_settings, live_gateway

ROOT = Path(__file__).parents[2]
# Where an error is made, and which of its arguments is the code.
MAKERS = {"GatewayError": 2, "UpstreamError": 2, "invalid": 2, "unavailable": 1}


def test_configured_names_pass_and_others_do_not() -> None:
    names = KnownNames(chat_settings("http://127.0.0.1:1/v1"))
    assert (names.model("m"), names.model("sk-secret"), names.model("")) == ("m", "unknown", "unknown")
    assert (names.upstream("up0"), names.upstream("sk-secret"), names.upstream("")) == ("up0", "unknown", "none")
    assert (names.upstream_model("vendor/up0"), names.upstream_model("sk-secret")) == ("vendor/up0", "unknown")


def test_a_new_configuration_replaces_the_names() -> None:
    names = KnownNames(chat_settings("http://127.0.0.1:1/v1"))
    names.know(image_settings())
    assert (names.model("draw"), names.upstream("pictures"), names.upstream("up0")) == ("draw", "pictures", "unknown")


def test_under_a_pattern_the_label_is_the_pattern_and_the_upstreams_id_is_the_name() -> None:
    settings = chat_settings("http://127.0.0.1:1/v1")
    deployment = settings.models[0].deployments[0].model_copy(update={"model": "*"})
    wild = settings.models[0].model_copy(update={"name": "openrouter/*", "deployments": [deployment]})
    wilder = settings.models[0].model_copy(update={"name": "openrouter/free/*", "deployments": [deployment]})
    names = KnownNames(settings.model_copy(update={"models": [wild, wilder]}))
    assert [names.model(f"openrouter/{name}") for name in ("a/b", "c", "free/d")] == ["openrouter/*", "openrouter/*", "openrouter/free/*"]
    assert names.model("other/a") == "unknown"
    assert (names.upstream_model("a/b"), names.upstream_model("two words")) == ("a/b", "*")


@pytest.mark.parametrize(
    ("code", "label"),
    [
        (None, "none"),
        ("queue_full", "queue_full"),
        ("upstream_http_503", "upstream_http_503"),
        ("upstream_http_9999", "other"),
        ("sk-secret", "other"),
        ("", "other"),
    ],
)
def test_a_code_is_a_known_one_or_other(code: str | None, label: str) -> None:
    assert known_code(code) == label


def codes_in(tree: ast.AST) -> Iterator[str]:
    """The codes that errors are made with, where they are written in place."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in MAKERS:
            position = MAKERS[node.func.id]
            given = [argument.value for argument in node.keywords if argument.arg == "code"] + node.args[position : position + 1]
            yield from (str(value.value) for value in given if isinstance(value, ast.Constant) and value.value is not None)


def test_every_code_that_the_gateway_makes_is_known() -> None:
    made = {
        code
        for folder in ("gateway", "adapters")
        for path in (ROOT / folder).glob("*.py")
        for code in codes_in(ast.parse(path.read_text()))
    }
    assert "queue_full" in made
    assert made - CODES == set()
    assert set(_STATUS_OF_TYPE) - CODES == set()


async def test_every_route_below_v1_is_known() -> None:
    async with live_gateway(image_settings()) as live, live.http() as http:
        described = (await http.get("/openapi.json")).json()["paths"]
    paths = {path for path in described if path.startswith("/v1/")}
    assert paths
    assert {known_route(path) for path in paths} == paths
    assert known_route("/v1/sk-secret") == "other"
