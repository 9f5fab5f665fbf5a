"""Which Python an engine is started with on this machine."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from local_models.errors import StartFailed
from local_models.installed import launch_here
from local_models.launch import EngineSpec
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
