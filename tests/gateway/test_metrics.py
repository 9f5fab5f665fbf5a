"""Metrics, read as Prometheus reads them: over HTTP, through its own parser."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from adapters.usage import Usage
from config.schema import Settings
from gateway.auth import KeyRing
from gateway.known_names import KnownNames
from gateway.loop_lag import Lag
from gateway.metrics import Metrics, Readings, Writer, metrics_routes
from gateway.record import Attempt
from tests.gateway.live import KEY, chat_settings, live_gateway
from tests.gateway.records import IMAGES, answered, failed

SETTINGS = chat_settings("http://127.0.0.1:9/v1", "http://127.0.0.1:9/v1")
Samples = Mapping[tuple[str, frozenset[tuple[str, str]]], float]


def metrics_of(readings: Readings | None = None, settings: Settings = SETTINGS) -> Metrics:
    return Metrics(KnownNames(settings), "1.2.3", readings)


@asynccontextmanager
async def scraped(metrics: Metrics, key: str | None = KEY, *, check: bool = True) -> AsyncIterator[httpx.AsyncClient]:
    ring = KeyRing.of([KEY], "ask the operator")
    async with live_gateway(SETTINGS, routes=[metrics_routes(metrics, ring.check if check else None)]) as live, live.http(key) as http:
        yield http


async def samples_of(metrics: Metrics) -> Samples:
    async with scraped(metrics) as http:
        reply = await http.get("/metrics")
        assert reply.status_code == 200
    families = list(text_string_to_metric_families(reply.text))
    return {(sample.name, frozenset(sample.labels.items())): sample.value for family in families for sample in family.samples}


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, frozenset(labels.items())]


def named(samples: Samples, name: str) -> set[frozenset[tuple[str, str]]]:
    return {labels for sample, labels in samples if sample == name}


async def test_an_answer_is_counted_with_tokens_money_and_times() -> None:
    metrics = metrics_of()
    metrics(answered())
    metrics(answered())
    samples = await samples_of(metrics)
    request = {"route": "/v1/chat/completions", "model": "m", "upstream": "up0", "status": "2xx", "outcome": "ok", "code": "none"}
    assert value(samples, "tandem_requests_total", **request) == 2
    assert value(samples, "tandem_attempts_total", model="m", upstream="up0", code="none") == 2
    who = {"model": "m", "upstream": "up0"}
    counted = {
        direction: value(samples, "tandem_tokens_total", **who, direction=direction, estimated="false")
        for direction in ("prompt", "completion", "cached", "reasoning")
    }
    assert counted == {"prompt": 200, "completion": 40, "cached": 128, "reasoning": 10}
    assert value(samples, "tandem_cost_usd_total", **who) == 1
    assert value(samples, "tandem_request_duration_seconds_sum", route="/v1/chat/completions", model="m") == 2.5
    assert value(samples, "tandem_first_token_seconds_bucket", **who, le="0.2") == 0
    assert value(samples, "tandem_first_token_seconds_bucket", **who, le="0.35") == 2
    assert value(samples, "tandem_inter_token_seconds_sum", **who) == pytest.approx(0.1)
    assert value(samples, "tandem_overhead_seconds_bucket", route="/v1/chat/completions", le="0.001") == 0
    assert value(samples, "tandem_overhead_seconds_bucket", route="/v1/chat/completions", le="0.005") == 2
    assert value(samples, "tandem_overhead_seconds_sum", route="/v1/chat/completions") == pytest.approx(0.004)
    assert value(samples, "tandem_build_info", version="1.2.3") == 1


async def test_a_failure_is_counted_with_its_code_and_every_attempt() -> None:
    metrics = metrics_of()
    metrics(failed())
    metrics(failed(status=0, outcome="client_left", error_code=None, attempts=[]))
    samples = await samples_of(metrics)
    nobody = {"route": "/v1/chat/completions", "model": "m", "upstream": "none"}
    assert value(samples, "tandem_requests_total", **nobody, status="5xx", outcome="failed", code="upstream_http_500") == 1
    assert value(samples, "tandem_requests_total", **nobody, status="none", outcome="client_left", code="none") == 1
    assert value(samples, "tandem_attempts_total", model="m", upstream="up0", code="upstream_timeout") == 1
    assert value(samples, "tandem_attempts_total", model="m", upstream="up1", code="upstream_http_500") == 1
    assert named(samples, "tandem_tokens_total") == named(samples, "tandem_first_token_seconds_count") == set()


async def test_estimated_tokens_and_pictures_are_told_apart() -> None:
    metrics = metrics_of()
    metrics(answered(usage=Usage(7, 3, estimated=True), cost_usd=None))
    metrics(answered(route=IMAGES, images=4, usage=None, first_token_s=None))
    samples = await samples_of(metrics)
    assert value(samples, "tandem_tokens_total", model="m", upstream="up0", direction="completion", estimated="true") == 3
    assert value(samples, "tandem_images_total", model="m") == 4
    assert value(samples, "tandem_cost_usd_total", model="m", upstream="up0") == 0.5


async def test_what_nobody_configured_becomes_no_label() -> None:
    metrics = metrics_of()
    for number in range(100):
        text = f"sk-secret-{number}"
        metrics(answered(model=text, upstream=text, route=f"/{text}", error_code=text, attempts=[Attempt(text, text, 1, text)]))
    samples = await samples_of(metrics)
    unknown = {"route": "other", "model": "unknown", "upstream": "unknown", "status": "2xx", "outcome": "ok", "code": "other"}
    assert named(samples, "tandem_requests_total") == {frozenset(unknown.items())}
    assert value(samples, "tandem_requests_total", **unknown) == 100
    assert not [labels for _, labels in samples if "sk-secret" in str(labels)]


@pytest.mark.parametrize(("status", "label"), [(0, "none"), (200, "2xx"), (404, "4xx"), (599, "5xx"), (999, "5xx")])
async def test_any_status_has_a_class(status: int, label: str) -> None:
    metrics = metrics_of()
    metrics(answered(status=status))
    assert {dict(labels)["status"] for labels in named(await samples_of(metrics), "tandem_requests_total")} == {label}


async def test_the_gateways_parts_are_asked_at_each_scrape() -> None:
    running = {"m": 3, "sk-secret": 2, "sk-other": 1}
    metrics = metrics_of(
        Readings(
            in_flight=lambda: running,
            queues=lambda: {"pictures:x": 5},
            breakers=lambda: {"up0:vendor/up0": "half_open"},
            engines=lambda: {"pictures:x": "starting"},
            memory=lambda: {"pictures:x": {"cuda:0": 5}, "here:m": {}},
            writers=lambda: {"usage": Writer(waiting=7, dropped=2)},
            loop_lag=lambda: Lag(0.002, 0.03),
        )
    )
    samples = await samples_of(metrics)
    assert value(samples, "tandem_requests_in_flight", model="m") == 3
    assert value(samples, "tandem_requests_in_flight", model="unknown") == 3
    assert value(samples, "tandem_queue_length", queue="pictures:x") == 5
    breaker = {
        state: value(samples, "tandem_breaker_state", deployment="up0:vendor/up0", state=state) for state in ("closed", "open", "half_open")
    }
    assert breaker == {"closed": 0, "open": 0, "half_open": 1}
    assert value(samples, "tandem_engine_state", engine="pictures:x", state="starting") == 1
    assert value(samples, "tandem_engine_state", engine="pictures:x", state="ready") == 0
    assert value(samples, "tandem_engine_memory_bytes", engine="pictures:x", device="cuda:0") == 5
    assert len(named(samples, "tandem_engine_memory_bytes")) == 1
    assert value(samples, "tandem_backlog_length", writer="usage") == 7
    assert value(samples, "tandem_backlog_dropped_total", writer="usage") == 2
    assert value(samples, "tandem_event_loop_lag_seconds") == 0.002
    assert value(samples, "tandem_event_loop_lag_max_seconds") == 0.03
    running.clear()
    assert named(await samples_of(metrics), "tandem_requests_in_flight") == set()


async def test_the_format_is_the_one_that_is_asked_for() -> None:
    metrics = metrics_of()
    metrics(answered())
    async with scraped(metrics) as http:
        plain = await http.get("/metrics")
        openmetrics = await http.get("/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"})
    assert plain.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert openmetrics.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert openmetrics.text.endswith("# EOF\n")
    assert openmetrics.text.count("# EOF") == 1
    assert "tandem_requests" in {family.name for family in parse_openmetrics(openmetrics.text)}  # type: ignore[no-untyped-call]


async def test_names_have_the_prefix_and_a_description() -> None:
    metrics = metrics_of()
    metrics(answered(images=1))
    async with scraped(metrics) as http:
        families = list(text_string_to_metric_families((await http.get("/metrics")).text))
    assert {family.name.partition("_")[0] for family in families} == {"tandem", "process"}
    assert [family.name for family in families if not family.documentation] == []
    assert len({family.name for family in families}) == len(families)


async def test_it_needs_a_key_unless_it_is_told_otherwise() -> None:
    async with scraped(metrics_of(), key=None) as http:
        reply = await http.get("/metrics")
        assert (reply.status_code, reply.json()["error"]["code"]) == (401, "invalid_api_key")
    async with scraped(metrics_of(), key=None, check=False) as http:
        assert (await http.get("/metrics")).status_code == 200


async def test_two_of_them_live_in_one_process() -> None:
    one, other = metrics_of(), metrics_of()
    one(answered())
    assert named(await samples_of(one), "tandem_requests_total")
    assert not named(await samples_of(other), "tandem_requests_total")


async def test_a_collector_of_another_part_may_join() -> None:
    from prometheus_client import Counter

    metrics = metrics_of()
    extra: Any = Counter("tandem_extra", "Something else.", registry=metrics.registry)
    extra.inc(5)
    assert value(await samples_of(metrics), "tandem_extra_total") == 5
