"""Everything that watches the gateway, composed: metrics, access log, application log, traces, event-loop lag.

Nothing here acts on a request: the sinks get its record when it has ended, and none of them waits for anything.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable, Mapping
from typing import TypeAlias

from fastapi import APIRouter

from config.schema import Settings
from gateway.access_log import access_line
from gateway.app_log import OWN, Layout, LogHandler
from gateway.backlog import Backlog
from gateway.known_names import KnownNames
from gateway.loop_lag import LoopLag
from gateway.metrics import Headers, Metrics, Readings, Writer, metrics_routes
from gateway.output import STANDARD_ERROR, Write, descriptor
from gateway.record import RequestRecord, Sink
from gateway.tracing import Tracing, tracing

LOG_LIMIT = 10_000  # lines that may wait for a slow disk or pipe
LOG_BATCH = 256
LOG_GATHER_S = 0.05  # one wake-up of the writer for all lines of this time
CLOSE_S = 2.0  # for what waits, each: log and traces

_Entry: TypeAlias = RequestRecord | str


def observers(settings: Settings, environ: Mapping[str, str], *, version: str, write: Write | None = None) -> Observers:
    """What this configuration and environment ask for, not started.

    write: takes the log's lines, in a thread of its own, each with its end; None: standard error. Where `gateway.output.through` knows
    a terminal to print on, give that: then `log.format: auto` means text.
    """
    if settings.log.format == "auto":
        layout: Layout = "text" if write is not None or os.isatty(STANDARD_ERROR) else "json"
    else:
        layout = settings.log.format
    names = KnownNames(settings)
    return Observers(settings, names, Metrics(names, version), tracing(settings, names, environ, version), layout, write or descriptor())


class Observers:
    """See the module. sinks: for finished requests. metrics: for what else wants to be counted or read."""

    def __init__(
        self, settings: Settings, names: KnownNames, metrics: Metrics, traces: Tracing | None, layout: Layout, write: Write
    ) -> None:
        self.metrics = metrics
        self._settings, self._names, self._traces, self._layout, self._write = settings, names, traces, layout, write
        self._lag = LoopLag()
        self._lines: Backlog[_Entry] = Backlog("log", self._write_lines, limit=LOG_LIMIT, batch=LOG_BATCH, gather_s=LOG_GATHER_S)
        self._handler = LogHandler(self._lines.put, layout)
        self._level_before: int | None = None
        self.sinks: list[Sink] = [metrics, self._access]
        if traces is not None:
            self.sinks.append(traces)

    def start(self, readings: Readings | None = None) -> None:
        """Begin to measure the running loop, and to write what the process's loggers say. readings: of the parts that run now."""
        given = readings or Readings()
        others = given.writers
        self.metrics.readings = dataclasses.replace(given, loop_lag=self._lag.take, writers=lambda: {**others(), **self._writers()})
        self._lag.start()
        logging.getLogger().addHandler(self._handler)
        own = logging.getLogger(OWN)
        self._level_before = own.level
        own.setLevel(logging.INFO)

    def know(self, settings: Settings) -> None:
        """From now on this configuration's names. How the log looks and where traces go stays as it was at the start."""
        self._settings = settings
        self._names.know(settings)
        self.metrics.forget()
        if self._traces is not None:
            self._traces.know(settings)

    def routes(self, check: Callable[[Headers], object]) -> APIRouter:
        """GET /metrics. check: raises GatewayError for headers without an accepted key."""
        return metrics_routes(self.metrics, None if self._settings.server.metrics_without_key else check)

    def close(self) -> None:
        """Write and send what waits, for at most twice CLOSE_S seconds; blocks that long. May be called again, and without a start."""
        self._lag.close()
        if self._traces is not None:
            self._traces.close(CLOSE_S)
        if self._level_before is not None:
            logging.getLogger().removeHandler(self._handler)
            logging.getLogger(OWN).setLevel(self._level_before)
            self._level_before = None
        self._lines.close(CLOSE_S)

    def _access(self, record: RequestRecord) -> None:
        if self._settings.log.access:
            self._lines.put(record)

    def _write_lines(self, entries: list[_Entry]) -> None:
        """In the log's own thread: making a line of a record is not the event loop's work."""
        lines = [entry if isinstance(entry, str) else access_line(entry, self._names, self._layout) for entry in entries]
        self._write("".join(f"{line}\n" for line in lines))

    def _writers(self) -> dict[str, Writer]:
        writers = {"log": Writer(self._lines.waiting, self._lines.dropped)}
        if self._traces is not None:
            writers["traces"] = Writer(self._traces.waiting, self._traces.dropped)
        return writers
