"""Which error the OpenAI SDK raises for every way in which an upstream can fail: its class, what it says, and what it must not say."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import openai
import pytest
from openai import (
    APIError,
    APIStatusError,
    AsyncOpenAI,
    BadRequestError,
    ConflictError,
    InternalServerError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
    UnprocessableEntityError,
)

from tests.gateway.live import Live, chat_settings, live_gateway
from tests.scripted_upstream import Exchange, Request, Scenario, chunk, completion, scripted_upstream

SECRET = "upstream-secret"  # the key that live.chat_settings gives its upstreams
JSON = "application/json"
BOTH = pytest.mark.parametrize("stream", [True, False])

# What is not here is: below 500 the bare APIStatusError, from 500 on InternalServerError.
CLASSES: dict[int, type[APIStatusError]] = {
    400: BadRequestError,
    404: NotFoundError,
    409: ConflictError,
    422: UnprocessableEntityError,
    429: RateLimitError,
}
OURS = (401, 402, 403, 407)  # a refusal of the gateway's own credentials, which no client can mend


def class_of(status: int) -> type[APIStatusError]:
    return InternalServerError if status >= 500 else CLASSES.get(status, APIStatusError)


@dataclass(frozen=True)
class Case:
    """A body that an upstream fails with, and what must come of it. status: of the upstream's reply; code, said: of the error raised;

    becomes: the status that the client sees, where it is another.
    """

    name: str
    status: int
    body: Any
    said: str
    code: str | None = None
    becomes: int | None = None
    type: str = JSON
    sent: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str | None] = field(default_factory=dict)  # that the client sees; None: that it does not see

    @property
    def shown(self) -> int:
        return self.becomes or self.status


def typed(kind: str, **more: Any) -> dict[str, Any]:
    return {"error": {"message": f"typed {kind}", "code": 400, "metadata": {"error_type": kind, **more}}}


def availability(code: str, status: int, kind: str, **more: Any) -> dict[str, Any]:
    found = {"code": code, "retryable": status in (429, 503), "docs_url": "https://example.org", **more}
    return {"error": {"message": f"about {code}", "http_status": status, "error_type": kind, "availability": found}}


def anthropic(kind: str, **more: Any) -> dict[str, Any]:
    return {"type": "error", "error": {"type": kind, "message": f"claims {kind}", **more}, "request_id": "req_1"}


OPENAI = {"error": {"message": "temperature is too high", "type": "invalid_request_error", "param": "temperature", "code": "invalid_value"}}
VLLM_OLD = {"object": "error", "message": "maximum context length is 4096 tokens", "type": "BadRequestError", "param": None, "code": 400}
DETAIL = {"detail": [{"type": "missing", "loc": ["body", "messages"], "msg": "Field required"}]}
RAW = {"message": "Provider returned error", "code": 400, "metadata": {"raw": '{"error":"five pictures"}', "provider_name": "X"}}
MODERATED = {"message": "flagged", "code": 403, "metadata": {"reasons": ["violence"], "flagged_input": "x", "provider_name": "X"}}
NO_RETRY = {"x-should-retry": "false"}

FAILURES = [
    Case("OpenAI", 400, OPENAI, "temperature is too high", "invalid_value"),
    Case(
        "OpenAI, quota spent",
        429,
        {"error": {"message": "no quota", "type": "insufficient_quota", "param": None, "code": "insufficient_quota"}},
        "no quota",
        "insufficient_quota",
        headers=NO_RETRY,
    ),
    Case(
        "vLLM, integer code",
        404,
        {"error": {"message": "no such model", "type": "NotFoundError", "param": None, "code": 404}},
        "no such model",
        "upstream_http_404",
    ),
    Case("vLLM, object error", 400, VLLM_OLD, "maximum context length is 4096", "context_length_exceeded"),
    Case("OpenRouter, too long", 400, typed("context_length_exceeded"), "typed context_length", "context_length_exceeded"),
    Case("OpenRouter, busy", 429, typed("rate_limit_exceeded", provider_code="x"), "typed rate", "rate_limit_exceeded"),
    Case("OpenRouter, overloaded", 503, typed("provider_overloaded"), "typed provider", "provider_overloaded"),
    Case("OpenRouter, key", 401, typed("authentication"), "typed auth", "upstream_auth_failed", 502, headers=NO_RETRY),
    Case("OpenRouter, credits", 402, typed("payment_required"), "typed pay", "upstream_payment_required", 502, headers=NO_RETRY),
    Case("OpenRouter, permission", 403, typed("permission_denied"), "typed perm", "upstream_auth_failed", 502, headers=NO_RETRY),
    Case("OpenRouter, policy", 403, typed("content_policy_violation"), "typed content", "content_policy_violation"),
    Case("OpenRouter, moderation", 403, {"error": MODERATED}, "flagged", "content_policy_violation"),
    Case("OpenRouter, provider's words", 400, {"error": RAW}, ': {"error":"five pictures"}'),
    Case("no such model", 400, availability("model_not_found", 400, "not_found"), "about model_not_found", "model_not_found"),
    Case("no endpoints", 404, availability("no_endpoints", 404, "not_found"), "about no_endpoints", "no_endpoints"),
    Case(
        "no capacity",
        429,
        availability("capacity_exhausted", 429, "rate_limit_exceeded", retry_after=11.2),
        "about capacity",
        "capacity_exhausted",
        headers={"retry-after": "12"},
    ),
    Case(
        "unavailable for now",
        503,
        availability("temporarily_unavailable", 503, "provider_unavailable", retry_after=9),
        "about temporarily",
        "temporarily_unavailable",
        sent={"retry-after": "3"},
        headers={"retry-after": "3"},
    ),
    Case("region", 403, availability("region_restricted", 403, "permission_denied"), "about region", "upstream_auth_failed", 502),
    Case("FastAPI detail", 422, DETAIL, "Field required"),
    Case("FastAPI detail, text", 404, {"detail": "Not Found"}, "Not Found"),
    Case("plain text", 503, b"no healthy upstream", "no healthy upstream", type="text/plain"),
    Case("HTML", 502, b"<html><h1>502 Bad Gateway</h1></html>", "502 Bad Gateway", type="text/html"),
    Case("HTML for a rate limit", 429, b"<html>slow down</html>", "slow down", type="text/html", sent={"retry-after": "4"}),
    Case("empty body", 504, b"", "HTTP 504 without a readable body", "upstream_http_504"),
    Case("null", 500, b"null", "HTTP 500"),
    Case("error is text", 500, {"error": "it broke"}, "it broke"),
    Case("error is an empty object", 500, {"error": {}}, "HTTP 500"),
    Case("message is an object", 400, {"error": {"message": {"en": "bad"}}}, '{"en":"bad"}'),
    Case("not UTF-8", 500, b"\xff\xfe broke", "broke", type="text/plain"),
    Case("redirect", 307, b"elsewhere", "elsewhere", becomes=502, type="text/plain"),
    Case("Anthropic, invalid", 400, anthropic("invalid_request_error"), "claims invalid"),
    Case("Anthropic, key", 401, anthropic("authentication_error"), "claims auth", "upstream_auth_failed", 502, headers=NO_RETRY),
    Case("Anthropic, too large", 413, anthropic("request_too_large"), "claims request"),
    Case("Anthropic, overloaded", 529, anthropic("overloaded_error"), "claims overloaded", sent={"retry-after": "5"}),
    Case(
        "Anthropic, busy",
        429,
        anthropic("rate_limit_error"),
        "claims rate",
        sent={"retry-after": "6"},
        headers={"retry-after": "6", "x-should-retry": None},
    ),
    Case(
        "Anthropic, spent",
        429,
        anthropic("rate_limit_error", details={"error_code": "enforced_spend_limit_reached"}),
        "claims rate",
        headers={**NO_RETRY, "retry-after": None},
    ),
]

# An error under HTTP 200: `becomes` is what its status would have been.
INSIDE_200 = [
    Case("integer code", 200, {"error": {"code": 429, "message": "slow"}}, "slow", becomes=429),
    Case("code in digits", 200, {"error": {"code": "503", "message": "down"}}, "down", becomes=503),
    Case("code in words", 200, {"error": {"code": "rate_limit_exceeded", "message": "slow"}}, "slow", "rate_limit_exceeded", 429),
    Case("typed, against its code", 200, typed("timeout"), "typed timeout", "timeout", 504),
    Case("typed, too long", 200, typed("context_length_exceeded"), "typed context", "context_length_exceeded", 400),
    Case("typed, our key", 200, typed("authentication"), "typed auth", "upstream_auth_failed", 502, headers=NO_RETRY),
    Case("typed, unmapped", 200, typed("unmapped"), "typed unmapped", "unmapped", 400),
    Case("moderation", 200, {"error": MODERATED}, "flagged", "content_policy_violation", 403),
    Case("provider's words", 200, {"error": RAW}, "five pictures", becomes=400),
    Case(
        "no capacity",
        200,
        availability("capacity_exhausted", 429, "rate_limit_exceeded", retry_after=12),
        "about capacity",
        "capacity_exhausted",
        429,
        headers={"retry-after": "12"},
    ),
    Case("no endpoints", 200, availability("no_endpoints", 404, "unmapped"), "about no_endpoints", "no_endpoints", 404),
    Case("vLLM", 200, {"error": {**VLLM_OLD, "object": None}}, "maximum context length", "context_length_exceeded", 400),
    Case("vLLM, object error", 200, VLLM_OLD, "maximum context length", "context_length_exceeded", 400),
    Case("Anthropic, overloaded", 200, anthropic("overloaded_error"), "claims overloaded", becomes=529),
    Case("Anthropic, busy", 200, anthropic("rate_limit_error"), "claims rate", becomes=429),
    Case("OpenAI, server error", 200, {"error": {"type": "server_error", "message": "oops", "code": None}}, "oops", becomes=502),
    Case("error is text", 200, {"error": "it broke"}, "it broke", becomes=502),
]

FAILED_CHOICE = {"index": 0, "delta": {"content": ""}, "message": {"role": "assistant", "content": "half"}, "finish_reason": "error"}
FINISHED_BADLY = [
    Case(
        "finish_reason error beside an error",
        200,
        {**chunk(), "choices": [FAILED_CHOICE], "error": {"code": 429, "message": "slow"}},
        "slow",
        becomes=429,
    ),
    Case(
        "finish_reason error with the choice's error",
        200,
        {**chunk(), "choices": [{**FAILED_CHOICE, "error": {"code": 400, "message": "bad"}}]},
        "bad",
        becomes=400,
    ),
    Case("finish_reason error alone", 200, {**chunk(), "choices": [FAILED_CHOICE]}, "finish_reason 'error'", becomes=502),
]
NAMED = {case.name: case for case in (*FAILURES, *INSIDE_200, *FINISHED_BADLY)}


def with_secret(body: Any) -> Any:
    """The same with the upstream's key beside whatever it says."""
    if isinstance(body, Mapping):
        return {name: f"{value} {SECRET}" if name in ("message", "msg") and isinstance(value, str) else with_secret(value)
                for name, value in body.items()}  # fmt: skip
    if isinstance(body, list):
        return [with_secret(item) for item in body]
    return body + f" {SECRET}".encode() if isinstance(body, bytes) and body not in (b"", b"null") else body


