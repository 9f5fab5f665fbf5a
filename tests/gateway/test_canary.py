"""Secrets that go through the gateway, and every place where something could be written down: they are in none.

The gateway, the upstream and the trace collector are real servers. `Watch` has everything that watches a gateway and all that it wrote.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from fastapi import APIRouter

from config.schema import Settings
from gateway.auth import KeyRing
from gateway.metrics import Readings
from gateway.observers import Observers, observers
from gateway.record import RequestRecord
from tests.gateway.live import KEY, Live, chat_settings, live_gateway
from tests.gateway.records import CHAT
from tests.otlp_collector import Collector, otlp_collector
from tests.scripted_upstream import Exchange, Request, Scenario, scripted_upstream

PROMPT, API_KEY, X_API_KEY, UPSTREAM_KEY, HEADER, TOLD, BUG = (
    f"sk-canary-{place}-7f3a9c" for place in ("prompt", "bearer", "x-api-key", "upstream-key", "header", "upstream-says", "bug")
)
EVERYWHERE = "sk-canary-"
BODY: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": f"my password is {PROMPT}"}], "user": PROMPT}


@dataclass
class Watch:
    """observers: what the gateway is given; lines: what they logged; fed: requests that they were told of."""

    settings: Settings
    observers: Observers
    collector: Collector
    lines: list[str] = field(default_factory=list)
    fed: int = 0
    scrape: bytes = b""

    def count(self, record: RequestRecord) -> None:
        """A sink."""
        self.fed += 1

    async def written(self) -> dict[str, bytes]:
        """All that was written down, by place. Ends the watching."""
        metrics, _ = await self.observers.metrics.exposition("")
        await asyncio.to_thread(self.observers.close)
        return {"log": "".join(self.lines).encode(), "metrics": metrics + self.scrape, "spans": b"".join(self.collector.bodies)}


@asynccontextmanager
async def watch(settings: Settings) -> AsyncIterator[Watch]:
    with otlp_collector() as collector:
        lines: list[str] = []
        environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.address}
        watching = observers(settings, environ, version="1", write=lines.append)
        watching.start(Readings(in_flight=lambda: {PROMPT: 1}))
        try:
            yield Watch(settings, watching, collector, lines)
        finally:
            await asyncio.to_thread(watching.close)


def breaking() -> APIRouter:
    """A route with a mistake in it, whose exception says a secret."""
    routes = APIRouter()

    @routes.get("/v1/broken")
    async def broken() -> None:
        raise ValueError(f"cannot read {BUG}")

    return routes


@asynccontextmanager
async def gateway_under(watching: Watch) -> AsyncIterator[Live]:
    """A gateway that is watched."""
    routes = [watching.observers.routes(KeyRing.of([KEY], "ask the operator").check), breaking()]
    async with live_gateway(watching.settings, routes=routes, sinks=[*watching.observers.sinks, watching.count]) as live:
        yield live


async def ask(http: httpx.AsyncClient, body: dict[str, Any] = BODY, **headers: str) -> httpx.Response:
    """Send it with a secret in headers of the client's own."""
    given = {"x-custom": HEADER, "cookie": f"session={HEADER}", "traceparent": f"00-{HEADER}"} | {
        name.replace("_", "-"): value for name, value in headers.items()
    }
    return await http.post(CHAT, json=body, headers=given)


def secret_settings(base_url: str, layout: str) -> Settings:
    upstream = {"api_key": UPSTREAM_KEY, "headers": {"x-team": UPSTREAM_KEY}}
    return chat_settings(base_url, upstream=upstream, log={"format": layout})


async def answers(request: Request, exchange: Exchange) -> None:
    choice = {"index": 0, "message": {"role": "assistant", "content": TOLD}, "finish_reason": "stop"}
    await exchange.json(200, {"id": "c", "object": "chat.completion", "choices": [choice]})


async def streams(request: Request, exchange: Exchange) -> None:
    await exchange.start_stream()
    choice = {"index": 0, "delta": {"content": TOLD}, "finish_reason": "stop"}
    await exchange.events({"id": "c", "object": "chat.completion.chunk", "choices": [choice]}, "[DONE]")
    await exchange.end_stream()


async def fails_in_a_stream(request: Request, exchange: Exchange) -> None:
    await exchange.start_stream()
    await exchange.events({"error": {"message": repeated(request), "code": TOLD}})
    await exchange.end_stream()


async def fails_after_content(request: Request, exchange: Exchange) -> None:
    await exchange.start_stream()
    await exchange.events({"id": "c", "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": "x"}}]})
    await asyncio.sleep(0.05)  # in one read with the content, the error would come before anything has been passed on
    await exchange.events({"error": {"message": repeated(request), "code": TOLD}})
    await exchange.end_stream()


