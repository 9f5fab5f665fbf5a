"""How much memory an engine takes, and of which devices: what its configuration says, or an estimate. Pure.

An estimate is never more than the budget of its device: it may be wrong, and an engine that is alone may always try.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from config.hardware import Gpu
from local_models.budget import Bytes
from local_models.cpu_plan import SPACE
from local_models.launch import EngineSpec
from local_models.vllm_args import fraction, given_flags, whole

GIB = 2**30
WAIT_S = 300.0
GPU_RESERVE = GIB  # for the desktop, other programs and what each process takes before its first tensor
# Weights in memory beside those on disk, with room for caches and activations; and what a process takes besides: libraries, CUDA.
FACTOR, PROCESS_BYTES = 1.3, GIB // 2
VLLM_UTILIZATION = 0.92  # vLLM's own default for --gpu-memory-utilization. Source: vllm 0.32, config/cache.py


@dataclass(frozen=True)
class MemoryRules:
    """What the configuration says of memory. budgets: for those devices that it names. wait_s: how long a request may wait for it."""

    budgets: Bytes = field(default_factory=dict)
    wait_s: float = WAIT_S


def budget_of(given: Bytes, gpus: Sequence[Gpu]) -> dict[str, int]:
    """What engines may take of each device together: as `given`, and of every other GPU nearly all. gpus: cuda:0 and so on."""
    return {f"cuda:{number}": max(0, gpu.total_bytes - GPU_RESERVE) for number, gpu in enumerate(gpus)} | dict(given)


def need_of(spec: EngineSpec, budget: Bytes, gpus: Sequence[Gpu], weights_bytes: Callable[[], int]) -> dict[str, int]:
    """Bytes that the engine takes, by device. weights_bytes: of its model on disk; asked only for an estimate."""
    devices = devices_of(spec, budget)
    if spec.memory is not None:
        return dict.fromkeys(devices, spec.memory)
    totals = {f"cuda:{number}": gpu.total_bytes for number, gpu in enumerate(gpus)}
    return {device: _estimate(spec, device, len(devices), budget, totals, weights_bytes) for device in devices}


def devices_of(spec: EngineSpec, known: Collection[str]) -> tuple[str, ...]:
    """The devices that it runs on. known: devices with a budget; `auto` is a GPU where there is one among them."""
    kind, _, number = spec.device.partition(":")
    if kind == "auto":
        kind = "cuda" if any(device.startswith("cuda") for device in known) else "mps" if "mps" in known else "cpu"
    if kind != "cuda":
        return (kind,)
    if number or spec.kind != "vllm":
        return (f"cuda:{number or 0}",)
    given = given_flags(spec.args)
    sizes = (whole(given, f"--{way}-parallel-size") or 1 for way in ("tensor", "pipeline", "data"))
    return tuple(f"cuda:{gpu}" for gpu in range(math.prod(sizes)))


def _estimate(spec: EngineSpec, device: str, parts: int, budget: Bytes, totals: Bytes, weights_bytes: Callable[[], int]) -> int:
    limit = budget.get(device)
    cache = _cpu_cache(spec) if device == "cpu" else 0
    total = totals.get(device, limit)
    if spec.kind == "vllm" and total is not None and not cache:
        amount = int(
            total * (fraction(given_flags(spec.args), "--gpu-memory-utilization") or VLLM_UTILIZATION)
        )  # of all there is, on a CPU too unless it is told the size of its cache
    else:
        amount = int(weights_bytes() * FACTOR / parts) + PROCESS_BYTES + cache
    return amount if limit is None else min(amount, limit)


def _cpu_cache(spec: EngineSpec) -> int:
    """Bytes of KV cache that a vLLM on a CPU was told to take; 0 where it was not told."""
    told = spec.env.get(SPACE, "")
    return int(told) * GIB if told.isdecimal() else 0