async def reply(case: Case, exchange: Exchange) -> None:
    body = with_secret(case.body)
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    # neither cookies nor challenges of an upstream are the client's business
    theirs = {"set_cookie": SECRET, "www_authenticate": f"Bearer {SECRET}", "location": "/v2"}
    await exchange.head(case.status, content_type=case.type, content_length=str(len(data)), **theirs, **case.sent)
    await exchange.raw(data)


@asynccontextmanager
async def failing_gateway(scenario: Scenario) -> AsyncIterator[AsyncOpenAI]:
    """A client of a gateway whose one deployment fails as often as it likes."""
    patient = {"routing": {"max_wait_s": 0, "breaker_failures": 1_000_000}}
    async with (
        scripted_upstream(scenario) as upstream,
        live_gateway(chat_settings(upstream.base_url, model=patient)) as live,
        live.sdk() as client,
    ):
        yield client


async def ask(client: AsyncOpenAI, wish: str, stream: bool, seen: asyncio.Event | None = None) -> list[str]:
    """What came of the answer to `wish`. seen: set when something has come of a stream."""
    messages: Any = [{"role": "user", "content": wish}]
    if not stream:
        whole = await client.chat.completions.create(model="m", messages=messages)
        return [whole.choices[0].message.content or ""]
    parts = []
    async for part in await client.chat.completions.create(model="m", messages=messages, stream=True):
        parts.append(part.choices[0].delta.content or "")
        if seen is not None:
            seen.set()
    return parts


