"""An OpenTelemetry collector for tests: a real HTTP server in a thread that takes spans as protobuf."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

TRACES = "/v1/traces"


class Collector:
    """status: what it answers; hangs: it answers nothing until it is released."""

    def __init__(self, status: int, hangs: bool) -> None:
        self.status = status
        self.bodies: list[bytes] = []
        self.asked = threading.Event()
        self.released = threading.Event()
        self.resource: dict[str, Any] = {}
        self._changed = threading.Condition()
        self._spans: list[Span] = []
        if not hangs:
            self.released.set()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def spans(self, count: int, within_s: float = 20) -> list[Span]:
        """The spans that have come, once there are that many."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self._spans) >= count, within_s), f"{len(self._spans)} of {count} spans came"
            return list(self._spans)

    def take(self, path: str, body: bytes) -> None:
        assert path == TRACES
        request = ExportTraceServiceRequest.FromString(body)
        with self._changed:
            self.bodies.append(body)
            for group in request.resource_spans:
                self.resource = values(group.resource.attributes)
                self._spans += [span for scope in group.scope_spans for span in scope.spans]
            self._changed.notify_all()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                collector.asked.set()
                collector.released.wait()
                if collector.status == 200:
                    collector.take(self.path, body)
                self.send_response(collector.status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                return

        return Handler


def values(attributes: Any) -> dict[str, Any]:
    """Protobuf's list of keys and values as a mapping."""
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in attributes}


@contextmanager
def otlp_collector(status: int = 200, *, hangs: bool = False) -> Iterator[Collector]:
    collector = Collector(status, hangs)
    collector.server.daemon_threads = True
    serving = threading.Thread(target=collector.server.serve_forever, kwargs={"poll_interval": 0.02})
    serving.start()
    try:
        yield collector
    finally:
        collector.released.set()
        collector.server.shutdown()
        serving.join()
        collector.server.server_close()
