"""Which Python an engine is started with on this machine."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from local_models import installed
from local_models.errors import StartFailed
from local_models.installed import launch_here
from local_models.launch import EngineSpec, Launch
from local_models.runtime import Runtime
from tests.config.test_environments import environment

VLLM = EngineSpec(engine_id="here:m", kind="vllm", model="m", served_model_name="m", device="cpu")


def argv(data_dir: Path, spec: EngineSpec) -> tuple[str, ...]:
    return launch_here(data_dir, spec, 4711, "key").argv


def test_vllm_without_a_python_runs_in_the_environment_that_tandem_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "vllm"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert argv(tmp_path, VLLM)[0] == str(script)
    path = environment(tmp_path)
    assert argv(tmp_path, VLLM)[:3] == (str(path / "bin" / "python"), "-m", "vllm.entrypoints.openai.api_server")
    assert argv(tmp_path, replace(VLLM, device="cuda"))[0] == str(script)


def test_a_python_of_the_configuration_goes_first(tmp_path: Path) -> None:
    environment(tmp_path)
    assert argv(tmp_path, replace(VLLM, python=Path(sys.executable)))[0] == sys.executable


def test_other_engines_run_with_tandem_s_own_python(tmp_path: Path) -> None:
    environment(tmp_path)
    assert argv(tmp_path, replace(VLLM, kind="transformers"))[0] == sys.executable


async def test_a_runtime_looks_in_its_data_directory_at_each_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    runtime = Runtime({"here:m": VLLM}, data_dir=tmp_path)
    with pytest.raises(StartFailed, match="vLLM is not installed; `tandem engines install vllm --device cpu` makes an environment"):
        async with runtime.lease("here:m"):
            pass
    environment(tmp_path)  # its vllm is an empty package: it is started, and ends at once
    with pytest.raises(StartFailed, match="No module named"):
        async with runtime.lease("here:m"):
            pass
    await runtime.close()


def test_whether_a_start_is_worth_making_room_for_is_asked_without_a_look_at_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before others have left there is no room yet: a plan for what is free then would refuse, and block the loop while it looks."""

    def does_not_fit(*given: object) -> Launch:
        raise StartFailed("here:m", "it does not fit")

    monkeypatch.setattr(installed, "launch_planned", does_not_fit)
    runtime = Runtime({"here:m": replace(VLLM, python=Path(sys.executable))}, data_dir=tmp_path)
    assert runtime._engine("here:m").process.refusal() is None
    runtime = Runtime({"here:m": replace(VLLM, python=tmp_path / "none")}, data_dir=tmp_path)
    refusal = runtime._engine("here:m").process.refusal()
    assert refusal is not None
    assert "cannot be run" in refusal.reason
