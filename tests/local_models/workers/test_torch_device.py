"""Devices, number formats and memory errors, decided from plain values."""

from __future__ import annotations

import pytest
import torch

from local_models.workers.errors import EngineBroken, LoadError
from local_models.workers.torch_device import FLOAT32_CPU_BYTES, answer_to, choose_device, choose_dtype

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("name", ["banana", "cuda:99"])
def test_a_device_that_is_not_there_is_named(name: str) -> None:
    with pytest.raises(LoadError, match=f"device '{name}' cannot be used"):
        choose_device(name)


@pytest.mark.parametrize(
    ("wanted", "device", "checkpoint", "size", "chosen"),
    [
        ("auto", CPU, torch.bfloat16, 1000, torch.float32),
        ("auto", CPU, torch.bfloat16, FLOAT32_CPU_BYTES + 1, torch.bfloat16),
        ("auto", CPU, torch.float16, FLOAT32_CPU_BYTES + 1, torch.bfloat16),
        ("auto", CPU, torch.float32, FLOAT32_CPU_BYTES + 1, torch.float32),
        ("auto", CUDA, torch.float16, 1000, torch.float16),
        ("float32", CUDA, torch.float16, 1000, torch.float32),
    ],
)
def test_number_formats(wanted: str, device: torch.device, checkpoint: torch.dtype, size: int, chosen: torch.dtype) -> None:
    assert choose_dtype(wanted, device, checkpoint, size) is chosen


@pytest.mark.parametrize(
    ("error", "amount"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has…"), "another 2.50 GiB"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 37748736 bytes."), "another 37748736 bytes"),
        (RuntimeError("could not create a primitive"), "this request"),
        (MemoryError(), "this request"),
    ],
)
def test_out_of_memory_is_an_answer(error: Exception, amount: str) -> None:
    answer = answer_to(error, "ask for less")
    assert answer is not None
    assert answer.message == f"The model's device has no memory for {amount}; ask for less."
    assert answer.status == 503


def test_a_device_error_breaks_the_engine_and_others_do_not() -> None:
    with pytest.raises(EngineBroken, match="an illegal memory access"):
        answer_to(torch.AcceleratorError("CUDA error: an illegal memory access\nmore"), "")
    assert answer_to(RuntimeError("shapes do not match"), "") is None
