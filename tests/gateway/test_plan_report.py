"""`tandem plan` as a person meets it: a real process, a machine without or with GPUs."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from gateway.cli import parser
from tests.gateway.test_cli import one_line, tandem

CONFIG = """
models:
  - {name: hosted, kind: chat, deployments: [{upstream: openrouter, model: qwen/qwen3.5-9b}]}
  - {name: chat, kind: chat, deployments: [{upstream: openrouter, model: qwen/qwen3.5-9b}, {upstream: here, model: Qwen/Qwen3.5-4B}]}
upstreams:
  openrouter: {kind: openrouter}
  here: {kind: vllm, text_only: true, speculative: mtp, args: {max-model-len: 16384}}
"""


def nvidia_smi(folder: Path, *lines: str) -> str:
    """A PATH on which nvidia-smi says this."""
    program = folder / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\ncat <<'END'\n" + "\n".join(lines) + "\nEND\n")
    program.chmod(0o755)
    return f"{program.parent}:/usr/bin:/bin"


def test_a_machine_without_a_gpu_shows_usual_ones(tmp_path: Path) -> None:
    result = tandem(tmp_path, "plan")
    assert result.returncode == 0
    assert result.stdout.startswith("Qwen/Qwen3.5-9B (figures: model card; ")
    assert "this machine has no NVIDIA GPU; this is how it would be on usual ones:" in result.stdout
    assert [line for line in result.stdout.splitlines() if line.startswith("1 x")] == [
        "1 x 24 GB, with pictures",
        "1 x 48 GB, with pictures",
        "1 x 80 GB, with pictures",
    ]
    first = result.stdout.split("\n\n")[1]
    for name in ("weights", "KV cache", "state", "activations, graphs", "left", "context", "concurrency", "flags"):
        assert f"\n  {name}" in first
    assert "32.0 KiB  a token" in first
    assert "FP8 (quantised while it loads)" in first


def test_the_free_memory_of_this_machine_counts(tmp_path: Path) -> None:
    path = nvidia_smi(tmp_path, "0, NVIDIA L40S, 46068, 45500, GPU-a, 8.9", "1, NVIDIA L4, 23034, 3000, GPU-b, 8.9")
    result = tandem(tmp_path, "plan", "--json", PATH=path)
    (plan,) = json.loads(result.stdout)["plans"]
    assert plan["fits"]
    assert plan["gpus"] == [{"total_bytes": 46068 * 2**20, "free_bytes": 45500 * 2**20}]
    used = plan["weights_bytes"] + plan["reserve_bytes"] + plan["left_bytes"]
    assert used == plan["budget_bytes"] < 45500 * 2**20
    assert plan["kv_bytes_per_token"] == 32 * 1024
    assert f"--max-model-len {plan['context']}" in shlex.join(plan["flags"])
    assert "--gpus 3 is more than the 2 of this machine" in one_line(tandem(tmp_path, "plan", "--gpus", "3", PATH=path))


def test_what_does_not_fit_ends_with_1_and_says_what_would(tmp_path: Path) -> None:
    result = tandem(tmp_path, "plan", "Qwen/Qwen3.5-9B", "--memory", "8")
    assert result.returncode == 1
    assert "1 x 8 GB: does not fit" in result.stdout
    assert "  -> take Qwen/Qwen3.5-2B" in result.stdout
    told = json.loads(tandem(tmp_path, "plan", "--memory", "8", "--json").stdout)["plans"][0]
    assert not told["fits"]
    assert "take Qwen/Qwen3.5-2B" in told["remedies"]


def test_a_public_name_is_planned_as_its_upstream_is_set(tmp_path: Path) -> None:
    (tmp_path / "tandem.yaml").write_text(CONFIG)
    for name in ((), ("chat",)):
        told = json.loads(tandem(tmp_path, "plan", *name, "--memory", "24", "--json").stdout)
        assert told["model"] == "Qwen/Qwen3.5-4B"
        (plan,) = told["plans"]
        assert (plan["context"], plan["text_only"]) == (16384, True)
        assert plan["flags"][:3] == ["--language-model-only", "--speculative-config", '{"method":"mtp","num_speculative_tokens":1}']
        assert "--max-model-len" not in plan["flags"]
    assert "'hosted' has no deployment on a vllm upstream" in one_line(tandem(tmp_path, "plan", "hosted"))


def test_several_gpus(tmp_path: Path) -> None:
    by_list = json.loads(tandem(tmp_path, "plan", "Qwen/Qwen3.5-27B", "--memory", "24,24", "--text-only", "--json").stdout)
    by_number = json.loads(tandem(tmp_path, "plan", "Qwen/Qwen3.5-27B", "--memory", "24", "--gpus", "2", "--text-only", "--json").stdout)
    assert by_list == by_number
    assert by_list["plans"][0]["flags"][1:3] == ["--tensor-parallel-size", "2"]
    assert "names 2 GPUs and --gpus 3" in one_line(tandem(tmp_path, "plan", "--memory", "24,24", "--gpus", "3"))


def test_a_folder_and_an_unknown_name(tmp_path: Path) -> None:
    demo = Path(__file__).parents[2] / "local_models" / "demo" / "weights" / "demo"
    (tmp_path / "mine").symlink_to(demo)
    result = tandem(tmp_path, "plan", "mine", "--memory", "24")
    assert result.returncode == 0
    assert f"(figures: the files in {tmp_path}/mine)" in result.stdout
    assert "nothing is known of the memory that 'owner/name' takes" in one_line(tandem(tmp_path, "plan", "owner/name"))


def test_an_engine_on_the_cpu(tmp_path: Path) -> None:
    text = CONFIG.replace("kind: vllm,", "kind: vllm, device: cpu,").replace("Qwen/Qwen3.5-4B", "Qwen/Qwen3.5-0.8B")
    (tmp_path / "tandem.yaml").write_text(text)
    told = json.loads(tandem(tmp_path, "plan", "chat", "--json").stdout)["plans"][0]
    assert told["gpus"] == []


@pytest.mark.parametrize("text", ["", "0", "-1", "much", "24,,24", "nan", "1e9"])
def test_memory_that_is_none_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parser().parse_args(["plan", f"--memory={text}"])
    assert "is no memory of GPUs; use GB with commas between them, for example 24 or 24,24" in capsys.readouterr().err
