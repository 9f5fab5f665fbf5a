"""What this machine has for local models: NVIDIA GPUs, memory and vLLM. Found without importing torch, which takes seconds."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from config.environments import EngineDevice

_QUERY = ["--query-gpu=index,name,memory.total,memory.free,uuid,compute_cap", "--format=csv,noheader,nounits"]
_TIMEOUT_S = 10


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU, as the driver counts them. capability: CUDA's compute capability, None: not told."""

    index: int
    name: str
    total_bytes: int
    free_bytes: int
    uuid: str = ""
    capability: tuple[int, int] | None = None

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


def engine_device(environ: Mapping[str, str], kfd: Path = Path("/dev/kfd")) -> EngineDevice:
    """Which build of an engine this machine can use. kfd: the device file of AMD's driver."""
    if find_gpus(environ):
        return "cuda"
    return "rocm" if kfd.exists() else "cpu"


def parse_gpus(text: str) -> tuple[Gpu, ...]:
    """GPUs out of nvidia-smi's lines `index, name, total MiB, free MiB, uuid, capability`; a line that is none is left out."""
    gpus: list[Gpu] = []
    for line in text.splitlines():
        index, name, total, free, *more = [part.strip() for part in line.split(",")] + [""] * 3
        if all(number.isdigit() for number in (index, total, free)):
            gpus.append(Gpu(int(index), name, int(total) * 2**20, int(free) * 2**20, more[0], _capability(more[1])))
    return tuple(gpus)


def visible_gpus(gpus: tuple[Gpu, ...], environ: Mapping[str, str]) -> tuple[Gpu, ...]:
    """Those that a CUDA program may use, in its order: all, or what CUDA_VISIBLE_DEVICES lists up to the first one that is not there."""
    listed = environ.get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        return gpus
    visible: list[Gpu] = []
    for choice in (part.strip() for part in listed.split(",")):
        found = next((gpu for gpu in gpus if choice and (choice == str(gpu.index) or gpu.uuid.startswith(choice))), None)
        if found is None:
            break
        visible.append(found)
    return tuple(visible)


def available_memory(root: Path = Path("/")) -> int | None:
    """Bytes that programs may still take, in this container if there is a limit; None where Linux does not tell."""
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    free = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)
    limit, used = (_number(root / "sys/fs/cgroup" / name) for name in ("memory.max", "memory.current"))
    return free if free is None or limit is None or used is None else min(free, max(0, limit - used))


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # no such file, or "max"
        return None


def _capability(text: str) -> tuple[int, int] | None:
    major, _, minor = text.partition(".")
    return (int(major), int(minor)) if major.isdigit() and minor.isdigit() else None


def has_vllm(python: Path | None, environ: Mapping[str, str]) -> bool:
    """Whether vLLM is in the environment of this Python, or, with None, on the PATH. Looks at files, runs nothing."""
    if python is None:
        return shutil.which("vllm", path=environ.get("PATH", os.defpath)) is not None
    found = shutil.which(str(python), path=environ.get("PATH", os.defpath))
    if found is None:
        return False
    environment = Path(found).parent.parent
    return any(environment.glob("lib/python3*/site-packages/vllm/__init__.py"))
