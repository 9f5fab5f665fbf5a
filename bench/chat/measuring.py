"""One entrant under every load: started, warmed up, measured, ended.

The order of the runs is the order of `measure`; each waits until the one before has been digested. Whatever fails ends the measurement of
this entrant, and what was measured until then is kept.
"""

from __future__ import annotations

import dataclasses
import http.client
import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.chat.entrants import KEY, Entrant, Place
from bench.chat.errors import EntrantFailed
from bench.chat.processes import Child, Cores, free_port, started
from bench.chat.programs import Programs
from bench.chat.results import Measured, Pace, Plan, Requests, Streams, read_requests, read_streams

_START_S = 120  # LiteLLM's proxy takes half a minute on a slow core
_FIRST_TOKENS, _FIRST_PACE_US = 3, 1000
_WARM_UP_S = 1.0


@dataclasses.dataclass(frozen=True)
class Bench:
    """What all measurements share. say: a line of progress; busy: what is under way."""

    programs: Programs
    cores: Cores
    cache: Path
    plan: Plan
    say: Callable[[str], None]
    busy: Callable[[str], None]


def measure(entrant: Entrant, bench: Bench) -> Measured:
    """Everything about this entrant; its problem where it cannot be measured."""
    measured = Measured(name=entrant.name, title=entrant.title, version=entrant.version)
    try:
        with tempfile.TemporaryDirectory(prefix="tandem-bench-") as folder, _running(entrant, bench, Path(folder)) as running:
            for name, run in running.runs().items():
                bench.busy(f"{entrant.title}: {name}")
                measured = run(measured)
    except EntrantFailed as error:
        return dataclasses.replace(measured, problem=str(error))
    return dataclasses.replace(measured, problem=_problem(measured))


def _problem(measured: Measured) -> str | None:
    """The first thing that a load saw go wrong."""
    runs = (measured.requests, measured.alone, measured.first, measured.hundred, measured.many, measured.dense)
    return next((run.problem for run in runs if run is not None and run.problem), None)


@contextmanager
def _running(entrant: Entrant, bench: Bench, folder: Path) -> Iterator[_Running]:
    upstream_log = folder / "upstream.log"
    with started([str(bench.programs.upstream)], core=bench.cores.load, log=upstream_log, environ={}) as upstream:
        upstream_port = _port_of(upstream)
        if entrant.launch is None:
            yield _Running(bench, upstream_port, upstream_port, None)
            return
        port = free_port()
        data = folder / "data"
        data.mkdir()
        launch = entrant.launch(Place(port, upstream_port, data, bench.cache, bench.say))
        bench.busy(f"{entrant.title}: starting")
        with started(launch.command, core=bench.cores.gateway, log=folder / "gateway.log", environ=launch.environ) as gateway:
            _wait_until_it_answers(gateway, port)
            yield _Running(bench, port, upstream_port, gateway)


