"""GET /v1/usage over HTTP, with a real store behind it: whose usage it is, what a page holds, what goes wrong."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from adapters.usage import Usage
from config.schema import Settings
from gateway import usage
from gateway.errors import GatewayError, unauthorized
from gateway.usage import UsageLedger, open_usage
from gateway.usage_routes import usage_routes
from gateway.usage_store import FILE
from gateway.usage_totals import StoreUnavailable, Total
from tests.gateway.live import chat_settings
from tests.gateway.usage_records import DAY, NOON, eventually, record

MIDNIGHT = int(NOON - NOON % DAY)


@pytest.fixture
def settings() -> Settings:
    return chat_settings("http://127.0.0.1:1/v1")


@pytest.fixture
def ledger(settings: Settings, tmp_path: Path) -> Iterator[UsageLedger]:
    opened = open_usage(settings, tmp_path)
    yield opened
    opened.close(0)


def key_of(request: Request) -> str:
    """The header is the key's id, for this test."""
    given = request.headers.get("authorization")
    if not given:
        raise unauthorized("no API key")
    return given.removeprefix("Bearer ")


async def show(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, GatewayError)
    return JSONResponse(error.document, error.status, {name.decode(): value.decode() for name, value in error.headers.items()})


@pytest.fixture
async def client(ledger: UsageLedger) -> AsyncIterator[httpx.AsyncClient]:
    app = FastAPI()
    app.include_router(usage_routes(ledger, key_of, now=lambda: NOON + 10))
    app.add_exception_handler(GatewayError, show)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway", headers={"authorization": "Bearer k1"}) as opened:
        yield opened


def write(ledger: UsageLedger, *records: Any) -> None:
    for each in records:
        ledger(each)
    eventually(lambda: ledger.writer.waiting == 0, "all are written")


async def page(client: httpx.AsyncClient, **asked: Any) -> dict[str, Any]:
    answer = await client.get("/v1/usage", params=asked)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def test_a_page_holds_every_day_and_what_was_used_on_it(ledger: UsageLedger, client: httpx.AsyncClient) -> None:
    write(ledger, record(), record(outcome="failed", usage=Usage(7, 0), cost_usd=None, first_token_s=None))
    found = await page(client, start_time=MIDNIGHT - 2 * DAY, end_time=MIDNIGHT + DAY)
    assert {name: found[name] for name in ("object", "has_more", "next_page")} == {"object": "page", "has_more": False, "next_page": None}
    assert [(bucket["start_time"], bucket["end_time"]) for bucket in found["data"]] == [
        (MIDNIGHT - 2 * DAY, MIDNIGHT - DAY),
        (MIDNIGHT - DAY, MIDNIGHT),
        (MIDNIGHT, MIDNIGHT + DAY),
    ]
    assert [bucket["results"] for bucket in found["data"][:2]] == [[], []]
    assert found["data"][2]["results"] == [
        {
            "object": "tandem.usage.result",
            "model": None,
            "num_model_requests": 2,
            "input_tokens": 107,
            "output_tokens": 20,
            "input_cached_tokens": 10,
            "reasoning_tokens": 5,
            "images": 0,
            "failures": 1,
            "client_left": 0,
            "cost_usd": 0.5,
            "unpriced_requests": 1,
            "estimated_requests": 0,
            "mean_first_token_s": 0.25,
            "mean_duration_s": 1.0,
        }
    ]


async def test_buckets_are_cut_to_the_times_asked_for(ledger: UsageLedger, client: httpx.AsyncClient) -> None:
    write(ledger, record(at=NOON - 1), record(at=NOON), record(at=NOON + 5))
    found = await page(client, start_time=int(NOON), end_time=int(NOON) + 5)
    (bucket,) = found["data"]
    assert (bucket["start_time"], bucket["end_time"]) == (NOON, NOON + 5)
    assert [result["num_model_requests"] for result in bucket["results"]] == [1]


