"""What a soak runs against: upstream.c and a real `tandem serve` with everything switched on, each a process, and what can be read of them.

Keys have limits, usage goes to SQLite, the access log to a file, /metrics is read with a key. No limit is reached unless a test means it.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import yaml
from prometheus_client.parser import text_string_to_metric_families

from bench.chat.processes import Child
from bench.chat.programs import Programs
from config.schema import Limits
from gateway.api_key import NewKey
from gateway.key_file import KEYS_FILE, KeyFile
from tests.bench.running import port_of
from tests.e2e.tandem import environment
from tests.soak.client import Door

READY_S = 120
PLENTY = Limits(
    requests_per_minute=10**9,
    tokens_per_minute=10**12,
    concurrent_requests=10**5,
    budget_usd_per_day=10**6,
    budget_usd_per_month=10**6,
)
FEW = 2  # requests at the same time with the key that has few


async def until(condition: Callable[[], object], limit_s: float = 60) -> None:
    """Wait for `condition()`; the limit is there to end a test that hangs, not to measure."""
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        await asyncio.sleep(0.02)


@dataclass(frozen=True)
class Census:
    """What lives in the gateway's process. upstream_sockets, client_sockets: its TCP connections, by state."""

    tasks: int
    threads: int
    files: int
    objects: dict[str, int]
    upstream_sockets: dict[str, int]
    client_sockets: dict[str, int]


