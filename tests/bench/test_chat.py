"""The whole bench in small: real gateways under short loads. Whether everything is measured, not how much it is."""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from bench.chat.entrants import Place, entrants
from bench.chat.measuring import Bench, measure
from bench.chat.processes import choose_cores, free_port, on_core, started
from bench.chat.programs import Programs
from bench.chat.results import Pace, Plan, Streams
from tests.bench.running import needs_compiler, upstream

pytestmark = [needs_compiler, pytest.mark.slow]

PLAN = Plan(seconds=1, connections=4, hundred=Pace(10, 50), many=Pace(20, 20), dense=Pace(30, 50), ramp_ms=100, grace_s=30)


@pytest.mark.parametrize("name", ["direct", "hot-path", "aiohttp", "tandem"])
def test_everything_is_measured_and_all_frames_arrive_in_order(name: str, built: Programs, tmp_path: Path) -> None:
    entrant = next(entrant for entrant in entrants() if entrant.name == name)
    cores = choose_cores(os.sched_getaffinity(0))
    said: list[str] = []
    with on_core(cores.load):
        measured = measure(entrant, Bench(built, cores, tmp_path, PLAN, said.append, said.append))
    assert measured.problem is None
    assert measured.closed_early == 0
    for requests, connections in ((measured.requests, 4), (measured.alone, 1)):
        assert requests is not None
        assert requests.connections == connections
        assert requests.per_s > 0
        assert requests.failed == 0
        assert requests.answer is not None
        assert 0 < requests.answer.p50_us <= requests.answer.p99_us <= requests.answer.max_us
    for streams, pace in ((measured.hundred, PLAN.hundred), (measured.many, PLAN.many), (measured.dense, PLAN.dense)):
        assert streams is not None
        check_streams(streams, pace)
    assert measured.first is not None
    assert measured.first.first is not None
    assert measured.first.first.count == measured.first.finished > 1
    if name == "direct":
        assert measured.memory_mb is None
        assert measured.dense is not None
        assert measured.dense.cpu_s is None
    else:
        assert measured.memory_mb is not None
        assert measured.memory_mb > 5
        assert measured.requests is not None
        assert measured.requests.cpu_us is not None
        assert measured.requests.cpu_us > 0
        assert measured.dense is not None
        assert measured.dense.cpu_us is not None
        assert measured.dense.cpu_us > 0


def check_streams(run: Streams, pace: Pace) -> None:
    assert run.connections == run.begun == run.finished == pace.streams
    assert run.tokens == pace.streams * pace.tokens_per_s * PLAN.seconds
    assert (run.lost, run.reordered, run.late, run.failed, run.problem) == (0, 0, 0, 0, "")
    assert run.gap is not None
    assert run.gap.count == run.tokens - pace.streams
    assert 0 <= run.gap.p50_us <= run.gap.p99_us <= run.gap.max_us


@pytest.mark.parametrize("name", ["hot-path", "aiohttp"])
def test_a_bare_entrant_loses_nothing_to_a_slow_client(name: str, built: Programs, tmp_path: Path) -> None:
    tokens = 60_000  # some 10 MB, more than all buffers on the way hold
    body = json.dumps({"model": "bench", "stream": True, "messages": [{"role": "user", "content": f"tokens={tokens}"}]}).encode()
    entrant = next(entrant for entrant in entrants() if entrant.name == name)
    assert entrant.launch is not None
    with ExitStack() as stack:
        upstream_port, port = stack.enter_context(upstream(built, tmp_path)), free_port()
        launch = entrant.launch(Place(port, upstream_port, tmp_path, tmp_path))
        core = max(os.sched_getaffinity(0))
        child = stack.enter_context(started(launch.command, core=core, log=tmp_path / "log", environ=launch.environ))
        slow = stack.enter_context(slow_connection(port, child.check_alive))
        slow.sendall(f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)
        reply = http.client.HTTPResponse(slow)
        reply.begin()
        text = b"".join(iter(lambda: reply.read(4096), b""))
    assert [int(sequence) for sequence in re.findall(rb'"content":"(\d+):', text)] == list(range(tokens))
    assert text.endswith(b"data: [DONE]\n\n")


def slow_connection(port: int, check_alive: Callable[[], None]) -> socket.socket:
    """A connection whose receive buffer is as small as the system allows, once somebody listens."""
    while True:
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        connection.settimeout(60)
        try:
            connection.connect(("127.0.0.1", port))
        except ConnectionRefusedError:
            connection.close()
            check_alive()
            time.sleep(0.02)
            continue
        return connection