async def test_models_may_be_told_apart_and_all_days_summed(ledger: UsageLedger, client: httpx.AsyncClient) -> None:
    write(ledger, record(model="a"), record(model="b"), record(model="b", at=NOON - DAY))
    (bucket,) = (await page(client, bucket_width="all", group_by="model"))["data"]
    assert [(result["model"], result["num_model_requests"]) for result in bucket["results"]] == [("a", 1), ("b", 2)]
    days = (await page(client, start_time=MIDNIGHT - DAY, group_by="model"))["data"]
    assert [[result["model"] for result in bucket["results"]] for bucket in days] == [["b"], ["a", "b"]]


async def test_a_key_sees_its_own_usage_only(ledger: UsageLedger, client: httpx.AsyncClient) -> None:
    write(ledger, record(key_id="k2"), record(key_id="k2"))
    assert all(bucket["results"] == [] for bucket in (await page(client))["data"])
    answer = await client.get("/v1/usage", params={"bucket_width": "all"}, headers={"authorization": "Bearer k2"})
    assert answer.json()["data"][0]["results"][0]["num_model_requests"] == 2


async def test_without_a_key_nothing_is_told(client: httpx.AsyncClient) -> None:
    answer = await client.get("/v1/usage", params={"start_time": "x"}, headers={"authorization": ""})
    assert answer.status_code == 401


async def test_a_wrong_parameter_is_an_error_in_openais_shape(client: httpx.AsyncClient) -> None:
    answer = await client.get("/v1/usage", params={"start_time": "yesterday"})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", "start_time", "invalid_value")


async def test_a_store_that_is_away_is_503_and_says_when_to_ask_again(client: httpx.AsyncClient, tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"not a database" * 100)
    answer = await client.get("/v1/usage")
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "5"
    assert answer.json()["error"]["code"] == "usage_unavailable"
    assert str(tmp_path) not in answer.text


async def test_the_loop_goes_on_while_the_database_is_asked(
    ledger: UsageLedger, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(ledger, record())
    asked, answers, summary = threading.Event(), threading.Event(), ledger._store.summary

    def slow(*arguments: Any) -> list[Total]:
        asked.set()
        answers.wait()
        return summary(*arguments)

    monkeypatch.setattr(ledger._store, "summary", slow)
    reading = asyncio.create_task(page(client, bucket_width="all"))
    while not asked.is_set():
        await asyncio.sleep(0.001)
    answers.set()  # nobody would get here if the loop waited for the store
    assert (await reading)["data"][0]["results"][0]["num_model_requests"] == 1


class TestLedger:
    async def test_what_was_spent_is_there_after_a_restart(self, settings: Settings, tmp_path: Path) -> None:
        first = open_usage(settings, tmp_path)
        first(record())
        assert first.close(60) == 0
        second = open_usage(settings, tmp_path)
        spent = await second.spent_since(NOON)
        assert (spent["k1"]["m"].usd, spent["k1"]["m"].tokens) == (0.5, 120)
        second.close()

    async def test_it_opens_and_closes_without_a_database(self, tmp_path: Path) -> None:
        settings = chat_settings("http://127.0.0.1:1/v1", usage={"url": f"postgresql://u@/n?host={tmp_path}", "queue_size": 2})
        ledger = open_usage(settings, tmp_path)
        for _ in range(3):
            ledger(record())
        assert (ledger.writer.waiting, ledger.writer.dropped) == (2, 1)
        with pytest.raises(StoreUnavailable):
            await ledger.spent_since(0)
        assert ledger.close(0.01) == 2

    async def test_a_reader_does_not_wait_for_ever_and_only_so_many_wait(
        self, ledger: UsageLedger, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        answers = threading.Event()
        monkeypatch.setattr(ledger._store, "spent_since", lambda since: answers.wait() and {})
        monkeypatch.setattr(usage, "READ_S", 0.01)
        waiting = [asyncio.create_task(ledger.spent_since(0)) for _ in range(usage.MAX_READS)]
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        assert all(isinstance(outcome, StoreUnavailable) and "has not answered for 0.01 s" in str(outcome) for outcome in outcomes)
        with pytest.raises(StoreUnavailable, match="is asked 16 times already"):
            await ledger.spent_since(0)
        answers.set()
        monkeypatch.setattr(usage, "READ_S", 60)
        while ledger._reads:
            await asyncio.sleep(0.001)
        assert await ledger.spent_since(0) == {}