async def raised(client: AsyncOpenAI, wish: str, stream: bool, seen: asyncio.Event | None = None) -> APIError:
    try:
        came = await ask(client, wish, stream, seen)
    except APIError as error:
        return error
    pytest.fail(f"{wish}: an answer came instead of an error: {came}")


def wish_of(request: Request) -> str:
    return str(request.json["messages"][0]["content"])


def problems_of(case: Case, error: APIError) -> Iterator[str]:
    """Where `error` is not what `case` wants."""
    if not isinstance(error, APIStatusError):
        yield f"{type(error).__name__} without a status"
        return
    wanted = PermissionDeniedError if case.shown == 403 else class_of(case.shown)
    seen = {**error.response.headers}
    if type(error) is not wanted or error.status_code != case.shown:
        yield f"{type(error).__name__} {error.status_code} instead of {wanted.__name__} {case.shown}"
    if case.said not in error.message:
        yield f"says {error.message!r} instead of {case.said!r}"
    if case.code is not None and error.code != case.code:
        yield f"code {error.code} instead of {case.code}"
    if not isinstance(error.body, dict) or set(error.body) != {"message", "type", "param", "code"}:
        yield f"a body that is not OpenAI's: {error.body}"
    elif not isinstance(error.body["message"], str) or not isinstance(error.body["type"], str):
        yield f"a body of other types: {error.body}"
    expected = {**({"retry-after": case.sent["retry-after"]} if "retry-after" in case.sent else {}), **case.headers}
    for name, value in expected.items():
        if seen.get(name) != value:
            yield f"{name}: {seen.get(name)} instead of {value}"
    yield from leaks_of(error)


