"""A finished request as OpenTelemetry spans, and the way to a collector. The one module that imports OpenTelemetry.

One server span for the request, below the client's own span where it sent a traceparent, and one client span for each deployment that was
asked, by the GenAI semantic conventions. Only what is known of a request's shape goes in: no prompt, no answer, no header, no error's text.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import TypeAlias
from urllib.parse import urlsplit

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from config.schema import OpenAIUpstream, OpenRouterUpstream, Settings
from gateway.known_names import OTHER, ROUTES, KnownNames, known_code, known_route
from gateway.record import Attempt, RequestRecord

SERVICE = "tandem"
Value: TypeAlias = str | bool | int | float
Attributes: TypeAlias = dict[str, Value]


class SpanExport:
    """See `gateway.tracing.Exporter`. address: the whole of it. Headers, time-outs and certificates: the OTEL_EXPORTER_OTLP_* variables."""

    def __init__(self, address: str, settings: Settings, names: KnownNames, environ: Mapping[str, str], version: str) -> None:
        self._names = names
        self.know(settings)
        self._ended = _Ended()
        # Not the process's global provider: two gateways may live in one process. And no exit handler: its owner closes it.
        self._provider = TracerProvider(resource=_resource(environ, version), shutdown_on_exit=False)
        self._provider.add_span_processor(self._ended)
        self._tracer = self._provider.get_tracer("tandem.gateway", version)
        self._exporter = OTLPSpanExporter(address)
        self._parent = TraceContextTextMapPropagator()

    def know(self, settings: Settings) -> None:
        self._servers = {name: dict(_server(spec)) for name, spec in settings.upstreams.items()}

    def export(self, records: list[RequestRecord]) -> bool:
        for record in records:
            self._make(record)
            time.sleep(0)  # the event loop, where it waits for the interpreter, need not wait for its whole switch interval
        spans = self._ended.take()
        return not spans or self._exporter.export(spans) is SpanExportResult.SUCCESS

    def close(self) -> None:
        self._exporter.shutdown()  # type: ignore[no-untyped-call]
        self._provider.shutdown()

    def _make(self, record: RequestRecord) -> None:
        parent = self._parent.extract({"traceparent": record.traceparent}, Context()) if record.traceparent else Context()
        route = known_route(record.route)
        method = ROUTES.get(route, "_OTHER")
        name = f"{method} {route}" if route != OTHER else "HTTP"
        start, end = _ns(record.started_at), _ns(record.started_at + record.duration_s)
        span = self._tracer.start_span(name, parent, SpanKind.SERVER, request_attributes(record, self._names), start_time=start)
        if record.status >= 500 or (record.outcome == "failed" and record.status < 400):  # a 4xx is the client's error, not the server's
            span.set_status(Status(StatusCode.ERROR))
        below = set_span_in_context(span, Context())
        for attempt, begun_s, ended_s in attempt_times(record):
            attributes = attempt_attributes(record, attempt, begun_s, self._names) | self._servers.get(attempt.upstream, {})
            title = f"{attributes['gen_ai.operation.name']} {attributes['gen_ai.request.model']}"
            asked = self._tracer.start_span(title, below, SpanKind.CLIENT, attributes, start_time=_ns(record.started_at + begun_s))
            if attempt.error is not None:
                asked.set_status(Status(StatusCode.ERROR))
            asked.end(_ns(record.started_at + ended_s))
        span.end(end)


class _Ended(SpanProcessor):
    """Keeps spans until somebody takes them. One thread makes them and takes them."""

    def __init__(self) -> None:
        self._spans: list[ReadableSpan] = []

    def on_end(self, span: ReadableSpan) -> None:
        if span.context is not None and span.context.trace_flags.sampled:
            self._spans.append(span)

    def take(self) -> list[ReadableSpan]:
        spans, self._spans = self._spans, []
        return spans


def attempt_times(record: RequestRecord) -> Iterator[tuple[Attempt, float, float]]:
    """Each attempt with its start and end, in seconds from the request's start.

    A record has only their durations: they are laid end to end, and the last ends with the request.
    """
    begun_s = max(0.0, record.duration_s - sum(attempt.duration_s for attempt in record.attempts))
    for attempt in record.attempts:
        yield attempt, begun_s, begun_s + attempt.duration_s
        begun_s += attempt.duration_s


def request_attributes(record: RequestRecord, names: KnownNames) -> Attributes:
    """Attributes of the server span: HTTP's semantic conventions, and ours under `tandem.`."""
    route = known_route(record.route)
    attributes: Attributes = {
        "http.request.method": ROUTES.get(route, "_OTHER"),
        "http.route": route,
        "url.path": route,
        "url.scheme": "http",
        "tandem.request_id": record.request_id,
        "tandem.outcome": record.outcome,
        "tandem.attempts": len(record.attempts),
        "tandem.overhead": record.overhead_s,
    }
    if record.status:
        attributes["http.response.status_code"] = record.status
    if record.error_code is not None:
        attributes["error.type"] = known_code(record.error_code)
    if record.key_id:
        attributes["tandem.key_id"] = record.key_id
    if record.model:
        attributes["tandem.model"] = names.model(record.model)
    if record.upstream:
        attributes["tandem.upstream"] = names.upstream(record.upstream)
    if record.cost_usd is not None:
        attributes["tandem.cost_usd"] = record.cost_usd
    return attributes


