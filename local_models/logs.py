"""The log file of a child: read from its end, or line by line while it grows, and the one line of it that tells people why it died."""

from __future__ import annotations

import os
import re
import zlib
from pathlib import Path

LOG_BYTES = 4 * 1024 * 1024
TAIL_BYTES = 16 * 1024
FOLLOWED_BYTES = 256 * 1024  # of new lines that are read at once
LINE_LIMIT = 500

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
# "(EngineCore pid=12) ERROR 11-24 09:00:00 [core.py:7] " in front of every line of vLLM's
_PREFIX = re.compile(r"^(?:\([^()]*pid=\d+\) ?)?(?:(?:DEBUG|INFO|WARNING|ERROR|CRITICAL) [\d-]+ [\d:.]+ \[[^\]]*\] ?)?")
_HARMLESS = re.compile(r"^(?:\([^()]*pid=\d+\) ?)?(?:DEBUG|INFO|WARNING) ")
_LINE_END = re.compile(r"[\r\n]+")
_NOISE = re.compile(
    r"Traceback \(most recent call last\)|During handling of the above|The above exception was the direct|warnings\.warn|resource_tracker"
    r"|nanobind: | - leaked |^Tandem's plan: |See root cause above|For further information visit|destroy_process_group|\d+%\|"
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


def read_tail(path: Path, size: int = TAIL_BYTES) -> str:
    """The last `size` bytes; empty when there is no such file."""
    try:
        with path.open("rb") as log:
            log.seek(max(0, path.stat().st_size - size))
            return log.read().decode(errors="replace")
    except OSError:
        return ""


def last_useful_line(text: str) -> str | None:
    """The last line that says something: no frames of a traceback, no progress bars, no colours. None when there is none."""
    for raw in reversed(_LINE_END.split(text)):
        line = _PREFIX.sub("", _ESCAPES.sub("", raw))
        if not line.strip() or line[0].isspace() or _NOISE.search(line) or not re.search(r"\w", line):
            continue
        return line.strip()[:LINE_LIMIT]
    return None


def error_lines(text: str) -> list[str]:
    """Every line that is not marked as harmless, without colours and without vLLM's prefix."""
    lines = (_ESCAPES.sub("", raw) for raw in _LINE_END.split(text))
    return [_PREFIX.sub("", line) for line in lines if not _HARMLESS.match(line)]


class Follower:
    """Reads what a growing log has more each time. The log may be turned over meanwhile; what was in the old one only is missed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = 0  # its inode
        self._at = 0
        self._rest = b""

    def new_lines(self) -> list[str]:
        """The lines that have ended since the last call, FOLLOWED_BYTES of them at most. None where there is no log."""
        try:
            with self._path.open("rb") as log:
                now = os.fstat(log.fileno())
                if now.st_ino != self._file or now.st_size < self._at:
                    self._file, self._at, self._rest = now.st_ino, 0, b""
                log.seek(self._at)
                data = log.read(FOLLOWED_BYTES)
        except OSError:
            return []
        self._at += len(data)
        *lines, self._rest = re.split(rb"[\r\n]+", self._rest + data)
        return [line.decode(errors="replace") for line in lines]
