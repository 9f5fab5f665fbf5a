"""Finding GPUs and vLLM by looking, against programs and files laid out for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from config.hardware import Gpu, find_gpus, has_vllm, parse_gpus, visible_gpus


def program(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("text", "gpus"),
    [
        ("", ()),
        ("0, NVIDIA H100 80GB HBM3, 81559, 81000\n", (Gpu(0, "NVIDIA H100 80GB HBM3", 81559 * 2**20, 81000 * 2**20),)),
        ("0, A, 10, 5\n1, B, 20, 20\n", (Gpu(0, "A", 10 * 2**20, 5 * 2**20), Gpu(1, "B", 20 * 2**20, 20 * 2**20))),
        ("0, NVIDIA GB10, [N/A], [N/A]\n", ()),
        ("No devices were found\n", ()),
    ],
)
def test_the_lines_of_nvidia_smi(text: str, gpus: tuple[Gpu, ...]) -> None:
    assert parse_gpus(text) == gpus


@pytest.mark.parametrize(("script", "count"), [("echo '0, A, 10, 5'", 1), ("echo '0, A, 10, 5'; exit 9", 0)])
def test_nvidia_smi_is_asked(tmp_path: Path, script: str, count: int) -> None:
    program(tmp_path, "nvidia-smi", script)
    assert len(find_gpus({"PATH": str(tmp_path)})) == count


def test_without_nvidia_smi_there_is_no_gpu(tmp_path: Path) -> None:
    assert find_gpus({"PATH": str(tmp_path)}) == ()


def test_vllm_on_the_path(tmp_path: Path) -> None:
    assert not has_vllm(None, {"PATH": str(tmp_path)})
    program(tmp_path, "vllm", "exit 1")
    assert has_vllm(None, {"PATH": str(tmp_path)})


def test_vllm_in_an_environment(tmp_path: Path) -> None:
    python = program(tmp_path / "env", "bin/python", "exit 1")
    assert not has_vllm(python, {})
    package = tmp_path / "env" / "lib" / "python3.12" / "site-packages" / "vllm"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    assert has_vllm(python, {})


def test_a_python_that_is_not_there_has_no_vllm(tmp_path: Path) -> None:
    assert not has_vllm(tmp_path / "python", {})


@pytest.mark.parametrize(
    ("visible", "seen"),
    [(None, "ABC"), ("", "ABC"), ("2,0", "CA"), (" 1 ", "B"), ("1,7", "B"), ("GPU-1234,1", "ABC")],
)
def test_the_gpus_that_a_program_of_ours_sees(visible: str | None, seen: str) -> None:
    gpus = [Gpu(number, name, 1, 1) for number, name in enumerate("ABC")]
    environ = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert "".join(gpu.name for gpu in visible_gpus(gpus, environ)) == seen
