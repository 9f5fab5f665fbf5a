"""A plan at the start of an engine: real files, a machine that is told, no GPU."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from config.hardware import Gpu
from local_models.cache_layout import CPU_KERNEL_BLOCK
from local_models.cpu_plan import CpuPlan, plan_for_cpu
from local_models.engine_plan import Look, Machine, cards_for, find_checkpoint, launch_planned
from local_models.errors import StartFailed
from local_models.launch import BUILTIN_MODELS, EngineSpec, Launch
from local_models.logs import last_useful_line
from local_models.plan import GIB, Asked, layout_of
from local_models.planner import make_plan
from local_models.runtime import Runtime
from tests.local_models.test_checkpoints import write
from tests.local_models.test_plan import asked, cards, known

REAL_VLLM = os.environ.get("TANDEM_TEST_VLLM")
SPEC = EngineSpec("here:m", "vllm", "Qwen/Qwen3.5-9B", "qwen3.5-9b", python=Path(sys.executable))
DEMO = replace(SPEC, model="builtin:demo", device="cpu")
DEMO_FILES = str(BUILTIN_MODELS["builtin:demo"])


def gpu(total_gib: float, free_gib: float | None = None, index: int = 0) -> Gpu:
    return Gpu(index, "A", int(total_gib * GIB), int((total_gib if free_gib is None else free_gib) * GIB), f"GPU-{index}")


def on(*machines: Machine) -> Look:
    """A machine that is another one at each look, and the last one for ever."""
    looks: Iterator[Machine] = iter(machines)
    last = machines[-1]
    return lambda spec, environ: next(looks, last)


def launch(spec: EngineSpec, *machines: Machine, environ: Mapping[str, str] | None = None, waited: list[float] | None = None) -> Launch:
    pauses = [] if waited is None else waited
    surroundings = {"PATH": "/usr/bin:/bin", "HOME": "/nowhere", **(environ or {})}
    return launch_planned(spec, 4711, "sk-very-secret", surroundings, look=on(*machines), pause=pauses.append)


def flag(launch: Launch, name: str) -> str | None:
    return launch.argv[launch.argv.index(name) + 1] if name in launch.argv else None


def test_an_engine_is_started_with_the_flags_of_its_plan() -> None:
    made = launch(SPEC, Machine((gpu(24),)))
    assert flag(made, "--quantization") == "fp8"
    assert int(flag(made, "--max-model-len") or 0) > 100_000
    assert flag(made, "--limit-mm-per-prompt") == '{"image":4,"video":1}'
    assert made.env["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert made.note is not None
    assert made.note.startswith(
        "Tandem's plan: Qwen/Qwen3.5-9B in FP8 (quantised while it loads) on 1 GPU: 21.6 GiB each, of which weights"
    )
    assert "\n" not in made.note


def test_flags_that_the_user_gave_are_his() -> None:
    args = ("--max-model-len", "8192", "--max_num_seqs=3", "--gpu-memory-utilization", "0.6")
    made = launch(replace(SPEC, args=args), Machine((gpu(80),)))
    assert made.argv[-5:] == args
    assert [made.argv.count(name) for name in ("--max-model-len", "--max-num-seqs", "--gpu-memory-utilization")] == [1, 0, 1]


def test_several_gpus_share_a_model_that_one_cannot_hold() -> None:
    made = launch(SPEC, Machine((gpu(24), gpu(24, index=1))))
    assert flag(made, "--tensor-parallel-size") == "2"
    alone = launch(replace(SPEC, device="cuda:1"), Machine((gpu(4), gpu(80, index=1))))
    assert flag(alone, "--tensor-parallel-size") is None
    assert alone.env["CUDA_VISIBLE_DEVICES"] == "1"


def test_what_does_not_fit_is_refused_with_what_would() -> None:
    with pytest.raises(
        StartFailed, match=r"Qwen/Qwen3.5-9B does not fit: one sequence .* needs .* GiB.*take Qwen/Qwen3.5-2B; `tandem plan`"
    ):
        launch(SPEC, Machine((gpu(8),)))


def test_memory_that_comes_back_is_waited_for() -> None:
    waited: list[float] = []
    busy, free = Machine((gpu(24, 3),)), Machine((gpu(24),))
    made = launch(SPEC, busy, busy, free, waited=waited)
    assert waited == [1.0, 1.0]
    assert flag(made, "--quantization") == "fp8"


def test_memory_that_does_not_come_back_is_not_waited_for_for_ever() -> None:
    waited: list[float] = []
    with pytest.raises(StartFailed, match=r"end other programs on the GPU, which hold 21\.0 GiB"):
        launch(SPEC, Machine((gpu(24, 3),)), waited=waited)
    assert waited == [1.0, 1.0, 1.0]
    waited.clear()
    with pytest.raises(StartFailed, match="does not fit"):
        launch(SPEC, Machine((gpu(8),)), waited=waited)
    assert waited == []


@pytest.mark.parametrize(
    ("spec", "machine", "line"),
    [
        (replace(SPEC, model="owner/unknown"), Machine((gpu(24),)), "none, the shape of this model is not known"),
        (replace(SPEC, args=("--enable-lora",)), Machine((gpu(24),)), "none, --enable-lora is not planned for"),
        (SPEC, Machine(), "none, there is no NVIDIA GPU to measure"),
        (replace(SPEC, device="cuda:3"), Machine((gpu(24),)), "none, there is no NVIDIA GPU to measure"),
        (DEMO, Machine(), "none, this system does not tell how much memory is available"),
    ],
)
def test_without_anything_to_plan_by_vllm_decides(spec: EngineSpec, machine: Machine, line: str) -> None:
    made = launch(spec, machine)
    assert made.note == f"Tandem's plan: {line}"
    assert "--max-model-len" not in made.argv


def test_a_plan_can_be_switched_off() -> None:
    made = launch(replace(SPEC, plan=False, text_only=True, speculative="mtp"), Machine((gpu(8),)))
    assert made.note is None
    assert "--max-model-len" not in made.argv
    assert "--language-model-only" in made.argv
    assert flag(made, "--speculative-config") == '{"method":"mtp","num_speculative_tokens":1}'


def test_keys_of_the_upstream_are_part_of_the_sum() -> None:
    plain, lean = launch(SPEC, Machine((gpu(48),))), launch(replace(SPEC, text_only=True), Machine((gpu(48),)))
    assert int(flag(lean, "--max-num-seqs") or 0) > int(flag(plain, "--max-num-seqs") or 0)
    assert flag(lean, "--limit-mm-per-prompt") is None
    drafting = launch(replace(SPEC, speculative="mtp"), Machine((gpu(48),)))
    assert int(flag(drafting, "--max-num-seqs") or 0) < int(flag(plain, "--max-num-seqs") or 0)
    own = launch(replace(SPEC, text_only=True, speculative="mtp", args=("--language-model-only", "--speculative-config", "{}")), Machine())
    assert [own.argv.count(name) for name in ("--language-model-only", "--speculative-config")] == [1, 1]


def test_other_kinds_of_engine_have_no_plan() -> None:
    made = launch(replace(SPEC, kind="transformers"), Machine((gpu(1),)))
    assert made.note is None


def test_the_files_on_this_disk_go_before_what_was_published(tmp_path: Path) -> None:
    assert find_checkpoint("Qwen/Qwen3.5-9B", {"HOME": str(tmp_path)}) == known("Qwen/Qwen3.5-9B")
    cache = tmp_path / "hub" / "models--Qwen--Qwen3.5-9B"
    write(cache / "snapshots" / "abc")
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("abc")
    found = find_checkpoint("Qwen/Qwen3.5-9B", {"HF_HOME": str(tmp_path)})
    assert found is not None
    assert found.shape.layers == 2


def test_gpus_are_those_that_the_engine_may_see() -> None:
    gpus = (gpu(8), gpu(24, index=1), gpu(48, index=2))
    assert [card.total // GIB for card in cards_for(gpus, "auto", {})] == [8, 24, 48]
    assert [card.total // GIB for card in cards_for(gpus, "cuda", {"CUDA_VISIBLE_DEVICES": "2,0"})] == [48, 8]
    assert [card.total // GIB for card in cards_for(gpus, "cuda:1", {"CUDA_VISIBLE_DEVICES": "2,1"})] == [24]


def test_the_line_of_the_plan_is_no_reason_for_a_death() -> None:
    assert last_useful_line("Tandem's plan: none, for once\n") is None


# The CPU


def test_a_cpu_gets_a_context_and_a_bounded_cache() -> None:
    made = launch(DEMO, Machine(memory=16 * GIB))
    assert flag(made, "--max-model-len") == "2048"
    assert made.env["VLLM_CPU_KVCACHE_SPACE"] == "1"
    nine = plan_for_cpu(known("Qwen/Qwen3.5-9B"), 64 * GIB, Asked())
    assert isinstance(nine, CpuPlan)
    assert nine.context == 32_768
    assert nine.space <= (64 - 18 - 3) / 2


def test_a_cpu_without_room_is_refused() -> None:
    with pytest.raises(StartFailed, match=r"needs 5\.0 GiB of memory .* 4\.0 GiB are available; take a smaller model; `plan: false`"):
        launch(DEMO, Machine(memory=4 * GIB))
    problem = plan_for_cpu(known("Qwen/Qwen3.5-9B"), 24 * GIB, asked(max_model_len=200_000))
    assert isinstance(problem, str)
    assert "lower --max-model-len" in problem


def test_what_the_user_gave_the_cpu_counts() -> None:
    made = launch(replace(DEMO, args=("--max-model-len", "512"), env={"VLLM_CPU_KVCACHE_SPACE": "2"}), Machine(memory=16 * GIB))
    assert made.env["VLLM_CPU_KVCACHE_SPACE"] == "2"
    assert made.argv.count("--max-model-len") == 1


# The real vLLM


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.skipif(not REAL_VLLM, reason="TANDEM_TEST_VLLM does not name the Python of an environment that has vLLM")
def test_every_flag_exists_in_the_real_vllm() -> None:
    command = [str(REAL_VLLM), "-m", "vllm.entrypoints.openai.api_server", "--help=all"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    known_flags = set(re.findall(r"--[a-z][a-z0-9-]+", text))
    wishes = [Asked(), asked(text_only=True, max_num_seqs=256), asked(quantization="fp8")]
    plans = [make_plan(known("Qwen/Qwen3.5-9B"), cards(*sizes), wish) for sizes in ((16,), (24, 24), (80,)) for wish in wishes]
    emitted = {word for plan in plans for word in getattr(plan, "flags", ()) if word.startswith("--")}
    made = launch(replace(SPEC, text_only=True, speculative="mtp", args=("--max-num-seqs", "256")), Machine((gpu(16),)))
    emitted |= {word for word in made.argv if word.startswith("--")}
    assert len(emitted) > 12
    assert emitted - known_flags == set()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(not REAL_VLLM, reason="TANDEM_TEST_VLLM does not name the Python of an environment that has vLLM")
async def test_the_real_vllm_starts_on_the_cpu_by_its_plan_and_holds_what_was_planned(tmp_path: Path) -> None:
    spec = replace(DEMO, model=DEMO_FILES, python=Path(str(REAL_VLLM)), dtype="bfloat16", args=("--enforce-eager",), start_timeout_s=500)
    runtime = Runtime({spec.engine_id: spec}, data_dir=tmp_path)
    try:
        async with runtime.lease(spec.engine_id):
            log = await asyncio.to_thread(runtime.status(spec.engine_id).log.read_text)
    finally:
        await runtime.close()
    assert log.startswith("Tandem's plan: ")
    said = re.search(r"Maximum concurrency for ([\d,]+) tokens per request: ([\d.]+)x", log)
    assert said is not None
    checkpoint = find_checkpoint(DEMO_FILES, os.environ)
    assert checkpoint is not None
    layout = layout_of(checkpoint.shape, Asked(), 1, CPU_KERNEL_BLOCK)
    tokens = int(said[1].replace(",", ""))
    planned = re.search(r"KV cache and state (\d+) GiB; context (\d+)", log)
    assert planned is not None
    assert tokens == int(planned[2]) == 2048
    assert float(said[2]) == pytest.approx(int(planned[1]) * GIB / layout.block_bytes / layout.blocks_for(tokens), rel=0.01)