def leaks_of(error: APIError) -> Iterator[str]:
    told = [error.message, str(error), json.dumps(error.body)]
    if isinstance(error, APIStatusError):
        told += [error.response.text, str(error.response.headers.multi_items())]
        if {"set-cookie", "location", "www-authenticate"} & set(error.response.headers):
            yield "the upstream's own headers"
    if any(SECRET in text for text in told):
        yield "the upstream's key is shown"


def test_the_cases_have_names_of_their_own() -> None:
    for cases in (FAILURES, INSIDE_200, FINISHED_BADLY):
        assert len({case.name for case in cases}) == len(cases)


@BOTH
async def test_every_status_from_400_to_599_raises_its_class(stream: bool) -> None:
    async def refuses(request: Request, exchange: Exchange) -> None:
        status = int(wish_of(request))
        error = {"message": f"it said {status}", "type": "some_error", "param": "a.b", "code": "some_code"}
        await reply(Case("", status, {"error": error}, "", sent={"retry-after": "7"}), exchange)

    wrong: dict[int, list[str]] = {}
    async with failing_gateway(refuses) as client:
        for status in range(400, 600):
            ours = status in OURS
            headers = {"retry-after": "7", "x-should-retry": "false" if ours else None}
            code = None if ours else "some_code"
            wanted = Case("", status, None, f"it said {status}", code, 502 if ours else None, headers=headers)
            error = await raised(client, str(status), stream)
            problems = [*problems_of(wanted, error)]
            if not ours and (error.param, error.type) != ("a.b", "some_error"):
                problems.append(f"param {error.param}, type {error.type}")
            if problems:
                wrong[status] = problems
    assert wrong == {}


@BOTH
@pytest.mark.parametrize("cases", [FAILURES, INSIDE_200], ids=["refused", "inside 200"])
async def test_every_shape_of_an_error_raises_its_class(cases: list[Case], stream: bool) -> None:
    named = {case.name: case for case in cases}

    async def fails(request: Request, exchange: Exchange) -> None:
        await reply(named[wish_of(request)], exchange)

    async with failing_gateway(fails) as client:
        wrong = {case.name: [*problems_of(case, await raised(client, case.name, stream))] for case in cases}
    assert {name: problems for name, problems in wrong.items() if problems} == {}


