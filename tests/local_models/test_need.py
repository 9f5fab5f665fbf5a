"""How much memory an engine takes, and of which devices."""

from __future__ import annotations

from typing import Any

import pytest

from config.hardware import Gpu
from local_models.launch import EngineSpec
from local_models.need import FACTOR, PROCESS_BYTES, budget_of, devices_of, need_of

GIB = 2**30
GPUS = [Gpu(0, "A", 24 * GIB, 24 * GIB), Gpu(1, "B", 12 * GIB, 12 * GIB)]


def spec(kind: Any = "transformers", **more: Any) -> EngineSpec:
    return EngineSpec(engine_id="here:m", kind=kind, model="m", served_model_name="m", **more)


def need(engine: EngineSpec, gpus: list[Gpu], weights: int = 0, **budgets: int) -> dict[str, int]:
    return need_of(engine, budget_of(budgets, gpus), gpus, lambda: weights)


def test_a_gpu_has_nearly_all_of_itself_and_what_is_given_goes_before_it() -> None:
    assert budget_of({}, GPUS) == {"cuda:0": 23 * GIB, "cuda:1": 11 * GIB}
    assert budget_of({"cuda:1": 5, "cpu": 7}, GPUS) == {"cuda:0": 23 * GIB, "cuda:1": 5, "cpu": 7}
    assert budget_of({}, []) == {}
    assert budget_of({}, [Gpu(0, "tiny", 10, 10)]) == {"cuda:0": 0}


@pytest.mark.parametrize(
    ("engine", "known", "devices"),
    [
        (spec(), ["cuda:0", "cpu"], "cuda:0"),
        (spec(), ["mps", "cpu"], "mps"),
        (spec(), [], "cpu"),
        (spec(device="cpu"), ["cuda:0"], "cpu"),
        (spec(device="mps"), ["cuda:0"], "mps"),
        (spec(device="cuda"), [], "cuda:0"),
        (spec(device="cuda:1"), [], "cuda:1"),
        (spec("vllm"), ["cuda:0"], "cuda:0"),
        (spec("vllm", args=("--tensor-parallel-size", "2", "--pipeline_parallel_size=2")), ["cuda:0"], "cuda:0 cuda:1 cuda:2 cuda:3"),
        (spec("vllm", args=("-tp", "2")), ["cuda:0"], "cuda:0 cuda:1"),
        (spec("vllm", args=("--data-parallel-size", "many")), ["cuda:0"], "cuda:0"),
        (spec("vllm", args=("--data-parallel-size",)), ["cuda:0"], "cuda:0"),
        (spec("vllm", device="cuda:1", args=("--tensor-parallel-size", "1")), [], "cuda:1"),
        (spec("diffusers", args=("--tensor-parallel-size", "2")), ["cuda:0"], "cuda:0"),
    ],
)
def test_the_devices_that_an_engine_runs_on(engine: EngineSpec, known: list[str], devices: str) -> None:
    assert " ".join(devices_of(engine, known)) == devices


def test_what_is_given_is_taken_as_it_is() -> None:
    assert need(spec(memory=30 * GIB), GPUS) == {"cuda:0": 30 * GIB}
    assert need(spec("vllm", memory=5, args=("--tensor-parallel-size", "2")), GPUS) == {"cuda:0": 5, "cuda:1": 5}


@pytest.mark.parametrize(
    ("args", "share"),
    [
        ((), 0.92),
        (("--gpu-memory-utilization", "0.5"), 0.5),
        (("--gpu_memory_utilization=0.4",), 0.4),
        (("--gpu-memory-utilization=x",), 0.92),
    ],
)
def test_vllm_takes_its_share_of_the_whole_gpu(args: tuple[str, ...], share: float) -> None:
    assert need(spec("vllm", args=args), GPUS, weights=GIB) == {"cuda:0": int(24 * GIB * share)}


def test_an_engine_that_is_estimated_may_always_try_alone() -> None:
    assert need(spec("vllm", device="cuda:1"), GPUS) == {"cuda:1": 11 * GIB}  # 0.92 of 12 GiB are more
    assert need(spec(), GPUS, weights=90 * GIB) == {"cuda:0": 23 * GIB}


def test_weights_take_more_in_memory_than_on_disk() -> None:
    assert need(spec("diffusers"), GPUS, weights=10 * GIB) == {"cuda:0": int(10 * GIB * FACTOR) + PROCESS_BYTES}
    assert need(spec(), [], weights=GIB) == {"cpu": int(GIB * FACTOR) + PROCESS_BYTES}


def test_vllm_on_a_cpu_takes_a_share_of_the_budget_or_what_its_cache_was_told_to_be() -> None:
    told = spec("vllm", device="cpu", env={"VLLM_CPU_KVCACHE_SPACE": "2"})
    assert need(told, [], weights=GIB, cpu=16 * GIB) == {"cpu": int(GIB * FACTOR) + PROCESS_BYTES + 2 * GIB}
    assert need(spec("vllm", device="cpu"), [], weights=GIB, cpu=10 * GIB) == {"cpu": int(10 * GIB * 0.92)}
