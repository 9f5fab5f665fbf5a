"""Checkpoints and running workers, one of each for the whole session: loading a worker takes seconds."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.local_models.workers.running import PROJECT, RunningWorker


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with chat/, text/ and image/. Built by a process of its own, so that the tests' never imports torch."""
    folder = tmp_path_factory.mktemp("checkpoints")
    argv = [sys.executable, "-W", "ignore", "-m", "tests.local_models.workers.checkpoints", str(folder)]
    built = subprocess.run(argv, cwd=PROJECT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return folder


@pytest.fixture(scope="session")
def chat(checkpoints: Path) -> Iterator[RunningWorker]:
    with RunningWorker("chat_server", checkpoints / "chat", "--max-queue", "1") as worker:
        worker.wait_ready()
        yield worker


@pytest.fixture(scope="session")
def image(checkpoints: Path) -> Iterator[RunningWorker]:
    with RunningWorker("image_server", checkpoints / "image") as worker:
        worker.wait_ready()
        yield worker
