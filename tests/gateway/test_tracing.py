"""Traces: what a collector really gets, and that a bad collector costs nobody anything."""

from __future__ import annotations

import logging
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from adapters.usage import Usage
from gateway.known_names import KnownNames
from gateway.record import Attempt, RequestRecord
from gateway.tracing import Tracing, endpoint, tracing
from tests.gateway.live import chat_settings, image_settings
from tests.gateway.records import IMAGES, STARTED_AT, answered, failed
from tests.otlp_collector import otlp_collector, values

ROOT = Path(__file__).parents[2]
SETTINGS = chat_settings("http://127.0.0.1:9110/v1", "https://example.org/v1")
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
LONG_S = 20


@contextmanager
def sink(**environ: str) -> Iterator[Tracing]:
    traces = tracing(SETTINGS, KnownNames(SETTINGS), environ, "1.2.3")
    assert traces is not None
    try:
        yield traces
    finally:
        traces.close(LONG_S)


def spans_of(record: RequestRecord) -> list[Span]:
    """The spans of one record: the request's first, then its attempts in order."""
    with otlp_collector() as collector:
        with sink(OTEL_EXPORTER_OTLP_ENDPOINT=collector.address) as traces:
            traces(record)
        spans = collector.spans(1 + len(record.attempts))
    return sorted(spans, key=lambda span: (span.kind != Span.SPAN_KIND_SERVER, span.start_time_unix_nano))