@dataclasses.dataclass(frozen=True)
class _Running:
    """An entrant that answers at `port`. gateway: its process, where there is one."""

    bench: Bench
    port: int
    upstream_port: int
    gateway: Child | None

    def runs(self) -> dict[str, Callable[[Measured], Measured]]:
        """By what to say meanwhile: what adds its figures to those before."""
        plan, put = self.bench.plan, dataclasses.replace
        return {
            "memory": lambda so_far: put(so_far, idle_mb=self._memory_mb()),
            f"requests on {plan.connections} connections": lambda so_far: put(so_far, requests=self.requests(plan.connections)),
            "requests, one at a time": lambda so_far: put(so_far, alone=self.requests(1)),
            "first tokens, one stream at a time": lambda so_far: put(so_far, first=self.first_tokens()),
            str(plan.hundred): lambda so_far: put(so_far, hundred=self.streams(plan.hundred)),
            str(plan.many): lambda so_far: put(so_far, many=self.streams(plan.many)),
            str(plan.dense): lambda so_far: put(so_far, dense=self.streams(plan.dense)),
            "memory and upstream": lambda so_far: put(so_far, memory_mb=self._memory_mb(), closed_early=_closed_early(self.upstream_port)),
        }

    def requests(self, connections: int) -> Requests:
        seconds = self.bench.plan.seconds
        warm_up = min(_WARM_UP_S, seconds / 2)
        options = {"connections": connections, "seconds": seconds, "warm-s": warm_up}
        line, cpu_s = self._load("requests", options, seconds + warm_up)
        run = dataclasses.replace(read_requests(line), cpu_s=cpu_s)
        if run.finished == 0:
            raise EntrantFailed(f"it answered none of {run.begun} requests: {run.problem or 'none in time'}")
        return run

    def first_tokens(self) -> Streams:
        seconds = self.bench.plan.seconds
        options = {"connections": 1, "seconds": seconds, "tokens": _FIRST_TOKENS, "pace-us": _FIRST_PACE_US, "ramp-ms": 0}
        line, cpu_s = self._load("streams", options, seconds, "--repeat")
        return dataclasses.replace(read_streams(line), cpu_s=cpu_s)

    def streams(self, pace: Pace) -> Streams:
        plan = self.bench.plan
        tokens = max(2, round(plan.seconds * pace.tokens_per_s))
        options = {
            "connections": pace.streams,
            "pace-us": round(1e6 / pace.tokens_per_s),
            "tokens": tokens,
            "ramp-ms": plan.ramp_ms,
            "grace-s": plan.grace_s,
        }
        line, cpu_s = self._load("streams", options, plan.seconds + plan.ramp_ms / 1000 + plan.grace_s)
        return dataclasses.replace(read_streams(line), cpu_s=cpu_s)

    def _load(self, mode: str, options: dict[str, float], expected_s: float, *flags: str) -> tuple[str, float | None]:
        """What load.c printed, and the CPU seconds that the gateway took. It runs on this process's own core."""
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        command = [str(self.bench.programs.load), mode, "--port", str(self.port), "--key", KEY, *words, *flags]
        before = None
        if self.gateway is not None:
            self.gateway.settle()
            before = self.gateway.cpu_s()
        try:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=expected_s + 60, check=False)
        except subprocess.TimeoutExpired as error:
            raise EntrantFailed(f"the load did not end within {error.timeout:.0f} s") from error
        if self.gateway is not None:
            self.gateway.check_alive()
        if done.returncode != 0:
            raise EntrantFailed(done.stderr.strip() or f"the load ended with status {done.returncode}")
        return done.stdout, None if self.gateway is None or before is None else self.gateway.cpu_s() - before

    def _memory_mb(self) -> float | None:
        if self.gateway is None:
            return None
        self.gateway.settle()
        return self.gateway.memory_mb()


def _port_of(upstream: Child) -> int:
    """What it says it listens on."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        upstream.check_alive()
        text = upstream.log.read_text()
        if text.startswith("port ") and text.endswith("\n"):
            return int(text.split()[1])
        time.sleep(0.02)
    raise EntrantFailed("the bench's upstream did not start")


def _wait_until_it_answers(gateway: Child, port: int) -> None:
    """Return once a real request gets a real answer. Raises EntrantFailed."""
    deadline = time.monotonic() + _START_S
    problem = "nothing listens"
    while time.monotonic() < deadline:
        gateway.check_alive()
        try:
            status, text = _ask(port)
        except (OSError, http.client.HTTPException) as error:
            problem = str(error) or type(error).__name__
        else:
            if status == 200:
                return
            problem = f"status {status}: {text[:200]}"
        time.sleep(0.2)
    raise EntrantFailed(f"it did not answer within {_START_S} s ({problem}); it printed last: {gateway.last_line()}")


def _ask(port: int) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        body = json.dumps({"model": "bench", "messages": [{"role": "user", "content": "Are you there?"}]})
        headers = {"content-type": "application/json", "authorization": f"Bearer {KEY}"}
        connection.request("POST", "/v1/chat/completions", body, headers)
        reply = connection.getresponse()
        return reply.status, reply.read().decode(errors="replace")
    finally:
        connection.close()


def _closed_early(upstream_port: int) -> int:
    """How many answers the upstream could not finish because who had asked was gone."""
    connection = http.client.HTTPConnection("127.0.0.1", upstream_port, timeout=10)
    try:
        connection.request("GET", "/stats")
        return int(json.loads(connection.getresponse().read())["closed_early"])
    finally:
        connection.close()
