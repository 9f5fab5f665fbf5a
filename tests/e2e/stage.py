"""Where the browser journeys play, and what to say there to get which behaviour.

Two stages: the app in front of a scripted gateway, and the whole of Tandem as a user starts it. In the latter pictures come from
demo-image; answers come through the gateway from a scripted server, because a journey needs answers that last until it has seen
enough: one of some seconds would be over before a busy machine has opened a second tab.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.chat_app.fake_gateway import FakeGateway
from tests.e2e.tandem import running

ROOT = Path(__file__).parents[2]


WHOLE = """\
models:
  - name: storyteller
    kind: chat
    input_modalities: [text, image]
    reasoning: true
    deployments: [{{upstream: stories, model: demo}}]
  - name: demo-image
    kind: image
    demo: true
    image: {{default_size: 128x128, size_multiple: 32, min_side: 64, max_side: 256, num_inference_steps: 8, max_num_inference_steps: 1000}}
    deployments: [{{upstream: pictures, model: "builtin:demo-image"}}]
upstreams:
  stories: {{kind: openai, base_url: "{url}", api_key: "{key}", thinking: chat_template_kwargs}}
  pictures: {{kind: diffusers}}
"""


@dataclass(frozen=True)
class Stage:
    app_url: str
    gateway: FakeGateway  # the scripted one, or the upstream
    slow_picture: str
    short_question: str = "hello"
    long_question: str = "on and on"  # its answer goes on until `let_end`
    question_to_think_about: str = "think"
    picture: str = "a red circle on a blue background"

    def hold(self) -> None:
        """From now on answers to the long question do not end by themselves."""
        self.gateway.enough.clear()

    def let_end(self) -> None:
        self.gateway.enough.set()


@contextmanager
def scripted_stage(folder: Path) -> Iterator[Stage]:
    with FakeGateway(pace_s=0.1) as gateway, running_app(gateway.base_url, gateway.api_key, folder) as app_url:
        yield Stage(app_url, gateway, "a red circle that is never done")


@contextmanager
def tandem_stage(folder: Path) -> Iterator[Stage]:
    config = folder / "tandem.yaml"
    with FakeGateway(pace_s=0.1) as upstream:
        config.write_text(WHOLE.format(url=upstream.base_url, key=upstream.api_key))
        with running(folder, "up", "--chat-port", "0", "--config", str(config)) as tandem:
            yield Stage(tandem.address("chat app"), upstream, "a red circle")


@contextmanager
def running_app(base_url: str, api_key: str, data_dir: Path) -> Iterator[str]:
    """The chat app as a process of its own; its output is in `data_dir/app.log`."""
    port = free_port()
    env = {**os.environ, "TANDEM_BASE_URL": base_url, "TANDEM_API_KEY": api_key, "TANDEM_DATA_DIR": str(data_dir)}
    options = {"port": port, "address": "127.0.0.1", "headless": "true"}
    flags = [part for name, value in options.items() for part in (f"--server.{name}", str(value))]
    command = [sys.executable, "-m", "streamlit", "run", str(ROOT / "chat_app" / "app.py"), *flags]
    with (data_dir / "app.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=subprocess.STDOUT)
        try:
            _wait_for_health(process, f"http://127.0.0.1:{port}/_stcore/health")
            yield f"http://127.0.0.1:{port}"
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(10)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_for_health(process: subprocess.Popen[bytes], url: str, timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        assert process.poll() is None, f"the app ended with code {process.returncode} while starting"
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError:
            assert time.monotonic() < deadline, f"the app did not answer at {url} within {timeout_s:.0f} s"
            time.sleep(0.1)
