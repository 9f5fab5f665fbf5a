"""x-ratelimit-* on replies: the upstream's account where the gateway has no limits of its own, ours alone where it has."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from gateway.respond import rates_of
from tests.gateway.live import chat_settings, live_gateway
from tests.scripted_upstream import Exchange, Request, chunk, completion, scripted_upstream

RATES = {"x-ratelimit-limit-requests": "500", "x-ratelimit-remaining-requests": "499", "x-ratelimit-reset-tokens": "6m0s"}
OTHERS = {"retry-after": "7", "x-should-retry": "true", "set-cookie": "a=b", "openai-organization": "org-1"}
BODY: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "x"}]}


async def answers(request: Request, exchange: Exchange) -> None:
    said = {name.replace("-", "_"): value for name, value in (RATES | OTHERS).items()}
    if "refuse" in request.json:
        await exchange.json(429, {"error": {"message": "slow down"}}, **said)
    elif request.json.get("stream"):
        await exchange.head(200, content_type="text/event-stream", transfer_encoding="chunked", **said)
        await exchange.events(chunk("one"), chunk(finish="stop"), "[DONE]")
        await exchange.end_stream()
    else:
        await exchange.json(200, completion("seen"), **said)


async def headers_of(asked: dict[str, Any], limits: dict[str, Any]) -> httpx.Headers:
    async with (
        scripted_upstream(answers) as upstream,
        live_gateway(chat_settings(upstream.base_url, model={"limits": limits})) as live,
        live.http() as http,
    ):
        return (await http.post("/v1/chat/completions", json=BODY | asked)).headers


def rates(headers: httpx.Headers) -> list[tuple[str, str]]:
    return sorted((name, value) for name, value in headers.multi_items() if name.startswith("x-ratelimit-"))


@pytest.mark.parametrize("asked", [{}, {"stream": True}, {"refuse": True}], ids=["whole", "stream", "error"])
async def test_the_upstreams_rates_arrive_where_the_gateway_has_none(asked: dict[str, Any]) -> None:
    assert rates(await headers_of(asked, {})) == sorted(RATES.items())


@pytest.mark.parametrize("asked", [{}, {"stream": True}, {"refuse": True}], ids=["whole", "stream", "error"])
async def test_where_the_gateway_has_limits_its_own_rates_stand_alone(asked: dict[str, Any]) -> None:
    found = rates(await headers_of(asked, {"requests_per_minute": 60}))
    assert [name.removeprefix("x-ratelimit-") for name, _ in found] == ["limit-requests", "remaining-requests", "reset-requests"]
    assert found[0][1] == "60"


@pytest.mark.parametrize("stream", [True, False])
async def test_nothing_else_of_a_good_reply_is_passed_on(stream: bool) -> None:
    headers = await headers_of({"stream": stream}, {})
    assert not OTHERS.keys() & headers.keys()


def test_a_limit_without_a_rate_leaves_the_upstreams() -> None:
    assert rates_of({b"x-ratelimit-limit-tokens": b"1", b"date": b"x"}, [(b"x-request-id", b"r")]) == [(b"x-ratelimit-limit-tokens", b"1")]
