"""What a local engine is sent of a client's request: sampling, thinking, history, pictures; and what another deployment answers instead."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import openai
import pytest

from adapters import rewrite
from adapters.build import engine_specs
from tests.adapters.test_remote_media import PNG, sends
from tests.gateway.live import Live, ScriptedRuntime, chat_settings, live_gateway, settings_of
from tests.scripted_upstream import Exchange, Request, ScriptedUpstream, answering, completion, scripted_upstream

CHAT = "/v1/chat/completions"
HELLO: list[Any] = [{"role": "user", "content": "Hello"}]
QWEN = "Qwen/Qwen3.5-9B"


def with_pictures(*urls: str) -> list[Any]:
    parts = [{"type": "image_url", "image_url": {"url": url, "detail": "low"}} for url in urls]
    return [{"role": "user", "content": [{"type": "text", "text": "What is it?"}, *parts]}]


@dataclass
class Local:
    """A gateway, and the engine and the hosted upstream behind it."""

    live: Live
    runtime: ScriptedRuntime
    engine: ScriptedUpstream
    hosted: ScriptedUpstream

    async def ask(self, model: str = "m", **fields: Any) -> dict[str, Any]:
        """The answer, or the error."""
        async with self.live.http() as http:
            reply = await http.post(CHAT, json={"model": model, "messages": HELLO, **fields})
        document: dict[str, Any] = reply.json()
        assert reply.status_code == (400 if "error" in document else 200), document
        return document.get("error") or document

    @property
    def sent(self) -> dict[str, Any]:
        """The last request that the engine got."""
        return self.engine.asked[-1].json


@asynccontextmanager
async def local(model: dict[str, Any] | None = None, *, kind: str = "vllm", fallback: bool = False, **more: Any) -> AsyncIterator[Local]:
    """One model `m` on an engine of ours, and `m-no-think` on the same; with `fallback`, on a hosted upstream as well."""

    async def whole(request: Request, exchange: Exchange) -> None:
        await exchange.json(200, completion("seen"))

    async with scripted_upstream(whole) as engine, scripted_upstream(whole) as hosted:
        here = [{"upstream": "here", "model": QWEN}]
        away = [{"upstream": "away", "model": "qwen/qwen3.5-9b"}] if fallback else []
        spec = {"kind": "chat", "reasoning": True, "deployments": here + away, **(model or {})}
        models = [{"name": "m", **spec}, {"name": "m-no-think", **spec, "thinking": False}]
        settings = settings_of(
            models, {"here": {"kind": kind}, "away": {"kind": "openrouter", "base_url": hosted.base_url, "api_key": "k"}}, **more
        )
        runtime = ScriptedRuntime(engine_specs(settings), {f"here:{QWEN}": engine.port})
        async with live_gateway(settings, runtime) as live:
            yield Local(live, runtime, engine, hosted)


def sampling_in(sent: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in sent.items() if name not in ("model", "messages", "chat_template_kwargs")}


async def test_a_silent_client_gets_the_cards_sampling_for_its_mode() -> None:
    async with local() as at:
        await at.ask()
        card = {"temperature": 1.0, "top_p": 0.95, "top_k": 20, "min_p": 0.0, "presence_penalty": 1.5, "repetition_penalty": 1.0}
        assert sampling_in(at.sent) == card
        assert at.sent["chat_template_kwargs"] == {"enable_thinking": True}
        await at.ask(enable_thinking=False, top_p=0.5)
        assert sampling_in(at.sent) == card | {"temperature": 0.7, "top_p": 0.5}
        await at.ask(temperature=0)
        assert sampling_in(at.sent) == {"temperature": 0}
        async with at.live.http() as http:
            shown = (await http.get("/v1/models/m")).json()["tandem"]
        assert shown["sampling"]["thinking"] == card
        assert shown["sampling"]["no_thinking"]["top_p"] == 0.8
        assert shown["thinking"] is True


async def test_sampling_is_overridden_and_switched_off_by_the_configuration() -> None:
    async with local({"sampling": {"thinking": {"temperature": 0.6, "min_p": None}}}) as at:
        await at.ask()
        assert (at.sent["temperature"], at.sent["top_p"], "min_p" in at.sent) == (0.6, 0.95, False)
    async with local({"sampling": False}) as at:
        await at.ask()
        assert sampling_in(at.sent) == {}


async def test_sampling_is_spliced_into_a_body_that_is_not_written_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(document: object) -> bytes:
        raise AssertionError("the body was serialized again")

    monkeypatch.setattr(rewrite, "_dumps", refuse)
    body = b'{ "model" : "m", "messages":[{"role":"user","content":"caf\\u00e9 1.50"}] , "seed": 1e0 }'
    async with local() as at, at.live.http() as http:
        reply = await http.post(CHAT, content=body, headers={"content-type": "application/json"})
        assert reply.status_code == 200
        assert at.engine.asked[0].body.endswith(b"," + body[1:])
        assert at.sent["top_k"] == 20


@pytest.mark.parametrize(("upstream", "gets_top_k"), [({}, False), ({"thinking": "chat_template_kwargs"}, True)])
async def test_a_hosted_server_gets_what_its_api_has_names_for(upstream: dict[str, Any], gets_top_k: bool) -> None:
    async with scripted_upstream(answering("hi")) as server:
        model = {"deployments": [{"upstream": "up0", "model": "qwen3.5-9b"}]}
        async with live_gateway(chat_settings(server.base_url, model=model, upstream=upstream)) as live, live.http() as http:
            await http.post(CHAT, json={"model": "m", "messages": HELLO})
        assert server.asked[0].json["presence_penalty"] == 1.5
        assert ("top_k" in server.asked[0].json) is gets_top_k


async def test_openrouter_gets_the_same_sampling_and_the_whole_history() -> None:
    thought = {"role": "assistant", "content": "Hello.", "reasoning": "hm", "reasoning_details": [{"type": "reasoning.text", "text": "hm"}]}
    async with local({"deployments": [{"upstream": "away", "model": "qwen/qwen3.5-9b"}]}) as at:
        await at.ask(messages=[*HELLO, thought, *HELLO])
        sent = at.hosted.asked[0].json
        assert sent["messages"] == [*HELLO, thought, *HELLO]
        assert {"temperature", "top_k", "min_p", "repetition_penalty"} <= sent.keys()
        await at.ask("m-no-think", messages=with_pictures("http://127.0.0.1/not-asked.png"))
        assert at.hosted.asked[1].json["messages"][0]["content"][1]["image_url"]["url"] == "http://127.0.0.1/not-asked.png"
        assert at.hosted.asked[1].json["temperature"] == 0.7


async def test_two_names_of_one_engine_differ_in_their_default_only() -> None:
    async with local() as at:
        await at.ask("m-no-think")
        assert at.sent["model"] == "m"
        assert at.sent["chat_template_kwargs"] == {"enable_thinking": False}
        await at.ask("m-no-think", reasoning_effort="high")
        assert at.sent["chat_template_kwargs"] == {"enable_thinking": True}
        assert at.sent["temperature"] == 1.0
        assert len(at.live.runtime.engines()) == 1


@pytest.mark.parametrize("said", [{"reasoning": {"max_tokens": 64}}, {"thinking_budget": 64}, {"thinking_token_budget": 64}])
async def test_a_budget_is_said_in_vllms_way_however_the_client_says_it(said: dict[str, Any]) -> None:
    async with local() as at:
        await at.ask(**said)
        assert at.sent["thinking_token_budget"] == 64
        assert not {"reasoning", "thinking_budget"} & at.sent.keys()


async def test_a_budget_goes_where_it_can_be_kept() -> None:
    async with scripted_upstream(answering("hi")) as first, scripted_upstream(answering("hi")) as second:
        settings = chat_settings(first.base_url, second.base_url, upstream={"thinking": "reasoning_effort"})
        async with live_gateway(settings) as live, live.sdk() as client:
            with pytest.raises(openai.BadRequestError, match="thinking_budget cannot be kept here") as caught:
                await client.chat.completions.create(model="m", messages=HELLO, extra_body={"thinking_budget": 9})
            assert caught.value.param == "thinking_budget"
        assert first.asked == second.asked == []


async def test_what_was_thought_before_does_not_come_before_a_local_model_again() -> None:
    async with local() as at:
        thought = {"role": "assistant", "content": "<think>hm</think>Hello.", "reasoning_content": "hm"}
        await at.ask(messages=[*HELLO, thought, *HELLO])
        assert at.sent["messages"] == [*HELLO, {"role": "assistant", "content": "Hello."}, *HELLO]


CONSTRAINED = [
    {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}}},
    {"response_format": {"type": "json_object"}},
    {"structured_outputs": {"regex": "[0-9]+"}},
    {"guided_regex": "[0-9]+"},
    {"logprobs": True},
]


@pytest.mark.parametrize("fields", CONSTRAINED)
async def test_what_our_worker_cannot_do_is_done_by_a_deployment_that_can(fields: dict[str, Any]) -> None:
    async with local(kind="transformers", fallback=True) as at:
        assert (await at.ask(**fields))["choices"]
        assert (len(at.engine.asked), len(at.hosted.asked)) == (0, 1)
        await at.ask(response_format={"type": "text"})
        assert (len(at.engine.asked), len(at.hosted.asked)) == (1, 1)
    async with local(kind="transformers") as at:
        error = await at.ask(**fields)
        assert error["param"] == next(iter(fields))
        assert "use a vLLM deployment" in error["message"]
        assert at.runtime.leases == 0
    async with local() as at:
        await at.ask(**fields)
        assert fields.items() <= at.sent.items()


def here(server: ScriptedUpstream, path: str = "/a.png") -> str:
    return f"http://localhost:{server.port}{path}"


PRIVATE = {"private_hosts": ["localhost"]}
INLINE = "data:image/png;base64," + base64.b64encode(PNG).decode()


async def test_pictures_are_fetched_once_each_and_handed_to_the_engine_inline() -> None:
    async with scripted_upstream(sends(PNG)) as server, local(remote_images=PRIVATE) as at:
        await at.ask(messages=with_pictures(here(server), INLINE, here(server), here(server, "/b.png")))
        parts = at.sent["messages"][0]["content"]
        assert parts[0] == {"type": "text", "text": "What is it?"}
        assert parts[1:] == [{"type": "image_url", "image_url": {"url": INLINE, "detail": "low"}}] * 4
        assert sorted(asked.path for asked in server.asked) == ["/a.png", "/b.png"]


async def test_a_video_is_fetched_too() -> None:
    video = b"\0\0\0\x20ftypisom"
    async with scripted_upstream(sends(video)) as server, local(remote_images=PRIVATE) as at:
        part = {"type": "video_url", "video_url": {"url": here(server)}}
        await at.ask(messages=[{"role": "user", "content": [part]}])
        assert at.sent["messages"][0]["content"][0]["video_url"]["url"] == "data:video/mp4;base64," + base64.b64encode(video).decode()


@pytest.mark.parametrize(
    ("remote_images", "urls", "at_fault", "says"),
    [
        ({}, ["http://localhost:1/a.png"], 1, "leads to an address that is not public"),
        ({}, ["http://169.254.169.254/latest"], 1, "leads to an address that is not public"),
        ({}, [INLINE, "file:///etc/passwd"], 2, "is not an http://, https:// or data: URL"),
        ({"fetch": False}, [INLINE, "https://pictures.example/a.png"], 2, "remote_images.fetch is off here"),
        ({"max_per_request": 2}, ["https://pictures.example/a.png"] * 3, 3, "the limit is 2"),
    ],
)
async def test_a_url_that_is_not_fetched_is_named(remote_images: dict[str, Any], urls: list[str], at_fault: int, says: str) -> None:
    async with local(remote_images=remote_images) as at:
        error = await at.ask(messages=with_pictures(*urls))
        assert error["param"] == f"messages[0].content[{at_fault}].image_url"
        assert error["type"] == "invalid_request_error"
        assert says in error["message"]
        assert at.engine.asked == []


async def test_a_gateway_that_fetches_nothing_leaves_a_url_to_a_hosted_deployment() -> None:
    async with local(remote_images={"fetch": False}, fallback=True) as at:
        await at.ask(messages=with_pictures("https://pictures.example/a.png"))
        assert at.engine.asked == []
        assert at.hosted.asked[0].json["messages"] == with_pictures("https://pictures.example/a.png")


async def test_the_first_of_several_failures_ends_the_fetching_of_all() -> None:
    async def by_path(request: Request, exchange: Exchange) -> None:
        if request.path == "/slow.png":
            await exchange.until_left()
        else:
            await exchange.json(404, {})

    async with scripted_upstream(by_path) as server, local(remote_images=PRIVATE) as at:
        error = await at.ask(messages=with_pictures(here(server, "/slow.png"), here(server, "/gone.png")))
        assert error["param"] == "messages[0].content[2].image_url"


@pytest.mark.parametrize("stream", [True, False])
async def test_fetching_stops_when_the_client_leaves(stream: bool) -> None:
    async def silent(request: Request, exchange: Exchange) -> None:
        await exchange.until_left()

    async with scripted_upstream(silent) as server, local(remote_images=PRIVATE) as at:
        reader, writer = await asyncio.open_connection("127.0.0.1", at.live.port)
        body = json.dumps({"model": "m", "messages": with_pictures(here(server)), "stream": stream}).encode()
        writer.write(
            f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer sk-test\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body
        )
        while not server.asked:
            await asyncio.sleep(0.01)
        writer.close()
        async with asyncio.timeout(2):
            while server.open_connections:
                await asyncio.sleep(0.01)
        assert at.engine.asked == []
        del reader
