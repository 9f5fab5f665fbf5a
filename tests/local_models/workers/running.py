"""A worker process that a test talks to over HTTP."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

PROJECT = Path(__file__).resolve().parents[3]
START_S = 60.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


class RunningWorker:
    def __init__(self, module: str, model: Path | str, *flags: str) -> None:
        self.port = free_port()
        self.key = secrets.token_hex(16)
        argv = [sys.executable, "-m", f"local_models.workers.{module}", "--model", str(model), "--served-model-name", "tiny"]
        self.process = subprocess.Popen(
            [*argv, "--port", str(self.port), *flags],
            cwd=PROJECT,
            env={**os.environ, "TANDEM_WORKER_KEY": self.key, "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        self.base_url = f"http://127.0.0.1:{self.port}"
        self.client = httpx.Client(base_url=self.base_url, headers={"authorization": f"Bearer {self.key}"}, timeout=60)

    def __enter__(self) -> RunningWorker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.client.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        assert self.process.stderr is not None
        self.process.stderr.close()

    def health(self) -> dict[str, Any]:
        body: dict[str, Any] = self.client.get("/health").json()
        return body

    def wait_ready(self) -> list[dict[str, Any]]:
        """What /health said on the way."""
        seen: list[dict[str, Any]] = []
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.left_behind()
            try:
                seen.append(self.health())
            except httpx.TransportError:
                pass
            else:
                if seen[-1]["status"] == "ready":
                    return seen
            time.sleep(0.1)
        raise AssertionError(f"not ready after {START_S} s: {seen[-1:]}")

    def wait_for(self, **figures: int) -> dict[str, Any]:
        """/health, as soon as it shows these figures."""
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            body = self.health()
            if all(body[name] == value for name, value in figures.items()):
                return body
            time.sleep(0.02)
        raise AssertionError(f"never saw {figures}, last was {body}")

    def terminate(self) -> int:
        """Exit code after SIGTERM; fails after the two seconds that a worker has."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(2)

    def left_behind(self) -> str:
        assert self.process.stderr is not None
        return self.process.stderr.read()


def events(response: httpx.Response) -> Iterator[Any]:
    """The data of each server-sent event, as JSON; the end mark as the string it is."""
    for line in response.iter_lines():
        if line.startswith("data: "):
            data = line.removeprefix("data: ")
            yield data if data == "[DONE]" else json.loads(data)
