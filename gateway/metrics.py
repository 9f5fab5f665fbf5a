"""Prometheus metrics: what finished requests add up to, and what the gateway's parts say of themselves when somebody asks.

Counting is plain arithmetic on the event loop's thread; prometheus_client comes in when they are read. Every label's values are bounded by
the configuration: `gateway.known_names` decides. Base units, seconds and US dollars, are in the names.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse, Response
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from gateway.description import NO_KEY_NEEDED, Responses, errors
from gateway.known_names import KnownNames, known_code, known_route
from gateway.loop_lag import Lag
from gateway.record import RequestRecord

PATH = "/metrics"
BREAKER_STATES = ("closed", "open", "half_open")
ENGINE_STATES = ("stopped", "starting", "ready", "stopping", "failed")
OVERHEAD_BUCKETS_S = (0.00005, 0.0001, 0.0002, 0.0003, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
INTER_TOKEN_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5)
FIRST_TOKEN_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0)
DURATION_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
INFINITE = float("inf")
_STATUS_CLASSES = ("none", "1xx", "2xx", "3xx", "4xx", "5xx")

_DIRECTIONS = ("prompt", "completion", "cached", "reasoning")
MAX_SERIES = 2000

Labels = tuple[str, ...]
_Told = tuple[str, str, str, int, str, str | None]
Headers = Iterable[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class Writer:
    """A bounded backlog: how much waits in it and how much it had to drop so far."""

    waiting: int = 0
    dropped: int = 0


@dataclass(frozen=True)
class Readings:
    """What is asked for at each scrape, on the event loop: each returns at once.

    in_flight: model to requests. queues: queue to those that wait in it. breakers: deployment to one of BREAKER_STATES.
    engines: engine to one of ENGINE_STATES. memory: engine to the bytes that it holds, by device. writers: name of a backlog (usage, log,
    traces) to what is in it.
    Names that no configuration bounds do not belong in here, except models: an unknown one counts as "unknown".
    """

    in_flight: Callable[[], Mapping[str, int]] = dict
    queues: Callable[[], Mapping[str, int]] = dict
    breakers: Callable[[], Mapping[str, str]] = dict
    engines: Callable[[], Mapping[str, str]] = dict
    memory: Callable[[], Mapping[str, Mapping[str, int]]] = dict
    writers: Callable[[], Mapping[str, Writer]] = dict
    loop_lag: Callable[[], Lag] = Lag


class Metrics:
    """A sink for records, and the registry that is read. readings: may be exchanged once there is somebody to ask.

    registry: this object's own; other collectors may join it.
    """

    def __init__(self, names: KnownNames, version: str, readings: Readings | None = None) -> None:
        self._names, self._version = names, version
        self.readings = readings or Readings()
        of_request = ("route", "model", "upstream", "status", "outcome", "code")
        self._requests = _Count("tandem_requests", "Requests that have ended.", of_request)
        self._attempts = _Count(
            "tandem_attempts", "Deployments that were asked; code is 'none' where one answered.", ("model", "upstream", "code")
        )
        self._tokens = _Count(
            "tandem_tokens",
            "Tokens. cached is a part of prompt, reasoning a part of completion; estimated where the upstream's count never came.",
            ("model", "upstream", "direction", "estimated"),
        )
        self._cost = _Count("tandem_cost_usd", "Cost in US dollars, of requests whose cost is known.", ("model", "upstream"))
        self._images = _Count("tandem_images", "Pictures made.", ("model",))
        self._duration = _Spread(
            "tandem_request_duration_seconds", "From a request's start to its end.", ("route", "model"), DURATION_BUCKETS_S
        )
        self._first_token = _Spread(
            "tandem_first_token_seconds", "From a request's start to its first content.", ("model", "upstream"), FIRST_TOKEN_BUCKETS_S
        )
        self._inter_token = _Spread(
            "tandem_inter_token_seconds",
            "Between two pieces of content of a streamed answer: one mean for each request.",
            ("model", "upstream"),
            INTER_TOKEN_BUCKETS_S,
        )
        self._overhead = _Spread(
            "tandem_overhead_seconds",
            "What the gateway itself took of a request: no waiting for upstreams.",
            ("route",),
            OVERHEAD_BUCKETS_S,
        )
        self._series: dict[_Told, _Series] = {}
        self.registry = CollectorRegistry()
        self.registry.register(_Families(self._families))
        ProcessCollector(registry=self.registry)

    def __call__(self, record: RequestRecord) -> None:
        """Count one request that has ended."""
        told = (record.route, record.model, record.upstream, record.status, record.outcome, record.error_code)
        series = self._series.get(told)
        if series is None:
            series = self._new_series(record, told)
        series.requests.value += 1
        series.duration.observe(record.duration_s)
        series.overhead.observe(record.overhead_s)
        attempts = record.attempts
        if len(attempts) == 1 and attempts[0].error is None:
            series.answered.value += 1
        else:
            for attempt in attempts:
                self._attempts.cell((series.model, self._names.upstream(attempt.upstream), known_code(attempt.error))).value += 1
        if record.first_token_s is not None:
            series.first_token.observe(record.first_token_s)
            if record.stream and record.chunks:
                series.inter_token.observe(max(0.0, record.duration_s - record.first_token_s) / record.chunks)
        if record.cost_usd is not None:
            series.cost.value += record.cost_usd
        if record.images:
            self._images.cell((series.model,)).value += record.images
        usage = record.usage
        if usage is not None:
            tokens = series.estimated_tokens if usage.estimated else series.tokens
            tokens.prompt.value += usage.prompt_tokens
            tokens.completion.value += usage.completion_tokens
            if usage.cached_tokens:
                tokens.cached.value += usage.cached_tokens
            if usage.reasoning_tokens:
                tokens.reasoning.value += usage.reasoning_tokens

    def forget(self) -> None:
        """Look at the names anew, for they have changed. What was counted stays."""
        self._series.clear()

    def _new_series(self, record: RequestRecord, told: _Told) -> _Series:
        """What such requests are counted in. Under a pattern there is no end of models: the oldest are forgotten, not their counts."""
        if len(self._series) >= MAX_SERIES:
            del self._series[next(iter(self._series))]
        route, model, upstream = known_route(record.route), self._names.model(record.model), self._names.upstream(record.upstream)
        status = _STATUS_CLASSES[record.status // 100] if record.status < 600 else "5xx"
        who = (model, upstream)
        series = self._series[told] = _Series(
            model=model,
            requests=self._requests.cell((route, model, upstream, status, record.outcome, known_code(record.error_code))),
            answered=self._attempts.cell((model, upstream, known_code(None))),
            duration=self._duration.cell((route, model)),
            overhead=self._overhead.cell((route,)),
            first_token=self._first_token.cell(who),
            inter_token=self._inter_token.cell(who),
            cost=self._cost.cell(who),
            tokens=self._tokens_of(model, upstream, "false"),
            estimated_tokens=self._tokens_of(model, upstream, "true"),
        )
        return series

    def _tokens_of(self, model: str, upstream: str, estimated: str) -> _Tokens:
        return _Tokens(*(self._tokens.cell((model, upstream, direction, estimated)) for direction in _DIRECTIONS))

    async def exposition(self, accept: str) -> tuple[bytes, str]:
        """Everything as text, and its content type, in the format that the Accept header asks for.

        Written family by family: with many models it is long, and streams must not wait for the whole.
        """
        encode, content_type = choose_encoder(accept)
        end = encode(_Families(lambda: ()))  # OpenMetrics ends with a line of its own, the older format with nothing
        parts = []
        for family in self.registry.collect():
            parts.append(encode(_Families(lambda family=family: (family,))).removesuffix(end))  # type: ignore[misc]
            await asyncio.sleep(0)
        return b"".join(parts) + end, content_type

    def _families(self) -> Iterator[Metric]:
        yield InfoMetricFamily("tandem_build", "This gateway.", value={"version": self._version})
        for counted in (self._requests, self._attempts, self._tokens, self._cost, self._images):
            yield counted.family()
        for spread in (self._duration, self._first_token, self._inter_token, self._overhead):
            yield spread.family()
        yield from self._gauges()

    def _gauges(self) -> Iterator[Metric]:
        asked = self.readings
        in_flight: Counter[str] = Counter()
        for model, running in asked.in_flight().items():
            in_flight[self._names.model(model)] += running
        yield _gauge("tandem_requests_in_flight", "Requests that run now.", "model", in_flight)
        yield _gauge("tandem_queue_length", "Those that wait for their turn.", "queue", asked.queues())
        yield _states(
            "tandem_breaker_state",
            "1 for the state that a deployment's circuit breaker is in.",
            "deployment",
            BREAKER_STATES,
            asked.breakers(),
        )
        yield _states("tandem_engine_state", "1 for the state that a local engine is in.", "engine", ENGINE_STATES, asked.engines())
        memory = GaugeMetricFamily(
            "tandem_engine_memory_bytes", "What a local engine counts for in its device's budget.", labels=("engine", "device")
        )
        for engine, held in asked.memory().items():
            for device, amount in held.items():
                memory.add_metric((engine, device), amount)
        yield memory
        writers = asked.writers()
        yield _gauge(
            "tandem_backlog_length", "What waits to be written.", "writer", {name: writer.waiting for name, writer in writers.items()}
        )
        dropped = CounterMetricFamily(
            "tandem_backlog_dropped", "What was dropped because its backlog was full or broken.", labels=("writer",)
        )
        for name, writer in writers.items():
            dropped.add_metric((name,), writer.dropped)
        yield dropped
        lag = asked.loop_lag()
        yield GaugeMetricFamily("tandem_event_loop_lag_seconds", "How late the event loop's timer was at its last call.", value=lag.last_s)
        yield GaugeMetricFamily("tandem_event_loop_lag_max_seconds", "The largest lag since the last scrape.", value=lag.max_s)


def metrics_routes(metrics: Metrics, check: Callable[[Headers], object] | None) -> APIRouter:
    """GET /metrics. check: raises GatewayError for headers without an accepted key; None lets everybody read."""
    routes = APIRouter()
    text = {"schema": {"type": "string"}}
    page = {"description": "As `accept` asks for it.", "content": {"text/plain": text, "application/openmetrics-text": text}}
    replies: Responses = {200: page, **(errors(401) if check else {})}

    @routes.get(PATH, response_class=PlainTextResponse, responses=replies, openapi_extra=None if check else dict(NO_KEY_NEEDED))
    async def read_metrics(request: Request) -> Response:
        """Counts and states for Prometheus."""
        if check is not None:
            check(request.scope["headers"])
        text, content_type = await metrics.exposition(request.headers.get("accept", ""))
        return Response(text, headers={"content-type": content_type})

    return routes


class _Families(Collector):
    """Families as a collector: prometheus_client's writers take nothing else."""

    def __init__(self, families: Callable[[], Iterable[Metric]]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families()


@dataclass(slots=True)
class _Cell:
    """One value of a counter."""

    value: float = 0.0


class _Count:
    """A counter with labels. Not prometheus_client's own: its locks and checks cost three times as much, and one thread counts here."""

    def __init__(self, name: str, documentation: str, labels: Labels) -> None:
        self._name, self._documentation, self._labels = name, documentation, labels
        self._cells: dict[Labels, _Cell] = {}

    def cell(self, labels: Labels) -> _Cell:
        found = self._cells.get(labels)
        if found is None:
            found = self._cells[labels] = _Cell()
        return found

    def family(self) -> Metric:
        """Of what has been counted; a cell may have been made in advance."""
        family = CounterMetricFamily(self._name, self._documentation, labels=self._labels)
        for labels, cell in self._cells.items():
            if cell.value:
                family.add_metric(labels, cell.value)
        return family


class _Observed:
    """counts: observations in each bucket, not those below it; the last is for what is above every bound."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds, self.counts, self.total = bounds, [0] * (len(bounds) + 1), 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


class _Spread:
    """A histogram with labels."""

    def __init__(self, name: str, documentation: str, labels: Labels, bounds: tuple[float, ...]) -> None:
        self._name, self._documentation, self._labels, self._bounds = name, documentation, labels, bounds
        self._observed: dict[Labels, _Observed] = {}

    def cell(self, labels: Labels) -> _Observed:
        found = self._observed.get(labels)
        if found is None:
            found = self._observed[labels] = _Observed(self._bounds)
        return found

    def family(self) -> Metric:
        """Of what has been observed; a cell may have been made in advance."""
        family = HistogramMetricFamily(self._name, self._documentation, labels=self._labels)
        for labels, observed in self._observed.items():
            buckets, below = [], 0
            for bound, count in zip((*self._bounds, INFINITE), observed.counts, strict=True):
                below += count
                buckets.append(("+Inf" if bound == INFINITE else repr(bound), below))
            if below:
                family.add_metric(labels, buckets, observed.total)
        return family


@dataclass(frozen=True, slots=True)
class _Tokens:
    """By _DIRECTIONS."""

    prompt: _Cell
    completion: _Cell
    cached: _Cell
    reasoning: _Cell


@dataclass(frozen=True, slots=True)
class _Series:
    """Where requests that end alike are counted: the labels are looked up once for all of them."""

    model: str
    requests: _Cell
    answered: _Cell
    duration: _Observed
    overhead: _Observed
    first_token: _Observed
    inter_token: _Observed
    cost: _Cell
    tokens: _Tokens
    estimated_tokens: _Tokens


def _gauge(name: str, documentation: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(name, documentation, labels=(label,))
    for key, value in values.items():
        family.add_metric((key,), value)
    return family


def _states(name: str, documentation: str, label: str, states: tuple[str, ...], now: Mapping[str, str]) -> Metric:
    family = GaugeMetricFamily(name, documentation, labels=(label, "state"))
    for key, current in now.items():
        for state in states:
            family.add_metric((key, state), float(state == current))
    return family
