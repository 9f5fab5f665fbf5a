"""The two C programs of the bench, upstream.c and load.c: compiled at first use, kept by the hash of their source."""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from bench.chat.errors import CannotBench

_SOURCES = Path(__file__).parent
_FLAGS = ("-O2", "-std=gnu11")


@dataclass(frozen=True)
class Programs:
    """Paths of the executables."""

    upstream: Path
    load: Path


def build(cache: Path) -> Programs:
    """Both programs, from the cache or compiled into it. Raises CannotBench."""
    if sys.platform != "linux":
        raise CannotBench(f"the bench needs Linux (epoll, cores to pin to), this is {sys.platform}")
    return Programs(_build("upstream", cache / "programs"), _build("load", cache / "programs"))


def _build(name: str, folder: Path) -> Path:
    source = _SOURCES / f"{name}.c"
    target = folder / f"{name}-{hashlib.sha256(source.read_bytes()).hexdigest()[:12]}"
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    draft = target.with_suffix(f".{os.getpid()}")
    command = [*_compiler(), *_FLAGS, "-o", str(draft), str(source)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        errors = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines() or ["no output"]
        raise CannotBench(f"cannot compile {source.name} with {command[0]}: {errors[0]}")
    draft.replace(target)
    return target


def _compiler() -> list[str]:
    named = shlex.split(os.environ.get("CC", ""))
    for command in [named] if named else [["cc"], ["gcc"], ["clang"]]:
        if shutil.which(command[0]):
            return command
    raise CannotBench(
        f"no C compiler ({named[0] if named else 'cc'}): the bench compiles its upstream and its load;"
        " install one (Debian, Ubuntu: apt-get install gcc libc6-dev) or name it with CC="
    )
