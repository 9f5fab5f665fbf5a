"""`tandem engines` as a person meets it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from config.environments import MANIFEST, find_environments
from gateway import engine_commands
from gateway.engine_commands import Recipes, users_of
from gateway.startup import CannotStart
from tests.config.test_environments import CPU, environment
from tests.engine_wheels import Index
from tests.gateway.live import live_gateway, settings_of
from tests.gateway.test_cli import one_line, tandem
from tests.gateway.test_swap import check, run_client

CONFIG = """
models: [{name: m, kind: chat, deployments: [{upstream: here, model: org/m}]}]
upstreams:
  here: {kind: vllm, device: cpu}
  there: {kind: vllm, device: cuda}
  mine: {kind: vllm, device: cpu, python: /usr/bin/python3}
"""


@pytest.fixture
def recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Index:
    index = Index(tmp_path / "wheels", tmp_path / "recipes")
    for name, value in index.environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv-cache"))
    return index


@contextmanager
def engine_in(path: Path, *arguments: str) -> Iterator[int]:
    """A process of this environment, by its id."""
    command = [str(path / "bin" / "python"), "-c", "import time; print(flush=True); time.sleep(600)", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield process.pid
        finally:
            process.kill()


def engines(folder: Path, *arguments: str) -> str:
    result = tandem(folder, "engines", *arguments, "--data-dir", str(folder))
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_nothing_is_installed_yet(tmp_path: Path) -> None:
    line = f"no engine environments in {tmp_path}/engines; make one with `tandem engines install vllm`\n"
    assert engines(tmp_path) == engines(tmp_path, "list") == line
    assert engines(tmp_path, "list", "--json") == "[]\n"
    assert not (tmp_path / "engines").exists()


def test_the_list_says_version_device_size_state_upstreams_and_path(tmp_path: Path) -> None:
    (tmp_path / "tandem.yaml").write_text(CONFIG)
    cpu = environment(tmp_path, replace(CPU, size_bytes=3_300_000_000))
    cuda = environment(tmp_path, replace(CPU, device="cuda", seen=None))
    (cuda / MANIFEST).write_text("{")
    head, first, second = engines(tmp_path).splitlines()
    assert head.split() == ["NAME", "VERSION", "DEVICE", "SIZE", "STATE", "UPSTREAMS", "PATH"]
    assert first.split()[:6] == ["vllm-cpu-1.0", "1.0", "cpu", "(x86_64)", "3.3", "GB"]
    assert "not this Tandem's version: tandem engines upgrade vllm" in first
    assert first.split()[-2:] == ["here", str(cpu)]
    assert second.split()[:3] == ["vllm-cuda-1.0", "?", "?"]
    assert f"broken: its {MANIFEST} cannot be read (" in second
    assert second.split()[-2:] == ["none", str(cuda)]
    with engine_in(cpu, "--served-model-name", "m") as pid:
        entry, _ = json.loads(engines(tmp_path, "list", "--json"))
    assert entry["used_by"] == [f"'m' (process {pid})"]
    assert (entry["version"], entry["torch"], entry["upstreams"], entry["path"]) == ("1.0", "2.0+cpu", ["here"], str(cpu))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["install", "sglang"], "unknown engine 'sglang'; Tandem installs vllm. One that runs already is an upstream of kind: openai"),
        (["upgrade", "sglang"], "unknown engine 'sglang'; Tandem installs vllm."),
        (["remove", "sglang"], "unknown engine 'sglang'; Tandem installs vllm."),
        (["install", "vllm", "--device", "tpu"], "unknown device 'tpu'; --device is one of cuda, rocm, cpu"),
        (["remove", "vllm", "--device", "cuda:0"], "unknown device 'cuda:0'; --device is one of cuda, rocm, cpu"),
        (["remove", "vllm"], "vllm is not installed in "),
        (["upgrade", "vllm", "--device", "cpu"], "vllm is not installed for cpu in "),
    ],
)
def test_what_makes_no_sense_is_one_line(tmp_path: Path, arguments: list[str], said: str) -> None:
    assert one_line(tandem(tmp_path, "engines", *arguments)).startswith(said)


def test_a_data_directory_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    line = one_line(tandem(tmp_path, "engines", "install", "vllm", "--device", "cpu", "--data-dir", "file/data"))
    assert line.startswith(f"cannot write to the data directory {tmp_path}/file/data")


def test_another_system_is_told_where_it_can_run(tmp_path: Path) -> None:
    with pytest.raises(CannotStart, match=r"there is no vllm for this system \(darwin\); run it on Linux, as an upstream of kind: openai"):
        engine_commands.install(tmp_path, "vllm", "cpu", {}, Recipes(platform="darwin"))


def test_what_runs_is_not_removed_and_named(tmp_path: Path) -> None:
    path = environment(tmp_path)
    with engine_in(path, "--served-model-name", "m") as pid:
        line = one_line(tandem(tmp_path, "engines", "--data-dir", str(tmp_path), "remove", "vllm"))
    assert line == f"vllm-cpu-1.0 is in use by 'm' (process {pid}); unload it or stop Tandem, then run the same again"
    assert path.exists()
    assert engines(tmp_path, "remove", "vllm") == "removed vllm-cpu-1.0\n"
    assert sorted(file.name for file in (tmp_path / "engines").iterdir()) == ["install.lock"]


def test_a_process_that_says_no_model_is_named_by_its_id(tmp_path: Path) -> None:
    path = environment(tmp_path)
    (found,) = find_environments(tmp_path)
    with engine_in(path) as pid:
        assert users_of(found) == [f"process {pid}"]
    assert users_of(found) == []


def test_of_several_devices_one_must_be_named_to_be_removed(tmp_path: Path) -> None:
    environment(tmp_path)
    environment(tmp_path, replace(CPU, device="cuda"))
    line = one_line(tandem(tmp_path, "engines", "remove", "vllm", "--data-dir", str(tmp_path)))
    assert line == "vllm is installed for cuda and cpu; say which one is to go with --device"
    assert engines(tmp_path, "remove", "vllm", "--device", "cuda") == "removed vllm-cuda-1.0\n"
    assert [found.name for found in find_environments(tmp_path)] == ["vllm-cpu-1.0"]


def test_a_failed_installation_is_a_line_and_status_1(recipes: Index, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipes.publish("1.0", broken=True)
    assert engine_commands.install(tmp_path, "vllm", "cpu", {}, Recipes(recipes.recipes)) == 1
    assert "tandem: vllm was installed but does not load: " in capsys.readouterr().err.splitlines()[-1]


def test_an_upgrade_installs_this_tandem_s_version_and_removes_what_no_engine_runs_from(
    recipes: Index, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for version in ("0.8", "0.9"):
        environment(tmp_path, replace(CPU, version=version))
    used = tmp_path / "engines" / "vllm-cpu-0.9"
    recipes.publish("1.0")
    with engine_in(used, "--served-model-name", "m") as pid:
        assert engine_commands.upgrade(tmp_path, "vllm", None, Recipes(recipes.recipes)) == 0
        said = capsys.readouterr()
        assert f"vllm-cpu-0.9 stays, for it is in use by 'm' (process {pid}); run the same again once that has ended" in said.err
        assert said.out.splitlines()[-1] == "removed vllm-cpu-0.8"
    assert [found.name for found in find_environments(tmp_path)] == ["vllm-cpu-0.9", "vllm-cpu-1.0"]
    assert engine_commands.upgrade(tmp_path, "vllm", "cpu", Recipes(recipes.recipes)) == 0
    assert [found.name for found in find_environments(tmp_path)] == ["vllm-cpu-1.0"]


async def test_an_engine_that_was_installed_answers(recipes: Index, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipes.publish("1.0")
    assert engine_commands.install(tmp_path, "vllm", "cpu", {}, Recipes(recipes.recipes)) == 0
    assert capsys.readouterr().out == f"vllm 1.0 for cpu is in {tmp_path}/engines/vllm-cpu-1.0 (torch 2.0+cpu)\n"
    model = {"name": "m", "kind": "chat", "reasoning": True, "deployments": [{"upstream": "here", "model": "org/m"}]}
    async with live_gateway(settings_of([model], {"here": {"kind": "vllm", "device": "cpu"}}), data_dir=tmp_path) as live:
        check(await run_client(live))
        (found,) = find_environments(tmp_path)
        assert users_of(found)[0].startswith("'m' (process ")
        with pytest.raises(CannotStart, match=r"vllm-cpu-1\.0 is in use by 'm'"):
            engine_commands.remove(tmp_path, "vllm", None)
