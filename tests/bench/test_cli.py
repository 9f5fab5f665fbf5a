"""`tandem bench` as a person meets it: real processes, their output, their exit codes, and what they leave behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from bench.chat.processes import choose_cores
from gateway.cli import PROJECT
from tests.bench.running import LIMIT_S, needs_compiler

pytestmark = pytest.mark.slow


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "gateway.cli", "bench", "chat", *arguments]


def environment(cache: Path, **more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(PROJECT), "PYTHONSAFEPATH": "1", "XDG_CACHE_HOME": str(cache), "NO_COLOR": "1", **more}


def bench(cache: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    environ = environment(cache, **more)
    return subprocess.run(command(*arguments), env=environ, capture_output=True, text=True, timeout=LIMIT_S, check=False)


def refusal(result: subprocess.CompletedProcess[str]) -> str:
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.count("\n") == 1
    return result.stderr.removeprefix("tandem: ").rstrip("\n")


def test_without_a_compiler_it_says_what_to_install(tmp_path: Path) -> None:
    said = refusal(bench(tmp_path, "--quick", PATH=str(tmp_path)))
    assert "no C compiler" in said
    assert "apt-get install gcc" in said
    assert "(no-such-cc)" in refusal(bench(tmp_path, "--quick", CC="no-such-cc -O3"))


def test_a_compiler_that_fails_is_named_with_its_error(tmp_path: Path) -> None:
    said = refusal(bench(tmp_path, "--quick", CC="false"))
    assert said.startswith("cannot compile upstream.c with false")


def test_part_of_the_results_is_not_written_into_the_page(tmp_path: Path) -> None:
    for partial in (["--quick"], ["--only", "tandem"], ["--peers", "none"]):
        assert "--write needs all entrants" in refusal(bench(tmp_path, "--write", *partial))


def test_results_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    assert "cannot read" in refusal(bench(tmp_path, "--show", str(tmp_path / "none.json")))
    (tmp_path / "other.json").write_text('{"when": 1}')
    assert "does not hold results" in refusal(bench(tmp_path, "--show", str(tmp_path / "other.json")))


@pytest.mark.parametrize("words", [["--seconds", "0"], ["--seconds", "x"], ["--only", "nginx"]])
def test_impossible_wishes_are_refused(tmp_path: Path, words: list[str]) -> None:
    result = bench(tmp_path, *words)
    assert result.returncode == 2
    assert "usage:" in result.stderr


@needs_compiler
def test_a_run_prints_its_table_and_keeps_its_results(tmp_path: Path) -> None:
    kept = tmp_path / "kept" / "results.json"
    result = bench(tmp_path, "--only", "direct", "--seconds", "0.5", "--results", str(kept))
    assert result.returncode == 0, result.stderr
    assert f"results: {kept}" in result.stdout
    assert "requests/s" in result.stdout
    shown = bench(tmp_path, "--show", str(kept))
    assert shown.returncode == 0
    assert shown.stdout in result.stdout


@needs_compiler
def test_a_peer_that_cannot_be_installed_is_reported(tmp_path: Path) -> None:
    nowhere = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path), "UV_NO_INDEX": "1", "UV_OFFLINE": "1", "PATH": "/usr/bin:/bin"}
    result = bench(tmp_path, "--only", "vllm-router", "--quick", **nowhere)
    assert result.returncode == 1, result.stderr
    assert "vllm-router (Rust): not measured, cannot be installed (" in result.stdout
    assert "installing vllm-router==" in result.stdout


@needs_compiler
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 130), (signal.SIGKILL, -signal.SIGKILL)], ids=lambda value: str(value)
)
def test_nothing_is_left_running_however_it_ends(tmp_path: Path, number: signal.Signals, code: int) -> None:
    process = subprocess.Popen(
        command("--only", "tandem", "--seconds", "100"),
        env=environment(tmp_path),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        children = wait_for_children(process, 3)  # the upstream, Tandem, and the load
        process.send_signal(number)
        assert process.wait(LIMIT_S) == code
        _, alive = psutil.wait_procs(children, timeout=LIMIT_S)
        assert alive == []
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_for_children(process: subprocess.Popen[bytes], count: int) -> list[psutil.Process]:
    deadline = time.monotonic() + LIMIT_S
    while len(children := psutil.Process(process.pid).children(recursive=True)) < count:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return children


def test_the_gateway_has_a_core_of_its_own_where_there_are_two() -> None:
    cores = choose_cores({3, 1, 2})
    assert (cores.gateway, cores.load, cores.shared) == (3, 1, False)
    assert choose_cores({5}).shared
