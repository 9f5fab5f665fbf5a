"""`tandem engines status|load|unload` against a gateway that runs with the same data directory."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gateway import startup
from gateway.auth import KEY_FILE
from gateway.engine_control import table
from gateway.startup import holder_of
from tests.gateway.live import KEY, Live, live_gateway, settings_of

FAKE_VLLM = {"kind": "vllm", "python": sys.executable, "env": {"PYTHONPATH": str(Path(__file__).parent.parent / "fake_vllm")}}
ENGINE, BROKEN = "here:o/m", "here:no/kernels"


@pytest.fixture
async def live(tmp_path: Path) -> AsyncIterator[Live]:
    """Its data directory is as `tandem serve` leaves it."""
    models = [{"name": name, "kind": "chat", "deployments": [{"upstream": "here", "model": name}]} for name in ("o/m", "no/kernels")]
    (tmp_path / KEY_FILE).write_text(KEY)
    async with live_gateway(settings_of(models, {"here": FAKE_VLLM}), data_dir=tmp_path) as running:
        with startup.claimed(tmp_path, "api") as note:
            note(f"http://127.0.0.1:{running.port}")
            yield running


async def tandem(data_dir: Path, *arguments: str, **environ: str) -> tuple[int, str, str]:
    """Exit code, output, errors."""
    command = [sys.executable, "-m", "gateway.cli", "engines", *arguments, "--data-dir", str(data_dir)]
    process = await asyncio.create_subprocess_exec(
        *command,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={"PATH": "", "PYTHONPATH": str(Path(__file__).parent.parent.parent), **environ},
    )
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def test_an_engine_is_loaded_shown_and_unloaded(live: Live, tmp_path: Path) -> None:
    code, out, err = await tandem(tmp_path, "load", ENGINE)
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == f"{ENGINE}: ready"
    code, out, _ = await tandem(tmp_path, "status")
    assert code == 0
    pid = live.runtime.status(ENGINE).pid
    assert [line.split() for line in out.splitlines()] == [
        ["ID", "KIND", "STATE", "REQUESTS", "RESTARTS", "PROCESS"],
        [ENGINE, "vllm", "ready", "0", "0", str(pid)],
        [BROKEN, "vllm", "stopped", "0", "0"],
    ]
    assert (await tandem(tmp_path, "unload", ENGINE, "--drain", "5"))[:2] == (0, f"{ENGINE}: stopped\n")
    code, out, _ = await tandem(tmp_path, "status", "--json")
    assert [engine["state"] for engine in json.loads(out)] == ["stopped", "stopped"]


async def test_a_load_that_fails_says_why_and_is_no_success(live: Live, tmp_path: Path) -> None:
    code, out, _ = await tandem(tmp_path, "load", BROKEN)
    assert code == 1
    assert "failed: given up: it crashed once" in out
    assert "head dimension of 32" in out


async def test_a_load_need_not_be_waited_for(live: Live, tmp_path: Path) -> None:
    code, out, _ = await tandem(tmp_path, "load", ENGINE, "--no-wait")
    assert (code, out.startswith(f"{ENGINE}: loading")) == (0, True)


async def test_what_the_gateway_refuses_is_shown_as_it_says_it(live: Live, tmp_path: Path) -> None:
    code, out, err = await tandem(tmp_path, "load", "other")
    assert (code, out) == (2, "")
    assert err == f"tandem: the engine 'other' does not exist; engines here: '{ENGINE}', '{BROKEN}'\n"
    code, _, err = await tandem(tmp_path, "status", TANDEM_API_KEY="sk-wrong")
    assert (code, "not accepted" in err) == (2, True)


async def test_without_a_gateway_it_says_how_to_get_one(tmp_path: Path) -> None:
    code, _, err = await tandem(tmp_path, "status")
    assert code == 2
    assert f"no gateway runs with the data directory {tmp_path}; start it with `tandem up`" in err
    (tmp_path / KEY_FILE).write_text(KEY)
    code, _, err = await tandem(tmp_path, "status", TANDEM_BASE_URL="http://127.0.0.1:9/v1")
    assert (code, "the gateway at http://127.0.0.1:9 does not answer" in err) == (2, True)


@pytest.mark.parametrize("seconds", ["-1", "soon", "3601", "nan"])
async def test_a_time_that_cannot_be_meant_is_refused(tmp_path: Path, seconds: str) -> None:
    code, _, err = await tandem(tmp_path, "unload", ENGINE, "--drain", seconds)
    assert (code, "use a number of seconds from 0 to 3600" in err) == (2, True)


def test_the_holder_of_a_data_directory_is_known_while_it_holds_it(tmp_path: Path) -> None:
    assert holder_of(tmp_path, "api") is None
    with startup.claimed(tmp_path, "api") as note:
        assert holder_of(tmp_path, "api") is None, "it has not said yet"
        note("http://127.0.0.1:8000")
        assert holder_of(tmp_path, "api") == "http://127.0.0.1:8000"
    assert holder_of(tmp_path, "api") is None


def test_the_table_says_what_loads_and_why_one_failed() -> None:
    common: dict[str, Any] = {"kind": "vllm", "leases": 2, "restarts": 0, "reason": None, "pid": 7}
    loads = {**common, "id": "a:b", "state": "starting", "progress": 0.25, "stage": "loading weights: 1 of 4 files"}
    failed = {**common, "id": "c:d", "state": "failed", "progress": None, "stage": None, "reason": "given up: no weights", "pid": None}
    lines = list(table([loads, failed]))
    assert lines[2] == "  loading 25% (loading weights: 1 of 4 files)"
    assert lines[4] == "  given up: no weights"
    assert list(table([])) == ["the configuration has no engines on this machine"]