@dataclass
class Stage:
    """upstream: asked directly. door: the gateway, with a key that has plenty. few: with one that may run FEW requests at a time."""

    gateway: subprocess.Popen[bytes]
    upstream_process: subprocess.Popen[bytes]
    upstream: Door
    door: Door
    few: Door
    folder: Path

    def rss(self) -> int:
        """Resident memory of the gateway now, in bytes."""
        return int(psutil.Process(self.gateway.pid).memory_info().rss)

    async def census(self) -> Census:
        """Count what is there once no client is connected any more, and the same twice: a task may just be ending."""
        last = await self._count()
        deadline = time.monotonic() + 60
        while (now := await self._count()).tasks != last.tasks or now.client_sockets:
            assert time.monotonic() < deadline, now
            last = now
        return now

    async def _count(self) -> Census:
        target = self.folder / "census.json"
        target.unlink(missing_ok=True)
        await asyncio.sleep(0.1)
        self.gateway.send_signal(signal.SIGUSR1)
        await until(target.exists)
        inside = json.loads(target.read_text())
        process = psutil.Process(self.gateway.pid)
        upstream: dict[str, int] = {}
        clients: dict[str, int] = {}
        for connection in process.net_connections("tcp"):
            if connection.raddr:
                side = upstream if connection.raddr.port == self.upstream.port else clients
                side[connection.status] = side.get(connection.status, 0) + 1
        return Census(inside["tasks"], process.num_threads(), process.num_fds(), inside["objects"], upstream, clients)

    async def reading(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that have these labels."""
        text = (await self.door.get("/metrics")).decode()
        samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples if sample.name == name]
        return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())

    async def quiet(self) -> None:
        """Return when nothing runs any more, here or at the upstream, and every row is written."""
        deadline = time.monotonic() + 60
        while await self._busy():
            assert time.monotonic() < deadline, await self._busy()
            await asyncio.sleep(0.1)

    async def _busy(self) -> dict[str, float]:
        """What is not at rest."""
        running = 0 if self.upstream_process.poll() is not None else (await self.upstream.json("/stats"))["running"]
        readings = {
            "in flight": await self.reading("tandem_requests_in_flight"),
            "rows that wait": await self.reading("tandem_backlog_length", writer="usage"),
            "lines that wait": await self.reading("tandem_backlog_length", writer="log"),
            "running at the upstream": running,
        }
        return {what: value for what, value in readings.items() if value}

    def rows(self) -> dict[str, int]:
        """Written requests by outcome."""
        with closing(sqlite3.connect(f"file:{self.folder / 'usage.sqlite'}?mode=ro", uri=True)) as store:
            return dict(store.execute("select outcome, count(*) from tandem_requests group by outcome"))

    def lines(self) -> int:
        """Access lines written."""
        with (self.folder / "log").open("rb") as log:
            return sum(b'"tandem.access"' in line for line in log)


@contextmanager
def staged(built: Programs, folder: Path) -> Iterator[Stage]:
    """Both processes, ended afterwards; the gateway must then end well, unless the test has ended it."""
    with _upstream(built, folder) as (upstream_process, upstream_port), _gateway(folder, upstream_port) as (gateway, port, keys):
        plenty, few = keys
        yield Stage(gateway, upstream_process, Door(upstream_port, "none"), Door(port, plenty), Door(port, few), folder)
        if gateway.poll() is None:
            gateway.send_signal(signal.SIGTERM)
            assert gateway.wait(30) == 0, (folder / "log").read_text()[-2000:]


@contextmanager
def _upstream(built: Programs, folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    log = folder / "upstream.log"
    with log.open("wb") as output:
        process = subprocess.Popen([str(built.upstream)], stdout=output)
    try:
        yield process, port_of(Child(process, log))
    finally:
        process.kill()
        process.wait()


@contextmanager
def _gateway(folder: Path, upstream_port: int) -> Iterator[tuple[subprocess.Popen[bytes], int, tuple[str, str]]]:
    config = folder / "tandem.yaml"
    config.write_text(yaml.safe_dump(configuration(upstream_port)))
    file = KeyFile(folder / KEYS_FILE)
    keys = [file.create(NewKey(name=name, limits=limits), time.time())[1] for name, limits in limits_of_keys().items()]
    log, said = folder / "log", folder / "said"
    command = [sys.executable, "-m", "tests.soak.watched", str(folder / "census.json"), "serve", "--config", str(config)]
    options = ["--profile", "demo", "--data-dir", str(folder), "--port", "0"]
    with log.open("wb") as errors, said.open("wb") as output:
        process = subprocess.Popen([*command, *options], cwd=folder, env=environment(), stdout=output, stderr=errors)
    try:
        deadline = time.monotonic() + READY_S
        while "Ctrl-C ends" not in said.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, said.read_text()
            time.sleep(0.05)
        address = next(line for line in said.read_text().splitlines() if line.startswith("API "))
        yield process, int(address.rpartition(":")[2].partition("/")[0]), (keys[0], keys[1])
    finally:
        process.kill()
        process.wait()


def limits_of_keys() -> dict[str, Limits]:
    return {"plenty": PLENTY, "few": PLENTY.model_copy(update={"concurrent_requests": FEW})}


def configuration(upstream_port: int) -> dict[str, object]:
    """`bench` answers; `nobody` cannot be reached. Neither is left alone for its failures: each one is to get there."""
    price = {"input_usd_per_million": 1, "output_usd_per_million": 2, "as_of": "2026-01-01"}
    routing = {"max_wait_s": 0, "breaker_failures": 10**9}
    models = [
        {
            "name": name,
            "kind": "chat",
            "deployments": [{"upstream": upstream, "model": "upstream-model", "price": price}],
            "limits": PLENTY.model_dump(),
            "routing": routing,
        }
        for name, upstream in (("bench", "bench"), ("nobody", "nobody"))
    ]
    upstreams = {
        "bench": {"kind": "openai", "base_url": f"http://127.0.0.1:{upstream_port}/v1", "api_key": "none"},
        "nobody": {"kind": "openai", "base_url": "http://127.0.0.1:9/v1", "api_key": "none"},
    }
    return {"models": models, "upstreams": upstreams, "log": {"format": "json", "access": True}}


def soft_limit_of_files() -> int:
    """Raise this process's limit of open files to what it may have; some hundred clients need more than the usual 1024."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard if hard >= 0 else os.sysconf("SC_OPEN_MAX")