async def test_an_answer_that_ended_badly_raises_its_class() -> None:
    async def fails(request: Request, exchange: Exchange) -> None:
        await reply(NAMED[wish_of(request)], exchange)

    async with failing_gateway(fails) as client:
        wrong = {case.name: [*problems_of(case, await raised(client, case.name, stream=False))] for case in FINISHED_BADLY}
    assert {name: problems for name, problems in wrong.items() if problems} == {}


@pytest.mark.parametrize("event", ["", "event: error\n"])
async def test_an_error_event_before_any_content_raises_its_class(event: str) -> None:
    named = {case.name: case for case in (*INSIDE_200, *FINISHED_BADLY)}

    async def fails(request: Request, exchange: Exchange) -> None:
        await exchange.start_stream()
        await exchange.chunk(b": OPENROUTER PROCESSING\n\n")
        await exchange.events(chunk("", role="assistant"))
        await exchange.chunk(f"{event}data: {json.dumps(with_secret(named[wish_of(request)].body))}\n\n".encode())
        await exchange.end_stream()

    async with failing_gateway(fails) as client:
        wrong = {name: [*problems_of(case, await raised(client, name, stream=True))] for name, case in named.items()}
    assert {name: problems for name, problems in wrong.items() if problems} == {}


async def test_an_error_event_after_content_raises_the_bare_class_with_what_it_said() -> None:
    named = {case.name: case for case in (*INSIDE_200, *FINISHED_BADLY)}

    async def fails(request: Request, exchange: Exchange) -> None:
        await exchange.start_stream()
        await exchange.events(chunk("partial"))
        await seen.wait()  # in one read with content an error still has its status
        await exchange.events(with_secret(named[wish_of(request)].body), "[DONE]")
        await exchange.end_stream()

    seen = asyncio.Event()
    wrong: dict[str, list[str]] = {}
    async with failing_gateway(fails) as client:
        for name, case in named.items():
            seen.clear()
            error = await raised(client, name, True, seen)
            problems = [*leaks_of(error)]
            if type(error) is not APIError or case.said not in error.message:  # its HTTP status was 200
                problems.append(f"{type(error).__name__} says {error.message!r}")
            if case.code is not None and error.code != case.code:
                problems.append(f"code {error.code}")
            if problems:
                wrong[name] = problems
    assert wrong == {}


async def test_a_key_in_any_field_of_an_error_is_hidden() -> None:
    everywhere = {name: f"{name} {SECRET}" for name in ("message", "param", "code")} | {
        "type": f"{SECRET}_error",
        "metadata": {"raw": SECRET},
    }

    async def fails(request: Request, exchange: Exchange) -> None:
        await exchange.json(400, {"error": everywhere})

    async with failing_gateway(fails) as client:
        for stream in (True, False):
            error = await raised(client, "x", stream)
            assert [*leaks_of(error)] == []
            assert (error.param, error.code, error.type) == ("param ***", "code ***", "***_error")


async def test_what_the_upstream_advises_about_trying_again_arrives() -> None:
    advice = {"retry-after-ms": "1500", "x-should-retry": "false", "x-ratelimit-reset-requests": "2s"}

    async def busy(request: Request, exchange: Exchange) -> None:
        await reply(Case("", 429, OPENAI, "", sent=advice), exchange)

    async with failing_gateway(busy) as client:
        error = await raised(client, "x", stream=False)
    assert isinstance(error, RateLimitError)
    assert advice.items() <= dict(error.response.headers).items()


async def test_what_an_upstream_says_of_a_models_availability_lets_another_answer() -> None:
    """Its own 400 would end the attempts: the client asked for a model that the configuration names, and only this upstream lacks it."""

    async def lacks(request: Request, exchange: Exchange) -> None:
        await exchange.json(400, availability("model_not_found", 400, "not_found"))

    async def has(request: Request, exchange: Exchange) -> None:
        await exchange.json(200, completion("here"))

    async with (
        scripted_upstream(lacks) as first,
        scripted_upstream(has) as second,
        live_gateway(chat_settings(first.base_url, second.base_url)) as live,
        live.sdk() as client,
    ):
        assert await ask(client, "x", stream=False) == ["here"]


