"""What a user waits for and what Tandem takes: start, first token, picture, memory. With the demo models.

.venv/bin/python -m bench.figures
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from openai import OpenAI

from tests.e2e.tandem import ROOT, running

QUESTION: list[Any] = [{"role": "user", "content": "What can you do?"}]
REPEATS = 7


def main() -> None:
    rows = [("import of the gateway", f"{median(import_gateway):.2f} s CPU", "0.6 s")]
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        with running(Path(folder), "up", "--chat-port", "0") as tandem, tandem.sdk() as client:
            rows.append(("start until both addresses answer", f"{time.monotonic() - started:.1f} s", "12 s"))
            rows.append(("first token, engine cold", f"{first_token(client):.2f} s", ""))
            rows.append(("first token, warm", f"{median(lambda: first_token(client)):.3f} s", "2 s"))
            rows.append(("tokens a second, one stream", f"{tokens_a_second(client):.0f}", ""))
            rows.append(("picture 128x128 in 8 steps, engine cold", f"{picture(client):.2f} s", ""))
            rows.append(("picture 128x128 in 8 steps, warm", f"{median(lambda: picture(client)):.2f} s", "5 s"))
            rows.append(("memory of the gateway", f"{megabytes(psutil.Process(tandem.process.pid)):.0f} MB", "150 MB"))
            for name in ("chat", "image"):
                worker = tandem.worker(f"local_models.workers.{name}_server")
                rows.append((f"memory of the {name} worker", f"{megabytes(worker):.0f} MB", "1200 MB"))
    width = max(len(name) for name, _, _ in rows)
    for name, value, limit in rows:
        print(f"{name:{width}}  {value:>12}  {f'(limit {limit})' if limit else ''}".rstrip())


def median(measure: Callable[[], float]) -> float:
    return statistics.median(measure() for _ in range(REPEATS))


def import_gateway() -> float:
    code = "import time; start = time.process_time(); import gateway.server; print(time.process_time() - start)"
    return float(subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True).stdout)


def first_token(client: OpenAI) -> float:
    started = time.monotonic()
    with client.chat.completions.create(model="demo", messages=QUESTION, stream=True) as stream:
        next(chunk for chunk in stream if chunk.choices and (chunk.choices[0].delta.content or chunk.choices[0].delta.model_extra))
        return time.monotonic() - started


def tokens_a_second(client: OpenAI) -> float:
    options: dict[str, Any] = {"model": "demo", "messages": QUESTION, "stream": True, "stream_options": {"include_usage": True}}
    tokens, seconds = 0, 0.0
    for _ in range(REPEATS):
        started = time.monotonic()
        for chunk in client.chat.completions.create(**options):
            tokens += chunk.usage.completion_tokens if chunk.usage else 0
        seconds += time.monotonic() - started
    return tokens / seconds


def picture(client: OpenAI) -> float:
    started = time.monotonic()
    client.images.generate(model="demo-image", prompt="a red circle on a blue background", size="128x128")
    return time.monotonic() - started


def megabytes(process: psutil.Process) -> float:
    return process.memory_info().rss / 1e6


if __name__ == "__main__":
    main()
