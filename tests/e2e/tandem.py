"""Tandem as a user runs it: `tandem up` or `tandem serve` as a process, its addresses read from what it prints."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from openai import OpenAI

ROOT = Path(__file__).parents[2]
KEY = "sk-e2e"
READY_S = 120


@dataclass
class Tandem:
    """A running Tandem. lines: everything it has printed so far."""

    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)

    @property
    def output(self) -> str:
        return "".join(self.lines)

    def address(self, name: str) -> str:
        found = re.search(rf"^{name} +(http\S+)$", self.output, re.MULTILINE)
        assert found is not None, self.output
        return found[1]

    @property
    def base_url(self) -> str:
        return self.address("API")

    def sdk(self, key: str = KEY) -> OpenAI:
        return OpenAI(base_url=self.base_url, api_key=key, max_retries=0, timeout=100)

    def children(self, name: str = "") -> list[psutil.Process]:
        """Its living descendants whose command line has `name`."""
        tree = psutil.Process(self.process.pid).children(recursive=True)
        return [child for child in tree if name in " ".join(child.cmdline()) and child.status() != psutil.STATUS_ZOMBIE]

    def worker(self, module: str) -> psutil.Process:
        """The engine process that runs `module`, not the guardian above it."""
        (found,) = [child for child in self.children(module) if "nanny" not in " ".join(child.cmdline())]
        return found


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "gateway.cli", *arguments]


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """A user's environment, with the checkout on the path and no settings of Tandem's or keys of anybody's."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TANDEM_", "OPENROUTER_"))}
    return {**kept, "PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1", "TANDEM_API_KEY": KEY, **(more or {})}


@contextmanager
def running(data_dir: Path, *arguments: str, cwd: Path | None = None, more: Mapping[str, str] | None = None) -> Iterator[Tandem]:
    """Yields when it says that it is ready; afterwards ends it and checks that it has ended well and left no process."""
    full = command(*(arguments or ("up",)), "--data-dir", str(data_dir), "--port", "0")
    process = subprocess.Popen(
        full, cwd=cwd or data_dir, env=environment(more), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    tandem = Tandem(process)
    reader = threading.Thread(target=_read, args=(process, tandem.lines), daemon=True)
    reader.start()
    try:
        until(lambda: "Ctrl-C ends" in tandem.output or process.poll() is not None, READY_S)
        assert process.poll() is None, tandem.output
        yield tandem
        if process.poll() is None:  # else the test has ended it, and has looked after what was below it
            descendants = tandem.children()
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0, tandem.output
            gone(descendants)
    finally:
        process.kill()
        process.wait()
        reader.join(5)
        assert process.stdout is not None
        process.stdout.close()


def _read(process: subprocess.Popen[str], lines: list[str]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line)


def gone(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=10)
    alive = [process for process in alive if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    assert not alive, [process.cmdline() for process in alive]


def until(condition: object, limit_s: float = 30) -> None:
    """Wait for `condition()`; the limit is there to end a test that hangs, not to measure."""
    assert callable(condition)
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)