# -- every class that the SDK has ----------------------------------------------------------------------------------------

Way = Callable[[Live, asyncio.Event], Awaitable[object]]  # the event: the client has seen content


def failing_upstream(status: int) -> Way:
    async def way(live: Live, seen: asyncio.Event) -> object:
        async with live.sdk() as client:
            return await ask(client, str(status), stream=False)

    return way


async def with_a_wrong_key(live: Live, seen: asyncio.Event) -> object:
    async with live.sdk(key="sk-wrong") as client:
        return await ask(client, "x", stream=False)


async def after_content(live: Live, seen: asyncio.Event) -> object:
    async with live.sdk() as client:
        return await ask(client, "error after content", True, seen)


async def where_nobody_listens(live: Live, seen: asyncio.Event) -> object:
    await live.stop()
    async with live.sdk() as client:
        return await ask(client, "x", stream=False)


async def without_patience(live: Live, seen: asyncio.Event) -> object:
    async with live.sdk(timeout=0.05) as client:
        return await ask(client, "never", stream=False)


def parsing(finish_reason: str) -> Way:
    async def way(live: Live, seen: asyncio.Event) -> object:
        async with live.sdk() as client:
            return await client.chat.completions.parse(model="m", messages=[{"role": "user", "content": finish_reason}])

    return way


WAYS: dict[str, Way] = {
    "APIError": after_content,
    "APIStatusError": failing_upstream(413),
    "APIConnectionError": where_nobody_listens,
    "APITimeoutError": without_patience,
    "AuthenticationError": with_a_wrong_key,
    "BadRequestError": failing_upstream(400),
    "ConflictError": failing_upstream(409),
    "InternalServerError": failing_upstream(401),
    "NotFoundError": failing_upstream(404),
    "PermissionDeniedError": failing_upstream(403),
    "RateLimitError": failing_upstream(429),
    "UnprocessableEntityError": failing_upstream(422),
    "LengthFinishReasonError": parsing("length"),
    "ContentFilterFinishReasonError": parsing("content_filter"),
}
NEVER = {
    "OpenAIError": "the base of all, raised for a client made without a key",
    "APIResponseValidationError": "only where a client asks for strict validation of answers, which the SDK does not offer on this route",
    "OAuthError": "of the exchange of a workload's identity for a token, with OpenAI itself",
    "WebSocketConnectionClosedError": "of the realtime API, which is not here",
    "WebSocketQueueFullError": "of the realtime API, which is not here",
}


def exported_classes() -> set[str]:
    """The names under which `openai` exports what it raises."""
    kinds = {name: getattr(openai, name) for name in openai.__all__}
    return {name for name, kind in kinds.items() if isinstance(kind, type) and issubclass(kind, openai.OpenAIError)}


def test_every_class_of_the_sdk_is_reached_or_explained() -> None:
    assert WAYS.keys() & NEVER.keys() == set()
    assert exported_classes() == WAYS.keys() | NEVER.keys()


@pytest.mark.parametrize("name", WAYS)
async def test_each_class_of_the_sdk_is_reached_by_its_way(name: str) -> None:
    async def answers(request: Request, exchange: Exchange) -> None:
        wish = wish_of(request)
        if wish == "never":
            await asyncio.Event().wait()
        elif wish == "error after content":
            await exchange.start_stream()
            await exchange.events(chunk("partial"))
            await seen.wait()
            await exchange.events({"error": {"message": "broke"}})
        elif wish.isdigit():
            await exchange.json(int(wish), {"error": MODERATED if wish == "403" else {"message": "x"}})
        else:
            document = completion("half")
            document["choices"][0]["finish_reason"] = wish
            await exchange.json(200, document)

    seen = asyncio.Event()
    async with scripted_upstream(answers) as upstream, live_gateway(chat_settings(upstream.base_url)) as live:
        with pytest.raises(openai.OpenAIError) as caught:
            await WAYS[name](live, seen)
    assert type(caught.value).__name__ == name
