"""The way through litellm: two foreign APIs and OpenAI's in, our one shape out. The network's edge is replaced, litellm is not."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from typing import Any

import httpx
import orjson
import pytest
import pytest_asyncio
import respx

from adapters import sse
from adapters.base import ChatCall, Source, Timeouts
from adapters.errors import UpstreamError
from adapters.litellm_bridge import LitellmChat, LitellmSpec
from adapters.usage import Usage, usage_in
from tests.scripted_upstream import Exchange, Request, answering, chunk, completion, failing, scripted_upstream

# Pydantic's complaints about litellm's code; drop these once it has nothing to complain about.
pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),  # as in a gateway: litellm keeps some of its clients for the first event loop it sees
    pytest.mark.filterwarnings("ignore:Accessing the 'model_:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Item.* on TypedDict class:UserWarning"),
]

KEY = "sk-our-own-secret"
ANTHROPIC = "https://api.anthropic.com/v1/messages"
GEMINI = "https://generativelanguage.googleapis.com/v1beta/models/gemini-2.5-flash:streamGenerateContent"
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}}


@pytest_asyncio.fixture(autouse=True, scope="module", loop_scope="module")
async def _no_connection_outlives_its_loop() -> AsyncIterator[None]:
    yield
    if (litellm := sys.modules.get("litellm")) is not None:
        await litellm.close_litellm_async_clients()
        await litellm.module_level_aclient.close()


class Taker:
    """A Client that keeps what it gets. full: it pauses its source after each write."""

    def __init__(self, *, full: bool = False) -> None:
        self.frames: list[bytes] = []
        self.full = full
        self.source: Source | None = None
        self.got = asyncio.Event()

    def write(self, frames: bytes, source: Source) -> None:
        self.frames.extend(sse.split(frames))
        self.source = source
        self.got.set()
        if self.full:
            source.pause()

    @property
    def documents(self) -> list[dict[str, Any]]:
        data = [sse.data_of(frame) for frame in self.frames]
        return [json.loads(item) for item in data if item is not None and item != b"[DONE]"]

    @property
    def done(self) -> bool:
        return self.frames[-1] == sse.DONE

    def said(self, key: str = "content") -> str:
        deltas = [choice["delta"] for document in self.documents for choice in document["choices"]]
        return "".join(delta.get(key) or "" for delta in deltas)


def call(**fields: Any) -> ChatCall:
    """Streams show their usage unless `fields` say otherwise."""
    usage = {"stream_options": {"include_usage": True}} if fields.get("stream") else {}
    document = {"model": "m", "messages": [{"role": "user", "content": "hello"}], **usage, **fields}
    return ChatCall(orjson.dumps(document), document, "req_1")


def chat(
    model: str, base_url: str | None = None, *, timeouts: Timeouts | None = None, thinks: bool | None = None, **spec: Any
) -> LitellmChat:
    return LitellmChat(LitellmSpec("lab", timeouts or Timeouts(), spec.pop("key", KEY), base_url, **spec), model, thinks)


async def streamed(upstream: LitellmChat, **fields: Any) -> Taker:
    taker = Taker()
    await upstream.stream(call(stream=True, **fields), taker)
    return taker


async def failure(upstream: LitellmChat, **fields: Any) -> UpstreamError:
    with pytest.raises(UpstreamError) as caught:
        await streamed(upstream, **fields)
    return caught.value


def events(*documents: dict[str, Any]) -> httpx.Response:
    body = b"".join(sse.event(document, document["type"]) for document in documents)
    return httpx.Response(200, content=body, headers={"content-type": "text/event-stream"})


def started(**usage: int) -> dict[str, Any]:
    message: dict[str, Any] = {"id": "msg_1", "type": "message", "role": "assistant", "content": [], "model": "claude", "stop_reason": None}
    return {"type": "message_start", "message": message | {"usage": {"input_tokens": 11, "output_tokens": 1, **usage}}}


def block(index: int, kind: str, *deltas: dict[str, Any], **given: Any) -> list[dict[str, Any]]:
    beginning = {"type": "content_block_start", "index": index, "content_block": {"type": kind, **given}}
    middle = [{"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas]
    return [beginning, *middle, {"type": "content_block_stop", "index": index}]


def stopped(reason: str) -> list[dict[str, Any]]:
    return [{"type": "message_delta", "delta": {"stop_reason": reason}, "usage": {"output_tokens": 9}}, {"type": "message_stop"}]


# --- importing litellm ---------------------------------------------------------------------------------------------------------------


async def test_the_event_loop_goes_on_while_litellm_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded_in: list[int] = []
    import threading

    from adapters import litellm_bridge

    real = litellm_bridge._load

    def load(*args: Any) -> Any:
        loaded_in.append(threading.get_ident())
        return real(*args)

    monkeypatch.setattr(litellm_bridge, "_load", load)
    async with scripted_upstream(answering("a")) as upstream:
        lab = chat("openai/x", upstream.base_url)
        await streamed(lab)
        await streamed(lab)
    assert len(loaded_in) == 1
    assert loaded_in[0] != threading.get_ident()


async def test_a_model_of_no_known_provider_says_how_to_write_it() -> None:
    error = await failure(chat("nobodys-model"))
    assert (error.status, error.code, error.fallback) == (502, "upstream_misconfigured", True)
    assert "provider/model" in error.message


# --- Anthropic -----------------------------------------------------------------------------------------------------------------------


async def test_anthropics_stream_becomes_openais(respx_mock: respx.MockRouter) -> None:
    thought = block(0, "thinking", {"type": "thinking_delta", "thinking": "hmm"}, thinking="")
    text = block(1, "text", {"type": "text_delta", "text": "Hel"}, {"type": "text_delta", "text": "lo"}, text="")
    reply = events(started(cache_read_input_tokens=4), *thought, *text, *stopped("end_turn"))
    route = respx_mock.post(ANTHROPIC).mock(return_value=reply)
    taker = await streamed(chat("anthropic/claude-sonnet-4-5"), max_tokens=2000, reasoning={"enabled": True})
    assert (taker.said(), taker.said("reasoning"), taker.said("reasoning_content")) == ("Hello", "hmm", "hmm")
    assert taker.done
    assert [document["object"] for document in taker.documents] == ["chat.completion.chunk"] * len(taker.documents)
    assert [choice["finish_reason"] for document in taker.documents for choice in document["choices"]][-1] == "stop"
    assert usage_in(taker.documents[-1]) == Usage(15, 9, cached_tokens=4)
    asked = json.loads(route.calls.last.request.content)
    assert asked["thinking"]["type"] == "enabled"
    assert route.calls.last.request.headers["x-api-key"] == KEY


async def test_arguments_of_a_tool_call_come_in_pieces(respx_mock: respx.MockRouter) -> None:
    pieces = [{"type": "input_json_delta", "partial_json": piece} for piece in ('{"a"', ": 1}")]
    respx_mock.post(ANTHROPIC).mock(
        return_value=events(started(), *block(0, "tool_use", *pieces, id="tu_1", name="add", input={}), *stopped("tool_use"))
    )
    taker = await streamed(chat("anthropic/claude-sonnet-4-5"), tools=[TOOL])
    calls = [part for document in taker.documents for choice in document["choices"] for part in choice["delta"].get("tool_calls", [])]
    assert (calls[0]["id"], calls[0]["function"]["name"]) == ("tu_1", "add")
    assert "".join(part["function"]["arguments"] for part in calls) == '{"a": 1}'
    assert [choice["finish_reason"] for document in taker.documents for choice in document["choices"]][-1] == "tool_calls"


async def test_pictures_go_to_anthropic_in_its_own_form(respx_mock: respx.MockRouter) -> None:
    route = respx_mock.post(ANTHROPIC).mock(return_value=events(started(), *block(0, "text", text=""), *stopped("end_turn")))
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
    taker = await streamed(chat("anthropic/claude-sonnet-4-5"), messages=[{"role": "user", "content": [picture]}])
    assert taker.done
    sent = json.loads(route.calls.last.request.content)["messages"][0]["content"][0]
    assert sent["source"] == {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}


async def test_no_address_that_a_client_names_is_fetched(respx_mock: respx.MockRouter) -> None:
    picture = {"type": "image_url", "image_url": {"url": "http://169.254.169.254/latest/meta-data/"}}
    error = await failure(chat("anthropic/claude-sonnet-4-5"), messages=[{"role": "user", "content": [picture]}])
    assert (error.status, error.code) == (400, "invalid_image_url")
    assert "data: URL" in error.message
    assert not respx_mock.calls


async def test_a_whole_answer_is_one_document(respx_mock: respx.MockRouter) -> None:
    message = {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude", "stop_reason": "tool_use", "stop_sequence": None}
    content = [{"type": "tool_use", "id": "tu_1", "name": "add", "input": {"a": 1}}]
    usage = {"input_tokens": 3, "output_tokens": 2}
    respx_mock.post(ANTHROPIC).respond(json=message | {"content": content, "usage": usage})
    document = json.loads(await chat("anthropic/claude-sonnet-4-5").complete(call(tools=[TOOL])))
    said = document["choices"][0]["message"]
    assert (document["object"], document["choices"][0]["finish_reason"], said["content"]) == ("chat.completion", "tool_calls", None)
    assert json.loads(said["tool_calls"][0]["function"]["arguments"]) == {"a": 1}
    assert usage_in(document) == Usage(3, 2)


async def test_an_answer_that_is_cut_is_no_answer(respx_mock: respx.MockRouter) -> None:
    text = block(0, "text", {"type": "text_delta", "text": "Hel"}, text="")
    respx_mock.post(ANTHROPIC).mock(return_value=events(started(), *text))
    taker = Taker()
    with pytest.raises(UpstreamError) as caught:
        await chat("anthropic/claude-sonnet-4-5").stream(call(stream=True), taker)
    assert (caught.value.status, caught.value.code) == (502, "upstream_disconnected")
    assert taker.said() == "Hel"
    assert not taker.done


@pytest.mark.parametrize(
    ("status", "shown", "code"),
    [
        (400, 400, None), (401, 502, "upstream_auth_failed"), (402, 502, "upstream_payment_required"), (403, 502, "upstream_auth_failed"),
        (404, 404, None), (413, 413, None), (429, 429, None), (500, 500, None), (503, 503, None), (529, 529, None),
    ],
)  # fmt: skip
@pytest.mark.parametrize("provider", ["anthropic/claude-sonnet-4-5", "openai/gpt-4o"])
async def test_a_refusal_keeps_status_message_and_back_off(provider: str, status: int, shown: int, code: str | None) -> None:
    document = {"type": "error", "error": {"type": "some_error", "message": f"reason of {KEY}'s refusal"}}
    async with scripted_upstream(failing(status, document, retry_after="7", x_ratelimit_remaining="0")) as upstream:
        error = await failure(chat(provider, upstream.base_url))
    assert (error.status, len(upstream.asked)) == (shown, 1)
    assert "reason of ***'s refusal" in error.message
    assert KEY not in repr(error)
    assert "litellm" not in error.message
    if status not in (400, 404, 413):
        assert error.headers[b"retry-after"] == b"7"
    if code is not None:
        assert error.code == code
        assert error.headers[b"x-should-retry"] == b"false"


async def test_a_prompt_that_is_too_long_is_told_by_its_code(respx_mock: respx.MockRouter) -> None:
    problem = {"type": "invalid_request_error", "message": "prompt is too long: 210000 tokens > 200000 maximum"}
    respx_mock.post(ANTHROPIC).respond(400, json={"type": "error", "error": problem})
    error = await failure(chat("anthropic/claude-sonnet-4-5"))
    assert (error.status, error.code, error.type) == (400, "context_length_exceeded", "invalid_request_error")
    assert error.message == problem["message"]


async def test_refused_content_is_told_by_its_code() -> None:
    problem = {"message": "Your request was rejected as a result of our safety system.", "code": "content_policy_violation"}
    async with scripted_upstream(failing(400, {"error": problem})) as upstream:
        error = await failure(chat("openai/gpt-4o", upstream.base_url))
    assert (error.status, error.code, error.fallback) == (400, "content_policy_violation", False)


async def test_what_a_provider_does_not_take_is_refused_or_left_out_as_configured(respx_mock: respx.MockRouter) -> None:
    route = respx_mock.post(ANTHROPIC).mock(return_value=events(started(), *block(0, "text", text=""), *stopped("end_turn")))
    for fields in ({"logit_bias": {"1": 1}}, {"no_such_field": 1}):
        error = await failure(chat("anthropic/claude-sonnet-4-5"), **fields)
        assert (error.status, error.code, error.fallback) == (400, "unsupported_parameter", True)
        assert next(iter(fields)) in error.message
        assert "drop_params: true for" in error.message
    assert not route.called
    await streamed(chat("anthropic/claude-sonnet-4-5", drops=True), logit_bias={"1": 1}, no_such_field=1)
    assert not {"logit_bias", "no_such_field"} & json.loads(route.calls.last.request.content).keys()


# --- Gemini --------------------------------------------------------------------------------------------------------------------------


async def test_geminis_stream_becomes_openais(respx_mock: respx.MockRouter) -> None:
    def part(text: str, **more: Any) -> bytes:
        candidate = {"content": {"role": "model", "parts": [{"text": text}]}, "index": 0, **more}
        usage = {"promptTokenCount": 4, "candidatesTokenCount": 2, "totalTokenCount": 6}
        return sse.event({"candidates": [candidate], "usageMetadata": usage, "modelVersion": "gemini-2.5-flash"})

    body = part("Hel") + part("lo", finishReason="STOP")
    route = respx_mock.post(url__startswith=GEMINI).respond(content=body, headers={"content-type": "text/event-stream"})
    taker = await streamed(chat("gemini/gemini-2.5-flash"))
    assert (taker.said(), taker.done) == ("Hello", True)
    assert usage_in(taker.documents[-1]) == Usage(4, 2)
    assert route.call_count == 1


# --- OpenAI's API, on a real server --------------------------------------------------------------------------------------------------


async def test_fields_that_nobody_here_knows_reach_an_openai_like_provider() -> None:
    async with scripted_upstream(answering("a", "b")) as upstream:
        taker = await streamed(chat("openai/x", upstream.base_url), top_k=3, brand_new={"a": 1}, temperature=0.5)
    asked = upstream.asked[0].json
    assert (asked["top_k"], asked["brand_new"], asked["temperature"], asked["model"]) == (3, {"a": 1}, 0.5, "x")
    assert asked["stream_options"] == {"include_usage": True}
    assert (taker.said(), taker.done) == ("ab", True)


@pytest.mark.parametrize("field", ["api_base", "base_url", "api_key", "extra_headers", "custom_llm_provider", "mock_response", "timeout"])
async def test_a_client_cannot_say_where_our_key_is_sent(field: str, respx_mock: respx.MockRouter) -> None:
    async with scripted_upstream(answering("a")) as upstream, scripted_upstream(answering("stolen")) as foreign:
        respx_mock.route(port=upstream.port).pass_through()
        taker = await streamed(chat("openai/x", upstream.base_url), **{field: foreign.base_url})
        assert (taker.said(), len(upstream.asked), foreign.asked) == ("a", 1, [])
        assert upstream.asked[0].headers["authorization"] == f"Bearer {KEY}"
        error = await failure(chat("anthropic/claude-sonnet-4-5"), **{field: foreign.base_url})
        assert error.code == "unsupported_parameter"
        assert foreign.asked == []


async def test_usage_is_the_providers_or_none() -> None:
    async def counted(request: Request, exchange: Exchange) -> None:
        usage = {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12, "prompt_tokens_details": {"cached_tokens": 3}}
        await exchange.start_stream()
        await exchange.events(chunk("a"), chunk(finish="stop"), {**chunk(), "choices": [], "usage": usage}, "[DONE]")
        await exchange.end_stream()

    async with scripted_upstream(counted) as upstream:
        assert usage_in((await streamed(chat("openai/gpt-4o", upstream.base_url))).documents[-1]) == Usage(5, 7, cached_tokens=3)
        upstream.scenario = answering("a")
        taker = await streamed(chat("openai/gpt-4o", upstream.base_url))
    assert all("usage" not in document for document in taker.documents)


async def test_a_request_is_left_as_it_was_for_the_next_deployment() -> None:
    asked = call(
        stream=True, messages=[{"role": "user", "content": [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}]}]
    )
    before = orjson.dumps(asked.fields)
    async with scripted_upstream(answering("a")) as upstream:
        await chat("openai/x", upstream.base_url).stream(asked, Taker())
    assert orjson.dumps(asked.fields) == before


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("provider", ["openai/x", "anthropic/claude-sonnet-4-5"])
async def test_a_client_that_leaves_ends_the_providers_work(provider: str, stream: bool) -> None:
    arrived = asyncio.Event()

    async def waiting(request: Request, exchange: Exchange) -> None:
        arrived.set()
        await exchange.until_left()

    async with scripted_upstream(waiting) as upstream:
        lab = chat(provider, upstream.base_url)
        asking = asyncio.create_task(lab.stream(call(stream=True), Taker()) if stream else lab.complete(call()))
        await arrived.wait()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        while upstream.open_connections:
            await asyncio.sleep(0.001)
        assert upstream.left == 1


async def test_a_client_that_leaves_in_the_middle_ends_the_providers_work() -> None:
    async def endless(request: Request, exchange: Exchange) -> None:
        await exchange.start_stream()
        await exchange.events(chunk("a"))
        await exchange.until_left()

    async with scripted_upstream(endless) as upstream:
        taker = Taker()
        asking = asyncio.create_task(chat("openai/x", upstream.base_url).stream(call(stream=True), taker))
        await taker.got.wait()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        while upstream.open_connections:
            await asyncio.sleep(0.001)
        assert upstream.left == 1


async def test_closing_ends_what_runs_with_an_error_for_its_caller() -> None:
    async def endless(request: Request, exchange: Exchange) -> None:
        await exchange.until_left()

    async with scripted_upstream(endless) as upstream:
        lab = chat("openai/x", upstream.base_url)
        asking = asyncio.create_task(lab.complete(call()))
        while not upstream.asked:
            await asyncio.sleep(0.001)
        lab.close()
        with pytest.raises(UpstreamError) as caught:
            await asking
        assert caught.value.code == "upstream_disconnected"


async def test_a_slow_client_holds_the_provider_back() -> None:
    async def eager(request: Request, exchange: Exchange) -> None:
        await exchange.start_stream()
        for number in range(3):
            await exchange.events(chunk(str(number)))
        await exchange.events(chunk(finish="stop"), "[DONE]")
        await exchange.end_stream()

    async with scripted_upstream(eager) as upstream:
        taker = Taker(full=True)
        asking = asyncio.create_task(chat("openai/x", upstream.base_url).stream(call(stream=True), taker))
        await taker.got.wait()
        for _ in range(50):
            await asyncio.sleep(0)
        assert taker.said() == "0"
        taker.full = False
        assert taker.source is not None
        taker.source.resume()
        await asking
    assert taker.said() == "012"
    assert taker.done


@pytest.mark.parametrize(
    ("limits", "what"),
    [
        (Timeouts(first_token_s=0.1), "no first token within 0.1 s"),
        (Timeouts(idle_s=0.1), "nothing more came within 0.1 s"),
        (Timeouts(total_s=0.1), "the answer was not complete within 0.1 s"),
    ],
)
async def test_every_limit_ends_a_silent_provider(limits: Timeouts, what: str) -> None:
    async def silent(request: Request, exchange: Exchange) -> None:
        await exchange.start_stream()
        if limits.idle_s < 1:
            await exchange.events(chunk("a"))
        await exchange.until_left()

    async with scripted_upstream(silent) as upstream:
        error = await failure(chat("openai/x", upstream.base_url, timeouts=limits))
        while upstream.open_connections:
            await asyncio.sleep(0.001)
    assert (error.status, error.code) == (504, "upstream_timeout")
    assert error.message == f"upstream 'lab': {what}"


@pytest.mark.parametrize("provider", ["openai/x", "anthropic/claude-sonnet-4-5"])
async def test_a_provider_that_is_not_there_is_told_apart_from_one_that_refuses(provider: str) -> None:
    async with scripted_upstream(answering()) as upstream:
        pass
    error = await failure(chat(provider, upstream.base_url))
    assert (error.status, error.code, error.fallback) == (502, "upstream_unreachable", True)


async def test_nothing_is_tried_twice() -> None:
    async def cut(request: Request, exchange: Exchange) -> None:
        exchange.cut()

    async with scripted_upstream(cut) as upstream:
        error = await failure(chat("openai/x", upstream.base_url))
        assert error.code == "upstream_disconnected"
        assert len(upstream.asked) == 1


async def test_litellm_says_nothing_of_its_own(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    async with scripted_upstream(answering("a")) as upstream:
        await streamed(chat("openai/x", upstream.base_url))
        upstream.scenario = failing(500, {"error": {"message": "broken"}})
        await failure(chat("openai/x", upstream.base_url))
    assert capfd.readouterr() == ("", "")
    assert not [record for record in caplog.records if record.name.startswith(("LiteLLM", "httpx", "httpcore", "openai"))]


async def test_a_whole_answer_of_an_openai_like_provider_keeps_its_shape() -> None:
    async with scripted_upstream(answering("hi")) as upstream:
        document = json.loads(await chat("openai/x", upstream.base_url).complete(call()))
    wanted = completion("hi")
    assert document["choices"][0]["message"]["content"] == wanted["choices"][0]["message"]["content"]
    assert usage_in(document) == usage_in(wanted)
