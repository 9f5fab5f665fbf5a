"""One question to a child over HTTP: do you serve yet? Own client of a few lines, to keep the gateway process light."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

ANSWER_LIMIT = 64 * 1024
STAGE_LIMIT = 200


@dataclass(frozen=True)
class Health:
    """status: HTTP status code, None without an answer. progress (0 to 1) and stage: what a loading worker says of itself."""

    status: int | None = None
    progress: float | None = None
    stage: str | None = None

    @property
    def is_ready(self) -> bool:
        return self.status is not None and 200 <= self.status < 300


SILENT = Health()


@dataclass(frozen=True)
class Answer:
    """status: None for what is no HTTP."""

    status: int | None
    body: bytes = b""


async def ask_health(host: str, port: int, path: str, *, timeout_s: float) -> Health:
    """What GET `path` says; SILENT when nothing answers within `timeout_s` (vLLM binds its port long before it serves it)."""
    try:
        async with asyncio.timeout(timeout_s):
            return parse_answer(await exchange(host, port, "GET", path))
    except (OSError, TimeoutError):
        return SILENT


async def exchange(host: str, port: int, method: str, path: str, *, headers: Mapping[str, str] | None = None, body: bytes = b"") -> bytes:
    """The whole answer, ANSWER_LIMIT bytes of it at most. Raises OSError."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        # HTTP/1.0: the answer ends where the connection does, and is never chunked.
        lines = [f"{method} {path} HTTP/1.0", f"Host: {host}:{port}"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"] if body else []
        writer.write("\r\n".join([*lines, "", ""]).encode() + body)
        answer = b""
        while len(answer) < ANSWER_LIMIT and (data := await reader.read(ANSWER_LIMIT)):
            answer += data
        return answer
    finally:
        writer.close()


def split_answer(answer: bytes) -> Answer:
    """Status and body out of a whole HTTP answer."""
    head, _, body = answer.partition(b"\r\n\r\n")
    words = head.split(None, 2)
    if len(words) < 2 or not words[0].startswith(b"HTTP/") or not words[1].isdigit():
        return Answer(None)
    return Answer(int(words[1]), body)


def parse_answer(answer: bytes) -> Health:
    """Health out of a whole HTTP answer; SILENT for anything else."""
    found = split_answer(answer)
    if found.status is None:
        return SILENT
    try:
        report = json.loads(found.body)
    except ValueError:  # UnicodeDecodeError is one too
        report = None
    if not isinstance(report, dict):
        return Health(found.status)
    stage = report.get("stage")
    return Health(found.status, _fraction(report.get("progress")), stage[:STAGE_LIMIT] if isinstance(stage, str) else None)


def _fraction(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        return None
    return float(min(1, max(0, value)))