def attempt_attributes(record: RequestRecord, attempt: Attempt, begun_s: float, names: KnownNames) -> Attributes:
    """Attributes of one client span. What the answer used belongs to the deployment that answered: the last, unless it failed too."""
    is_image = record.route.startswith("/v1/images/")
    attributes: Attributes = {
        "gen_ai.operation.name": "generate_content" if is_image else "chat",
        "gen_ai.request.model": names.upstream_model(attempt.model),
        "tandem.upstream": names.upstream(attempt.upstream),
    }
    if is_image:
        attributes["gen_ai.output.type"] = "image"
    if record.stream:
        attributes["gen_ai.request.stream"] = True
    if attempt.error is not None:
        attributes["error.type"] = known_code(attempt.error)
    if attempt is not record.attempts[-1]:
        return attributes
    if record.upstream:
        attributes["gen_ai.response.model"] = names.upstream_model(record.upstream_model)
    if record.stream and record.first_token_s is not None:
        attributes["gen_ai.response.time_to_first_chunk"] = max(0.0, record.first_token_s - begun_s)
    return attributes | _used(record)


def _used(record: RequestRecord) -> Attributes:
    usage = record.usage
    if usage is None:
        return {}
    used: Attributes = {"gen_ai.usage.input_tokens": usage.prompt_tokens, "gen_ai.usage.output_tokens": usage.completion_tokens}
    if usage.cached_tokens:
        used["gen_ai.usage.cache_read.input_tokens"] = usage.cached_tokens
    if usage.reasoning_tokens:
        used["gen_ai.usage.reasoning.output_tokens"] = usage.reasoning_tokens
    if usage.estimated:
        used["tandem.usage.estimated"] = True
    return used


def _server(spec: object) -> Iterator[tuple[str, Value]]:
    """What is known of an upstream before it is asked. A local engine's port changes with each start: it has none here."""
    yield "gen_ai.provider.name", str(getattr(spec, "kind", OTHER))
    if isinstance(spec, OpenAIUpstream | OpenRouterUpstream):
        parts = urlsplit(spec.base_url)
        yield "server.address", str(parts.hostname)
        yield "server.port", parts.port or (443 if parts.scheme == "https" else 80)


def _resource(environ: Mapping[str, str], version: str) -> Resource:
    """Who sends: OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES, where they are set, go over our own name."""
    own: dict[str, str] = {"service.version": version}
    if not environ.get("OTEL_SERVICE_NAME") and "service.name=" not in environ.get("OTEL_RESOURCE_ATTRIBUTES", ""):
        own["service.name"] = SERVICE
    return Resource.create(own)


def _ns(unix_s: float) -> int:
    return int(unix_s * 1e9)
