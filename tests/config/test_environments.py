"""Which engine environments there are, which of them can be used, and for which device."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from config.environments import (
    MANIFEST,
    EngineDevice,
    Environment,
    Manifest,
    environment_for,
    find_environments,
    install_command,
    write_manifest,
)

CPU = Manifest("vllm", "cpu", "1.0", "3.11.0", "2.0+cpu", "x86_64", "digest", 100.0, 5)


def environment(data_dir: Path, manifest: Manifest = CPU) -> Path:
    """What an installation leaves, without the packages."""
    path = data_dir / "engines" / f"{manifest.engine}-{manifest.device}-{manifest.version}"
    package = path / "lib" / "python3.11" / "site-packages" / "vllm"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (path / "bin").mkdir()
    (path / "bin" / "python").symlink_to(sys.executable)
    write_manifest(path, manifest)
    return path


def test_an_environment_says_what_it_is(tmp_path: Path) -> None:
    path = environment(tmp_path)
    (found,) = find_environments(tmp_path)
    assert found == Environment(path, CPU)
    assert (found.name, found.python) == ("vllm-cpu-1.0", path / "bin" / "python")


def test_nothing_is_there_before_the_first_installation(tmp_path: Path) -> None:
    assert find_environments(tmp_path) == ()
    (tmp_path / "engines").touch()
    assert find_environments(tmp_path) == ()


def test_what_is_being_built_or_removed_is_no_environment(tmp_path: Path) -> None:
    for name in (".building-vllm-cpu-1.0", ".removing-vllm-cpu-1.0"):
        (tmp_path / "engines" / name).mkdir(parents=True)
    (tmp_path / "engines" / "install.lock").touch()
    assert find_environments(tmp_path) == ()


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        ("no manifest", f"it has no {MANIFEST}"),
        ("no JSON", f"its {MANIFEST} cannot be read (Expecting value"),
        ("another device", f"its {MANIFEST} cannot be read (unknown device 'tpu')"),
        ("another form", f"its {MANIFEST} cannot be read ("),
        ("no Python", "its interpreter "),
        ("no engine", "vllm is not in it any more"),
    ],
)
def test_a_broken_one_is_found_with_its_problem_and_never_used(tmp_path: Path, spoil: str, problem: str) -> None:
    path = environment(tmp_path)
    manifest = path / MANIFEST
    if spoil == "no manifest":
        manifest.unlink()
    elif spoil == "no Python":
        (path / "bin" / "python").unlink()
        (path / "bin" / "python").symlink_to("/nowhere/python")
    elif spoil == "no engine":
        (path / "lib" / "python3.11" / "site-packages" / "vllm" / "__init__.py").unlink()
    else:
        text = {"no JSON": "x", "another device": manifest.read_text().replace('"cpu"', '"tpu"'), "another form": '{"engine": "vllm"}'}
        manifest.write_text(text[spoil])
    (found,) = find_environments(tmp_path)
    assert found.problem is not None
    assert found.problem.startswith(problem)
    assert environment_for("cpu", [found]) is None


def installed(device: EngineDevice, *, seen: str | None = "it", at: float = 0.0, problem: str | None = None) -> Environment:
    return Environment(Path(f"/{device}-{at:g}"), replace(CPU, device=device, seen=seen, installed_at=at), problem)


@pytest.mark.parametrize(
    ("device", "environments", "chosen"),
    [
        ("cpu", [installed("cuda"), installed("cpu")], "/cpu-0"),
        ("cuda", [installed("cpu"), installed("cuda")], "/cuda-0"),
        ("cuda:1", [installed("cpu"), installed("cuda")], "/cuda-0"),
        ("cuda", [installed("cpu"), installed("rocm")], "/rocm-0"),
        ("cuda", [installed("cpu")], None),
        ("cpu", [installed("cuda")], None),
        ("mps", [installed("cpu"), installed("cuda")], None),
        ("auto", [installed("cpu"), installed("cuda")], "/cuda-0"),
        ("auto", [installed("cpu"), installed("cuda", seen=None)], "/cpu-0"),
        ("auto", [installed("cuda", seen=None)], "/cuda-0"),
        ("cpu", [installed("cpu", at=1), installed("cpu", at=3), installed("cpu", at=2)], "/cpu-3"),
        ("cpu", [installed("cpu", at=1), installed("cpu", at=3, problem="broken")], "/cpu-1"),
        ("auto", [], None),
    ],
)
def test_the_right_device_then_one_that_was_seen_then_the_newest(device: str, environments: list[Environment], chosen: str | None) -> None:
    found = environment_for(device, environments)
    assert (None if found is None else str(found.path)) == chosen


@pytest.mark.parametrize(
    ("device", "option"), [("auto", ""), ("mps", ""), ("cpu", " --device cpu"), ("cuda", " --device cuda"), ("cuda:1", " --device cuda")]
)
def test_the_command_that_installs_what_a_device_needs(device: str, option: str) -> None:
    assert install_command(device) == f"tandem engines install vllm{option}"
