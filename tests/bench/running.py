"""What the bench's tests share: its programs, compiled once, and a way to run the load."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench.chat.processes import Child, started
from bench.chat.programs import Programs

LIMIT_S = 60

needs_compiler = pytest.mark.skipif(
    sys.platform != "linux" or not any(shutil.which(name) for name in ("cc", "gcc", "clang")), reason="needs Linux and a C compiler"
)


def run_load(built: Programs, mode: str, port: int, **options: object) -> str:
    """The line that load.c prints. options: its own, with _ for -; True is a flag."""
    words: list[str] = []
    for name, value in options.items():
        words += [f"--{name.replace('_', '-')}"] if value is True else [f"--{name.replace('_', '-')}", str(value)]
    done = subprocess.run([str(built.load), mode, "--port", str(port), *words], capture_output=True, text=True, timeout=LIMIT_S, check=True)
    return done.stdout


@contextmanager
def upstream(built: Programs, folder: Path) -> Iterator[int]:
    """upstream.c, running; its port."""
    core = min(os.sched_getaffinity(0))
    with started([str(built.upstream)], core=core, log=folder / "upstream.log", environ={}) as child:
        yield port_of(child)


def port_of(child: Child) -> int:
    deadline = time.monotonic() + LIMIT_S
    while not child.log.read_text().endswith("\n"):
        child.check_alive()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return int(child.log.read_text().split()[1])