@pytest.mark.parametrize(
    ("environ", "address"),
    [
        ({}, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": " "}, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, "http://c:4318/v1/traces"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318/base/"}, "http://c:4318/base/v1/traces"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c/x"}, "http://c/x"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://d/x"}, "http://d/x"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_SDK_DISABLED": "true"}, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_TRACES_EXPORTER": "none"}, None),
    ],
)
def test_the_address_comes_from_opentelemetrys_variables(environ: Mapping[str, str], address: str | None) -> None:
    assert endpoint(environ) == address
    if address is None:
        assert tracing(SETTINGS, KnownNames(SETTINGS), environ, "1") is None


def test_without_an_endpoint_the_sdk_is_not_imported() -> None:
    """The API of OpenTelemetry is there: FastAPI imports it."""
    code = (
        "import sys; from config.schema import Settings; import gateway.server; from gateway.observers import observers; "
        "model = {'name': 'm', 'kind': 'chat', 'deployments': [{'upstream': 'u', 'model': 'x'}]}; "
        "settings = Settings.model_validate({'models': [model], 'upstreams': {'u': {'kind': 'openrouter'}}}); "
        "observers(settings, {}, version='1').close(); "
        "print([name for name in sys.modules if name.startswith(('opentelemetry.sdk', 'opentelemetry.exporter', 'google.', 'requests'))])"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert run.stdout.strip() == "[]"


def test_an_answer_is_a_server_span_below_the_clients_and_a_client_span_below_it() -> None:
    server, client = spans_of(answered(traceparent=f"00-{TRACE}-{PARENT}-01"))
    assert (server.name, server.kind) == ("POST /v1/chat/completions", Span.SPAN_KIND_SERVER)
    assert (server.trace_id.hex(), server.parent_span_id.hex()) == (TRACE, PARENT)
    assert (client.name, client.kind) == ("chat vendor/up0", Span.SPAN_KIND_CLIENT)
    assert (client.trace_id, client.parent_span_id) == (server.trace_id, server.span_id)
    assert server.start_time_unix_nano == int(STARTED_AT * 1e9)
    assert server.end_time_unix_nano - server.start_time_unix_nano == pytest.approx(1.25e9, abs=1000)
    assert client.start_time_unix_nano - server.start_time_unix_nano == pytest.approx(0.01e9, abs=1000)
    assert client.end_time_unix_nano == pytest.approx(server.end_time_unix_nano, abs=1000)
    assert server.status.code == client.status.code == Status.STATUS_CODE_UNSET
    assert values(server.attributes) == {
        "http.request.method": "POST",
        "http.route": "/v1/chat/completions",
        "http.response.status_code": 200,
        "url.path": "/v1/chat/completions",
        "url.scheme": "http",
        "tandem.request_id": "req_1",
        "tandem.key_id": "key_ab12",
        "tandem.model": "m",
        "tandem.upstream": "up0",
        "tandem.outcome": "ok",
        "tandem.attempts": 1,
        "tandem.overhead": pytest.approx(0.002),
        "tandem.cost_usd": 0.5,
    }
    assert values(client.attributes) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "vendor/up0",
        "gen_ai.request.stream": True,
        "gen_ai.response.model": "vendor/up0",
        "gen_ai.response.time_to_first_chunk": pytest.approx(0.24),
        "gen_ai.usage.input_tokens": 100,
        "gen_ai.usage.output_tokens": 20,
        "gen_ai.usage.cache_read.input_tokens": 64,
        "gen_ai.usage.reasoning.output_tokens": 5,
        "server.address": "127.0.0.1",
        "server.port": 9110,
        "tandem.upstream": "up0",
    }


def test_each_attempt_has_a_span_and_a_failed_one_says_why() -> None:
    server, first, second = spans_of(failed())
    assert server.status.code == first.status.code == second.status.code == Status.STATUS_CODE_ERROR
    assert server.status.message == first.status.message == ""
    assert values(server.attributes)["error.type"] == "upstream_http_500"
    assert [values(span.attributes)["error.type"] for span in (first, second)] == ["upstream_timeout", "upstream_http_500"]
    assert values(second.attributes)["server.address"] == "example.org"
    assert values(second.attributes)["server.port"] == 443
    assert first.end_time_unix_nano == pytest.approx(second.start_time_unix_nano, abs=1000)
    assert second.end_time_unix_nano == pytest.approx(server.end_time_unix_nano, abs=1000)


def test_a_clients_mistake_is_no_error_of_the_server() -> None:
    (server,) = spans_of(RequestRecord("r", "/v1/chat/completions", STARTED_AT, status=404, outcome="failed", error_code="model_not_found"))
    assert server.status.code == Status.STATUS_CODE_UNSET
    assert values(server.attributes)["error.type"] == "model_not_found"


def test_an_answer_that_broke_off_is_an_error_though_its_status_was_200() -> None:
    server, _ = spans_of(answered(outcome="failed", error_code="upstream_disconnected"))
    assert server.status.code == Status.STATUS_CODE_ERROR


def test_pictures_and_estimates_are_told() -> None:
    (_, client) = spans_of(answered(route=IMAGES, stream=False, usage=Usage(1, 2, estimated=True)))
    attributes = values(client.attributes)
    assert (attributes["gen_ai.operation.name"], attributes["gen_ai.output.type"]) == ("generate_content", "image")
    assert attributes["tandem.usage.estimated"] is True


@pytest.mark.parametrize("traceparent", [None, "nonsense", f"00-{'0' * 32}-{PARENT}-01", "sk-secret"])
def test_without_a_good_traceparent_a_trace_begins_here(traceparent: str | None) -> None:
    server, _ = spans_of(answered(traceparent=traceparent))
    assert server.parent_span_id == b""
    assert len(server.trace_id) == 16


def test_a_client_that_does_not_sample_gets_no_spans() -> None:
    with otlp_collector() as collector:
        with sink(OTEL_EXPORTER_OTLP_ENDPOINT=collector.address) as traces:
            traces(answered(traceparent=f"00-{TRACE}-{PARENT}-00"))
            traces(answered(traceparent=f"00-{TRACE}-{PARENT}-01"))
        assert len(collector.spans(2)) == 2
        assert traces.dropped == 0


def test_the_service_has_a_name_that_the_environment_can_change(monkeypatch: pytest.MonkeyPatch) -> None:
    with otlp_collector() as collector:
        with sink(OTEL_EXPORTER_OTLP_ENDPOINT=collector.address) as traces:
            traces(answered())
        collector.spans(2)
        assert (collector.resource["service.name"], collector.resource["service.version"]) == ("tandem", "1.2.3")
        monkeypatch.setenv("OTEL_SERVICE_NAME", "mine")
        with sink(OTEL_EXPORTER_OTLP_ENDPOINT=collector.address, OTEL_SERVICE_NAME="mine") as traces:
            traces(answered())
        collector.spans(4)
        assert collector.resource["service.name"] == "mine"


def test_what_is_not_configured_gets_no_attribute_of_its_own() -> None:
    text = "sk-secret"
    record = answered(route=text, model=text, upstream=text, upstream_model=text, error_code=text, attempts=[Attempt(text, text, 1, text)])
    with otlp_collector() as collector:
        with sink(OTEL_EXPORTER_OTLP_ENDPOINT=collector.address) as traces:
            traces(record)
        assert {span.name for span in collector.spans(2)} == {"HTTP", "chat unknown"}
        assert not [body for body in collector.bodies if text.encode() in body]


def test_a_new_configuration_reaches_the_spans() -> None:
    names = KnownNames(SETTINGS)
    with otlp_collector() as collector:
        traces = tracing(SETTINGS, names, {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.address}, "1")
        assert traces is not None
        names.know(image_settings())
        traces.know(image_settings())
        traces(answered(upstream="pictures", attempts=[Attempt("pictures", "x", 1)]))
        assert traces.close(LONG_S)
        client = next(span for span in collector.spans(2) if span.kind == Span.SPAN_KIND_CLIENT)
    assert values(client.attributes)["gen_ai.provider.name"] == "diffusers"
    assert "server.address" not in values(client.attributes)


def test_a_collector_that_hangs_delays_nobody_and_closing_is_bounded() -> None:
    with otlp_collector(hangs=True) as collector:
        traces = tracing(SETTINGS, KnownNames(SETTINGS), {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.address}, "1")
        assert traces is not None
        traces(answered())
        assert collector.asked.wait(LONG_S)  # the exporter's thread hangs from here on
        for _ in range(10_000):
            traces(answered())
        assert traces.waiting <= 4096
        assert traces.dropped >= 10_000 - 4096
        assert not traces.close(within_s=0.05)
        assert (traces.waiting, traces.dropped) == (0, 10_000)
        traces(answered())
        assert traces.waiting == 0


def test_a_collector_that_is_gone_costs_its_traces_and_one_line(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with caplog.at_level(logging.WARNING, "tandem"):
        traces = tracing(SETTINGS, KnownNames(SETTINGS), {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://user:sk-secret@127.0.0.1:{port}"}, "1")
        assert traces is not None
        traces(answered())
        traces.close(within_s=0.05)  # between two tries: the exporter gives up
        assert traces._backlog.close(LONG_S)
    assert traces.dropped == 1
    said = [record.getMessage() for record in caplog.records if record.name == "tandem.tracing"]
    assert said == [f"the trace collector takes no traces; they are dropped until it does: host=127.0.0.1:{port}"]


class Fickle:
    """An exporter that takes what the test says."""

    def __init__(self, *takes: bool) -> None:
        self._takes = list(takes)

    def export(self, records: list[RequestRecord]) -> bool:
        return self._takes.pop(0)

    def know(self, settings: object) -> None:
        return

    def close(self) -> None:
        return


def test_only_changes_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    traces = Tracing(Fickle(True, False, False, True, True), "c:4318", gather_s=0)
    with caplog.at_level(logging.WARNING, "tandem.tracing"):
        for _ in range(5):
            traces._export([answered()])
    assert [record.getMessage().partition(";")[0] for record in caplog.records] == [
        "the trace collector takes no traces",
        "the trace collector takes traces again",
    ]
    assert traces.dropped == 2
    assert traces.close(LONG_S)
