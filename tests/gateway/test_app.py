"""The surface: model lists, health, and every wrong request with its status, its field and its next step."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

from adapters.build import engine_specs
from tests.gateway.live import IMAGE_MODEL, ScriptedRuntime, chat_settings, image_settings, live_gateway, settings_of

CHAT, IMAGES = "/v1/chat/completions", "/v1/images/generations"
USER = {"role": "user", "content": "Hello"}
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [USER], **fields}


def image(**fields: Any) -> dict[str, Any]:
    return {"model": "draw", "prompt": "a red circle", **fields}


BAD_CHAT: list[tuple[Any, int, str | None, str, str]] = [
    (b"{", 400, None, "invalid_json", "not valid JSON"),
    (b"\xff\xfe", 400, None, "invalid_json", "not valid JSON"),
    (b"", 400, None, "invalid_json", "not valid JSON"),
    ([], 400, None, "invalid_type", "must be a JSON object, not an array"),
    (3, 400, None, "invalid_type", "not a number"),
    ({"messages": [USER]}, 400, "model", "missing_required_parameter", "GET /v1/models"),
    (chat(model="nope"), 404, "model", "model_not_found", "the model 'nope' does not exist; chat models here: 'm'"),
    (chat(model="draw"), 404, "model", "model_not_found", "'draw' is an image model: send it to /v1/images/generations"),
    ({"model": "m"}, 400, "messages", "missing_required_parameter", "'messages' is missing"),
    (chat(messages="hi"), 400, "messages", "invalid_type", "array"),
    (chat(messages=[]), 400, "messages", "empty_array", "at least one message"),
    (chat(messages=["hi"]), 400, "messages[0]", "invalid_type", "object"),
    (chat(messages=[{"content": "x"}]), 400, "messages[0].role", "missing_required_parameter", "one of system"),
    (chat(messages=[USER, {"role": "robot", "content": "x"}]), 400, "messages[1].role", "invalid_value", "'robot'"),
    (chat(messages=[{"role": "user"}]), 400, "messages[0].content", "missing_required_parameter", "missing"),
    (chat(messages=[{"role": "user", "content": 5}]), 400, "messages[0].content", "invalid_type", "string or an array"),
    (chat(messages=[{"role": "user", "content": ["x"]}]), 400, "messages[0].content[0]", "invalid_type", "'type'"),
    (chat(messages=[{"role": "user", "content": [PICTURE]}]), 400, "messages[0].content[0]", "unsupported_modality", "text only"),
    (chat(stream="yes"), 400, "stream", "invalid_type", "true or false"),
    (chat(reasoning_effort="huge"), 400, "reasoning_effort", "invalid_value", "one of none, minimal"),
    (chat(reasoning_effort="high", enable_thinking=False), 400, "enable_thinking", "invalid_value", "send one of them"),
]
BAD_IMAGE: list[tuple[Any, int, str | None, str, str]] = [
    (b"nope", 400, None, "invalid_json", "not valid JSON"),
    ([], 400, None, "invalid_type", "JSON object"),
    ({"prompt": "x"}, 400, "model", "missing_required_parameter", "'model' is missing"),
    ({"model": "draw"}, 400, "prompt", "missing_required_parameter", "'prompt' is missing"),
    (image(prompt="  "), 400, "prompt", "invalid_value", "prompt is empty"),
    (image(prompt=""), 400, "prompt", "invalid_value", "prompt is empty"),
    (image(prompt=["a"]), 400, "prompt", "invalid_value", "string"),
    (image(model="nope"), 404, "model", "model_not_found", "image models here: 'draw'"),
    (image(model="m"), 404, "model", "model_not_found", "'m' is a chat model: send it to /v1/chat/completions"),
    (image(size="big"), 400, "size", "invalid_value", "'big' is not WIDTHxHEIGHT"),
    (image(size="128X128"), 400, "size", "invalid_value", "WIDTHxHEIGHT"),
    (image(size="4096x128"), 400, "size", "invalid_value", "width 4096 is outside 64 to 256"),
    (image(size="128x32"), 400, "size", "invalid_value", "height 32 is outside 64 to 256"),
    (image(size="128x130"), 400, "size", "invalid_value", "height 130 is not a multiple of 32"),
    (image(n=0), 400, "n", "invalid_value", "n is 0; the model 'draw' takes 1 to 4"),
    (image(n=5), 400, "n", "invalid_value", "1 to 4"),
    (image(n=1.5), 400, "n", "invalid_value", "integer"),
    (image(n=True), 400, "n", "invalid_value", "integer"),
    (image(num_inference_steps=1000), 400, "num_inference_steps", "invalid_value", "1 to 100"),
    (image(seed=-1), 400, "seed", "invalid_value", "greater than or equal to 0"),
    (image(guidance_scale=1000), 400, "guidance_scale", "invalid_value", "less than or equal to 100"),
    (image(stepz=3), 400, "stepz", "unknown_parameter", "'stepz' is not known; the fields of this route are model, prompt, n, size"),
    (image(response_format="url"), 400, "response_format", "unsupported_value", "only 'b64_json'"),
    (image(output_format="webp"), 400, "output_format", "unsupported_value", "only 'png'"),
    (image(background="transparent"), 400, "background", "unsupported_value", "no transparent background"),
    (image(partial_images=2), 400, "partial_images", "unsupported_value", "image_generation.progress"),
]


@pytest.mark.parametrize(
    ("route", "body", "status", "param", "code", "said"),
    [(CHAT, *case) for case in BAD_CHAT] + [(IMAGES, *case) for case in BAD_IMAGE],
)
async def test_a_wrong_request_is_told_what_is_wrong_and_what_would_be_right(
    route: str, body: Any, status: int, param: str | None, code: str, said: str
) -> None:
    text_only = {"name": "m", "kind": "chat", "input_modalities": ["text"], "deployments": [{"upstream": "up", "model": "m"}]}
    upstreams = {"pictures": {"kind": "diffusers"}, "up": {"kind": "openai", "base_url": "http://127.0.0.1:9/v1"}}
    settings = settings_of([IMAGE_MODEL, text_only], upstreams)
    async with live_gateway(settings, ScriptedRuntime(engine_specs(settings), {})) as live, live.http() as http:
        reply = await http.post(route, content=body if isinstance(body, bytes) else json.dumps(body).encode())
        error = reply.json()["error"]
        assert (reply.status_code, error["param"], error["code"], error["type"]) == (status, param, code, "invalid_request_error")
        assert said in error["message"]
        assert reply.headers["x-request-id"]


@pytest.mark.parametrize(
    ("route", "body"),
    [
        (CHAT, chat(model="x" * 100_000)),
        (CHAT, chat(stream="x" * 100_000)),
        (CHAT, chat(reasoning_effort="x" * 100_000)),
        (CHAT, chat(reasoning=["x"] * 100_000)),
        (IMAGES, image(model="x" * 100_000)),
        (IMAGES, image(quality="x" * 100_000)),
        (IMAGES, image(**{"x" * 100_000: 1})),
    ],
)
async def test_an_error_repeats_only_the_beginning_of_what_was_wrong(route: str, body: Any) -> None:
    async with live_gateway(image_settings()) as live, live.http() as http:
        reply = await http.post(route, json=body)
        assert reply.status_code in (400, 404)
        assert len(reply.json()["error"]["message"]) < 1000


@pytest.mark.parametrize(
    ("method", "path", "status", "code", "said"),
    [
        ("GET", "/nothing", 404, "not_found", "/v1/chat/completions"),
        ("POST", "/v1/completions", 404, "not_found", "there is nothing at /v1/completions"),
        ("POST", f"{CHAT}/", 404, "not_found", f"there is nothing at {CHAT}/"),
        ("POST", f"{IMAGES}/", 404, "not_found", f"there is nothing at {IMAGES}/"),
        ("GET", "/healthz/", 404, "not_found", "there is nothing at /healthz/"),
        ("GET", "/v1/models/", 404, "model_not_found", "models here: 'draw', 'm'"),
        ("GET", CHAT, 405, "method_not_allowed", "takes POST, not GET"),
        ("DELETE", CHAT, 405, "method_not_allowed", "takes POST, not DELETE"),
        ("GET", IMAGES, 405, "method_not_allowed", "takes POST, not GET"),
        ("POST", "/healthz", 405, "method_not_allowed", "takes GET, not POST"),
        ("GET", "/v1/models/nope", 404, "model_not_found", "models here: 'draw', 'm'"),
    ],
)
async def test_a_wrong_route_is_told_the_right_ones(method: str, path: str, status: int, code: str, said: str) -> None:
    async with live_gateway(image_settings()) as live, live.http() as http:
        reply = await http.request(method, path)
        error = reply.json()["error"]
        assert (reply.status_code, error["code"]) == (status, code)
        assert said in error["message"]
        assert reply.headers["x-request-id"]
        assert status != 405 or reply.headers["allow"] in said


@pytest.mark.parametrize("key", [None, "wrong"])
@pytest.mark.parametrize(("method", "path"), [("GET", "/v1/models"), ("GET", "/v1/models/m"), ("POST", CHAT), ("POST", IMAGES)])
async def test_without_the_right_key_nothing_answers(key: str | None, method: str, path: str) -> None:
    async with live_gateway(image_settings()) as live, live.http(key) as http:
        reply = await http.request(method, path, content=b"{")
        error = reply.json()["error"]
        assert (reply.status_code, error["code"], error["type"]) == (401, "invalid_api_key", "authentication_error")
        assert "ask the operator" in error["message"]
        assert "wrong" not in error["message"]


@pytest.mark.parametrize("path", [CHAT, IMAGES])
@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_over_the_limit_is_413(path: str, chunked: bool) -> None:
    async def parts() -> Any:
        for _ in range(30):
            yield b"x" * 1024

    async with live_gateway(image_settings().model_copy(update={"server": _small_server()})) as live, live.http() as http:
        reply = await http.post(path, content=parts() if chunked else b"x" * 30_000)
        error = reply.json()["error"]
        assert (reply.status_code, error["code"]) == (413, "request_too_large")
        assert "larger than 20000 bytes" in error["message"]


def _small_server() -> Any:
    return image_settings().server.model_copy(update={"max_body_bytes": 20_000})


async def test_the_sdk_lists_and_retrieves_models_with_what_tandem_knows() -> None:
    models = [
        {
            "name": "qwen/qwen3.5-9b",
            "kind": "chat",
            "description": "Chats.",
            "reasoning": True,
            "context_length": 4096,
            "deployments": [{"upstream": "here", "model": "Qwen/Qwen3.5-9B"}, {"upstream": "openrouter", "model": "qwen/qwen3.5-9b"}],
        },
        IMAGE_MODEL,
    ]
    upstreams = {"here": {"kind": "vllm"}, "pictures": {"kind": "diffusers"}, "openrouter": {"kind": "openrouter"}}
    settings = settings_of(models, upstreams)
    async with live_gateway(settings, ScriptedRuntime(engine_specs(settings), {})) as live, live.sdk() as client:
        assert [model.id async for model in client.models.list()] == ["qwen/qwen3.5-9b", "draw"]
        model = await client.models.retrieve("qwen/qwen3.5-9b")
        assert (model.object, model.owned_by) == ("model", "tandem")
        assert model.model_extra is not None
        more = model.model_extra["tandem"]
        assert more["kind"] == "chat"
        assert more["context_length"] == 4096
        local, hosted = more["deployments"]
        assert (local["upstream"], local["kind"], local["local"], local["state"]) == ("here", "vllm", True, "ready")
        assert (hosted["state"], hosted["local"]) == ("unavailable", False)
        assert "OPENROUTER_API_KEY" in hosted["reason"]
        drawn = (await client.models.retrieve("draw")).model_extra
        assert drawn is not None
        assert drawn["tandem"]["image"]["default_size"] == "128x128"


async def test_a_model_whose_deployments_all_lack_something_is_503_and_says_what() -> None:
    model = {"name": "m", "kind": "chat", "deployments": [{"upstream": "or", "model": "a/b"}]}
    async with live_gateway(settings_of([model], {"or": {"kind": "openrouter"}})) as live:
        async with live.sdk(max_retries=2) as client:
            with pytest.raises(openai.InternalServerError, match="export OPENROUTER_API_KEY") as caught:
                await client.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}])
            assert caught.value.status_code == 503
            assert caught.value.response.headers["x-should-retry"] == "false"
        async with live.http(None) as http:
            ready = await http.get("/readyz")
            assert (ready.status_code, ready.json()["status"]) == (503, "not ready")


async def test_health_needs_no_key() -> None:
    async with live_gateway(chat_settings("http://127.0.0.1:9/v1")) as live, live.http(None) as http:
        assert (await http.get("/healthz")).json() == {"status": "ok"}
        ready = await http.get("/readyz")
        assert (ready.status_code, ready.json()) == (200, {"status": "ready", "models": {"m": True}, "engines": {}})


async def test_many_wrong_requests_on_one_connection_leave_it_usable() -> None:
    async with live_gateway(image_settings()) as live, live.http() as http:
        for _ in range(20):
            assert (await http.post(CHAT, content=b"{")).status_code == 400
            assert (await http.get("/nothing")).status_code == 404
        assert (await http.get("/v1/models")).status_code == 200
