"""The processes of a measurement: each on its core, observed from outside, gone when its block is left.

Whatever is started here stands in a session of its own, ended as a whole; and it dies with the bench even if that is killed with -9.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from bench.chat.errors import EntrantFailed

_PINNED = Path(__file__).with_name("pinned.py")
_END_S = 5  # between SIGTERM and SIGKILL


@dataclass(frozen=True)
class Cores:
    """Where things run. gateway: what is measured, alone. load: the load, the upstream and the bench itself."""

    gateway: int
    load: int

    @property
    def shared(self) -> bool:
        """There is one core for everything: the figures say nothing, but everything works."""
        return self.gateway == self.load


def choose_cores(available: Collection[int]) -> Cores:
    """The last core for the gateway, the first for the load: interrupts like low numbers, and neighbours may share a physical core."""
    return Cores(max(available), min(available))


class Child:
    """A started command and its descendants. log: where its output goes."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process, self.log = process, log

    def cpu_s(self) -> float:
        """Seconds of CPU taken so far, by user and kernel, in steps of 10 ms."""
        total = 0.0
        for process in self._tree():
            with suppress(psutil.Error):
                times = process.cpu_times()
                total += times.user + times.system + times.children_user + times.children_system
        return total

    def memory_mb(self) -> float:
        """Resident memory now, in 10**6 bytes."""
        total = 0
        for process in self._tree():
            with suppress(psutil.Error):
                total += process.memory_info().rss
        return total / 1e6

    def check_alive(self) -> None:
        """Raises EntrantFailed, with the last line of its output, where it has ended."""
        code = self.process.poll()
        if code is not None:
            raise EntrantFailed(f"it ended with status {code}: {self.last_line()}")

    def last_line(self) -> str:
        lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1][:300] if lines else "it printed nothing"

    def settle(self, limit_s: float = 30) -> None:
        """Return when it has next to nothing to do, so that one measurement does not pay for the one before; or after limit_s."""
        deadline = time.monotonic() + limit_s
        before = self.cpu_s()
        while time.monotonic() < deadline:
            time.sleep(0.3)
            now = self.cpu_s()
            if now - before <= 0.03:
                return
            before = now

    def _tree(self) -> list[psutil.Process]:
        try:
            top = psutil.Process(self.process.pid)
            return [top, *top.children(recursive=True)]
        except psutil.Error:
            return []


@contextmanager
def started(command: Sequence[str], *, core: int, log: Path, environ: Mapping[str, str]) -> Iterator[Child]:
    """Run a command on this core while the block lasts."""
    pinned = [sys.executable, "-I", str(_PINNED), str(os.getpid()), str(core), *command]
    with log.open("wb") as output:
        process = subprocess.Popen(
            pinned, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=dict(environ), start_new_session=True
        )
    try:
        yield Child(process, log)
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the whole session. A second Ctrl-C only makes it quicker."""
    with suppress(ProcessLookupError, KeyboardInterrupt, subprocess.TimeoutExpired):
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(_END_S)
    with suppress(ProcessLookupError):  # what the leader left behind; the group lives as long as anybody is in it
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextmanager
def on_core(core: int) -> Iterator[None]:
    """This process, and what it starts without saying where, on one core while the block lasts."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
