"""What this machine has for local models: NVIDIA GPUs and vLLM. Found without importing torch, which takes seconds."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_QUERY = ["--query-gpu=index,name,memory.total,memory.free", "--format=csv,noheader,nounits"]
_TIMEOUT_S = 10


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU, as the driver counts them."""

    index: int
    name: str
    total_bytes: int
    free_bytes: int

    def __str__(self) -> str:
        return f"{self.name}, {self.total_bytes / 2**30:.0f} GiB"


def find_gpus(environ: Mapping[str, str]) -> tuple[Gpu, ...]:
    """The NVIDIA GPUs that nvidia-smi on the PATH reports; none without it or without a working driver."""
    program = shutil.which("nvidia-smi", path=environ.get("PATH", os.defpath))
    if program is None:
        return ()
    try:
        answer = subprocess.run([program, *_QUERY], capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return parse_gpus(answer.stdout) if answer.returncode == 0 else ()


def parse_gpus(text: str) -> tuple[Gpu, ...]:
    """GPUs out of nvidia-smi's lines `index, name, total MiB, free MiB`; a line that is none is left out."""
    gpus: list[Gpu] = []
    for line in text.splitlines():
        fields = [part.strip() for part in line.split(",")]
        if len(fields) == 4 and all(number.isdigit() for number in (fields[0], *fields[2:])):
            gpus.append(Gpu(int(fields[0]), fields[1], int(fields[2]) * 2**20, int(fields[3]) * 2**20))
    return tuple(gpus)


def visible_gpus(gpus: Sequence[Gpu], environ: Mapping[str, str]) -> tuple[Gpu, ...]:
    """The GPUs as a program of ours sees them: the first one is its cuda:0. All of them where CUDA_VISIBLE_DEVICES names no numbers."""
    named = [number.strip() for number in environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    if not all(number.isdecimal() for number in named):
        return tuple(gpus)
    by_index = {gpu.index: gpu for gpu in gpus}
    return tuple(by_index[int(number)] for number in named if int(number) in by_index)


def has_vllm(python: Path | None, environ: Mapping[str, str]) -> bool:
    """Whether vLLM is in the environment of this Python, or, with None, on the PATH. Looks at files, runs nothing."""
    if python is None:
        return shutil.which("vllm", path=environ.get("PATH", os.defpath)) is not None
    found = shutil.which(str(python), path=environ.get("PATH", os.defpath))
    if found is None:
        return False
    environment = Path(found).parent.parent
    return any(environment.glob("lib/python3*/site-packages/vllm/__init__.py"))
