"""The log file of a child, and the one line of it that tells people why it died."""

from __future__ import annotations

import os
import re
import zlib
from pathlib import Path

LOG_BYTES = 4 * 1024 * 1024
TAIL_BYTES = 16 * 1024
LINE_LIMIT = 500

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
# "(EngineCore pid=12) ERROR 11-24 09:00:00 [core.py:7] " in front of every line of vLLM's
_PREFIX = re.compile(r"^(?:\([^()]*pid=\d+\) ?)?(?:(?:DEBUG|INFO|WARNING|ERROR|CRITICAL) [\d-]+ [\d:.]+ \[[^\]]*\] ?)?")
_NOISE = re.compile(
    r"Traceback \(most recent call last\)|During handling of the above|The above exception was the direct|warnings\.warn|resource_tracker"
    r"|^Tandem's plan: |See root cause above|For further information visit|destroy_process_group|\d+%\|"
)


def log_path(folder: Path, name: str) -> Path:
    """File for the log of this engine: readable, and different for different names."""
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", name)[-80:].strip("-.")
    return folder / f"{readable}-{zlib.crc32(name.encode()):08x}.log"


def open_log(path: Path) -> int:
    """File descriptor of an empty log, readable by its owner only; the previous one is kept as PATH.1. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        path.replace(path.with_name(path.name + ".1"))
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)


def read_tail(path: Path) -> str:
    """The last TAIL_BYTES; empty when there is no such file."""
    try:
        with path.open("rb") as log:
            log.seek(max(0, path.stat().st_size - TAIL_BYTES))
            return log.read().decode(errors="replace")
    except OSError:
        return ""


def last_useful_line(text: str) -> str | None:
    """The last line that says something: no frames of a traceback, no progress bars, no colours. None when there is none."""
    for raw in reversed(re.split(r"[\r\n]+", text)):
        line = _PREFIX.sub("", _ESCAPES.sub("", raw))
        if not line.strip() or line[0].isspace() or _NOISE.search(line) or not re.search(r"\w", line):
            continue
        return line.strip()[:LINE_LIMIT]
    return None