async def talks_nonsense(request: Request, exchange: Exchange) -> None:
    await exchange.json(200, f"<html>{repeated(request)}</html>".encode())


def refuses(status: int) -> Scenario:
    async def refuse(request: Request, exchange: Exchange) -> None:
        error = {"message": repeated(request), "code": TOLD, "type": TOLD, "param": TOLD}
        await exchange.json(status, {"error": error}, retry_after="1")

    return refuse


def repeated(request: Request) -> str:
    """What a careless upstream says back: the key it was called with, the prompt, and something of its own."""
    return f"cannot do {request.json['messages'][0]['content']} for {request.headers['authorization']}; {TOLD}"


Asking = Callable[[httpx.AsyncClient], Awaitable[httpx.Response]]


async def plain(http: httpx.AsyncClient) -> httpx.Response:
    return await ask(http)


async def streamed(http: httpx.AsyncClient) -> httpx.Response:
    return await ask(http, BODY | {"stream": True})


async def with_wrong_key(http: httpx.AsyncClient) -> httpx.Response:
    return await ask(http, authorization=f"Bearer {API_KEY}")


async def with_wrong_x_api_key(http: httpx.AsyncClient) -> httpx.Response:
    del http.headers["authorization"]
    return await ask(http, x_api_key=X_API_KEY)


async def for_an_unknown_model(http: httpx.AsyncClient) -> httpx.Response:
    return await ask(http, BODY | {"model": PROMPT})


CASES: list[tuple[Scenario, Asking, int]] = [
    (answers, plain, 200),
    (streams, streamed, 200),
    (fails_in_a_stream, streamed, 502),
    (fails_after_content, streamed, 200),
    (talks_nonsense, plain, 502),
    *(
        (refuses(status), asking, 502 if status in (401, 402, 403) else status)
        for status in (400, 401, 403, 429, 500, 503)
        for asking in (plain, streamed)
    ),
    (answers, with_wrong_key, 401),
    (answers, with_wrong_x_api_key, 401),
    (answers, for_an_unknown_model, 404),
]


@pytest.mark.parametrize("layout", ["json", "text"])
@pytest.mark.parametrize(("scenario", "asking", "status"), CASES)
async def test_no_secret_is_written_down(scenario: Scenario, asking: Asking, status: int, layout: str) -> None:
    async with scripted_upstream(scenario) as upstream, watch(secret_settings(upstream.base_url, layout)) as watching:
        async with gateway_under(watching) as live, live.http() as http:
            reply = await asking(http)
            watching.scrape = (await http.get("/metrics", headers={"authorization": f"Bearer {KEY}"})).content
        assert reply.status_code == status
        for secret in (UPSTREAM_KEY, API_KEY, X_API_KEY, HEADER):
            assert secret not in reply.text
        written = await watching.written()
        assert watching.fed == 1
        assert f"{status}  {CHAT}" in written["log"].decode() or f'"status":{status}' in written["log"].decode()
        assert b"tandem_requests_total{" in written["metrics"]
        assert reply.headers["x-request-id"].encode() in written["spans"]
        assert [place for place, data in written.items() if EVERYWHERE.encode() in data] == []


@pytest.mark.parametrize("layout", ["json", "text"])
async def test_an_exceptions_message_is_not_written_down_but_its_place_is(layout: str) -> None:
    async with watch(secret_settings("http://127.0.0.1:9/v1", layout)) as watching:
        async with gateway_under(watching) as live, live.http() as http:
            reply = await http.get("/v1/broken")
        assert reply.status_code == 500
        assert BUG not in reply.text
        written = await watching.written()
        log = written["log"].decode()
        assert reply.headers["x-request-id"] in log
        assert log.count("ValueError") >= 1
        assert "in broken" in log
        assert [place for place, data in written.items() if EVERYWHERE.encode() in data] == []


async def test_the_two_logs_are_lines_of_one_shape() -> None:
    async with scripted_upstream(refuses(500)) as upstream, watch(secret_settings(upstream.base_url, "json")) as watching:
        async with gateway_under(watching) as live, live.http() as http:
            reply = await ask(http)
        lines = [json.loads(line) for line in (await watching.written())["log"].decode().splitlines()]
    by_logger = {line["logger"]: line for line in lines}
    assert set(by_logger) >= {"tandem.access", "tandem.chat"}
    assert {line["request_id"] for line in by_logger.values()} & {reply.headers["x-request-id"]}
    assert all({"time", "level", "logger", "message"} <= set(line) for line in lines)
