"""Which device and number format a checkpoint runs in, and torch's ways of running out of memory."""

from __future__ import annotations

import os
import re

import torch

from local_models.workers.errors import ApiError, EngineBroken, LoadError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
OUT_OF_MEMORY_WORDS = (
    "DefaultCPUAllocator",
    "MPS backend out of memory",
    "could not create a primitive",
    "could not execute a primitive",
)
# On a CPU float32 is the fastest format that every machine has; past this size its doubled memory costs more than it gains.
FLOAT32_CPU_BYTES = 1_500_000_000
# Below this a second thread costs a chat model more in hand-overs than it computes: 115 tokens/s with one, 59 with two.
ONE_THREAD_BYTES = 200_000_000


def choose_device(wanted: str) -> torch.device:
    """Raises LoadError when the device is not there."""
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(wanted)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch raises each of them for a missing device
        raise LoadError(f"device {wanted!r} cannot be used ({_first_line(error)}); set device to cpu or auto") from error
    return device


def choose_dtype(wanted: str, device: torch.device, checkpoint_dtype: torch.dtype, size_bytes: int) -> torch.dtype:
    """size_bytes: the weights as they are on disk."""
    if wanted != "auto":
        return DTYPES[wanted]
    if device.type != "cpu":
        return checkpoint_dtype
    if size_bytes <= FLOAT32_CPU_BYTES:
        return torch.float32
    return torch.bfloat16 if checkpoint_dtype is torch.float16 else checkpoint_dtype  # float16 is emulated on most CPUs


def use_threads(count: int) -> None:
    """Unless the environment has decided already."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(count)


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def answer_to(error: Exception, advice: str) -> ApiError | None:
    """What a client reads about an exception of torch's; None where it says nothing special.

    Raises EngineBroken after a device error, such as CUDA's illegal address: it poisons the process for good.
    """
    if (refused := out_of_memory(error, advice)) is not None:
        empty_cache()
        return refused
    if isinstance(error, torch.AcceleratorError):
        raise EngineBroken(f"the device failed: {_first_line(error)}; the worker has to start again") from error
    return None


def out_of_memory(error: Exception, advice: str) -> ApiError | None:
    """The error as a client reads it if it is one of torch's out-of-memory errors, else None.

    On the CPU torch has no class for it, only a RuntimeError that names its allocator, or what oneDNN says when an
    allocation of its own fails (seen under a limit on the address space).
    """
    is_one = isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in OUT_OF_MEMORY_WORDS)
    )
    if not is_one:
        return None
    asked = re.search(r"[Tt]ried to allocate ([\d.]+ \w+)", str(error))
    amount = f"another {asked[1]}" if asked else "this request"
    return ApiError(f"The model's device has no memory for {amount}; {advice}.", status=503, type="server_error", code="out_of_memory")


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def empty_cache() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
