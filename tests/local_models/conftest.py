"""Real processes for the supervision tests: a factory of supervised fake engines, and a way to ask who is still alive."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from local_models.backoff import RestartPolicy
from local_models.launch import Launch, child_environment
from local_models.process import Address, Process, State

FAKE_ENGINE = Path(__file__).with_name("fake_engine.py")
QUICK = RestartPolicy(first_delay_s=0.01, longest_delay_s=0.05)


def is_running(pid: int) -> bool:
    """False for a zombie: it is dead, only nobody asked for its status yet."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.01)


async def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        await asyncio.sleep(0.005)


async def until_state(process: Process, state: State) -> None:
    await until(lambda: process.status().state == state, f"state {state}, it is {process.status()}")


async def ask(address: Address, path: str) -> bytes:
    """Whole answer of the fake engine; empty when it died of the question."""
    reader, writer = await asyncio.open_connection(address.host, address.port)
    try:
        writer.write(f"GET {path} HTTP/1.0\r\nAuthorization: Bearer {address.key}\r\n\r\n".encode())
        return await reader.read()
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


def launch_fake(port: int, key: str, *flags: str, vllm_model: str | None = None) -> Launch:
    argv = (sys.executable, "-I", "-S", str(FAKE_ENGINE), "--port", str(port), *flags)
    return Launch(argv=argv, env=child_environment(os.environ, {"TANDEM_WORKER_KEY": key}), vllm_model=vllm_model)


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Engines:
    """Makes supervised fake engines in a folder, and knows every process they started."""

    folder: Path
    made: list[Process] = field(default_factory=list)

    @property
    def pids_file(self) -> Path:
        return self.folder / "pids"

    @property
    def log(self) -> Path:
        return self.folder / "logs" / "fake.log"

    def pids(self) -> list[int]:
        return [int(line) for line in self.pids_file.read_text().split()] if self.pids_file.exists() else []

    def running(self) -> list[int]:
        return [pid for pid in self.pids() if is_running(pid)]

    def process(
        self,
        *flags: str,
        restarts: RestartPolicy = QUICK,
        start_timeout_s: float = 20.0,
        stop_grace_s: float = 3.0,
        port: int | None = None,
        watch_interval_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
        vllm_model: str | None = None,
    ) -> Process:
        process = Process(
            "fake",
            lambda port, key: launch_fake(port, key, "--pids", str(self.pids_file), *flags, vllm_model=vllm_model),
            log=self.log,
            port=port,
            start_timeout_s=start_timeout_s,
            stop_grace_s=stop_grace_s,
            restarts=restarts,
            watch_interval_s=watch_interval_s,
            clock=clock,
        )
        self.made.append(process)
        return process


@pytest.fixture
async def engines(tmp_path: Path) -> AsyncIterator[Engines]:
    engines = Engines(tmp_path)
    yield engines
    for process in engines.made:
        await process.close()
    assert engines.running() == []
