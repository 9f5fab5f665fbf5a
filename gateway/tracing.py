"""Traces of finished requests, sent to an OpenTelemetry collector by a thread of their own.

Off unless an OTLP endpoint is set in the environment; until then nothing of OpenTelemetry is imported. A collector that is slow, dead or
wrong costs traces, never a request: the sink puts a record in a bounded backlog and returns.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Protocol
from urllib.parse import urlsplit

from config.schema import Settings
from gateway.backlog import Backlog
from gateway.known_names import KnownNames
from gateway.record import RequestRecord

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"  # of a collector: traces go to its path /v1/traces
TRACES_ENDPOINT = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"  # for traces only: the whole address
LIMIT = 4096  # records that may wait for the collector
BATCH = 32  # making and encoding the spans of one takes about 0.2 ms of processor time, and the event loop may have to wait for a batch
GATHER_S = 1.0
REST = 4.0  # of five seconds of processor time traces take one, however many requests there are; OTEL_TRACES_SAMPLER makes do with fewer
log = logging.getLogger("tandem.tracing")


class Exporter(Protocol):
    """Makes spans of records and sends them. `gateway.spans` has the real one."""

    def export(self, records: list[RequestRecord]) -> bool:
        """Returns whether the collector has taken them. May take long."""

    def know(self, settings: Settings) -> None:
        """From now on the upstreams of `settings`."""

    def close(self) -> None:
        """Give up what is being sent, from another thread."""


def endpoint(environ: Mapping[str, str]) -> str | None:
    """The address that traces are sent to, or None. As OpenTelemetry's specification reads these variables."""
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true" or environ.get("OTEL_TRACES_EXPORTER", "").strip() == "none":
        return None
    if whole := environ.get(TRACES_ENDPOINT, "").strip():
        return whole
    base = environ.get(ENDPOINT, "").strip()
    return f"{base.rstrip('/')}/v1/traces" if base else None


def tracing(settings: Settings, names: KnownNames, environ: Mapping[str, str], version: str) -> Tracing | None:
    """The sink for traces where an endpoint is set. Imports OpenTelemetry only then."""
    address = endpoint(environ)
    if address is None:
        return None
    from gateway.spans import SpanExport

    return Tracing(SpanExport(address, settings, names, environ, version), _place(address))


class Tracing:
    """A sink for records. where: the collector's place, for messages."""

    def __init__(self, exporter: Exporter, where: str, *, limit: int = LIMIT, gather_s: float = GATHER_S) -> None:
        self._exporter, self._where = exporter, where
        self._reaches = True
        self._refused = 0
        self._backlog = Backlog("traces", self._export, limit=limit, batch=BATCH, gather_s=gather_s, rest=REST)

    def __call__(self, record: RequestRecord) -> None:
        self._backlog.put(record)

    @property
    def waiting(self) -> int:
        return self._backlog.waiting

    @property
    def dropped(self) -> int:
        """Records whose spans were never taken."""
        return self._backlog.dropped + self._refused

    def know(self, settings: Settings) -> None:
        self._exporter.know(settings)

    def close(self, within_s: float) -> bool:
        """Send what waits; give up after `within_s` seconds. Returns whether it all went out or was dropped by then."""
        done = self._backlog.close(within_s)
        self._exporter.close()
        return done

    def _export(self, records: list[RequestRecord]) -> None:
        taken = self._exporter.export(records)
        if not taken:
            self._refused += len(records)
        if taken != self._reaches:  # once for each change, not once for each batch
            self._reaches = taken
            if taken:
                log.warning("the trace collector takes traces again")
            else:
                log.warning("the trace collector takes no traces; they are dropped until it does: host=%s", self._where)


def _place(address: str) -> str:
    """Host and port: an address may hold a password."""
    parts = urlsplit(address)
    return f"{parts.hostname}:{parts.port}" if parts.port else str(parts.hostname)
