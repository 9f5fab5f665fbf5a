"""The guard alone, and the promise it is for: whatever ends Tandem ends the engines."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from local_models.child import NANNY
from tests.local_models.conftest import Engines, is_running, wait_for

PROJECT = Path(__file__).resolve().parents[2]


@contextmanager
def nanny(
    folder: Path, code: str, *, env: dict[str, str] | None = None, log_bytes: int = 10_000
) -> Iterator[tuple[subprocess.Popen[bytes], socket.socket]]:
    """A nanny with Python code as its engine, and our end of its channel."""
    ours, theirs = socket.socketpair()
    ours.settimeout(10)
    log = folder / "log"
    command = [sys.executable, "-I", "-S", str(NANNY), "--grace", "0.2", "--log", str(log), "--log-bytes", str(log_bytes), "--"]
    with ours, theirs, log.open("wb") as output:
        process = subprocess.Popen(
            [*command, sys.executable, "-I", "-S", "-c", code], stdin=theirs.fileno(), stderr=output, env=env, start_new_session=True
        )
        theirs.close()
        try:
            yield process, ours
        finally:
            ours.close()
            process.wait(timeout=40)


def reports(channel: socket.socket, count: int) -> list[str]:
    data = b""
    while data.count(b"\n") < count and (more := channel.recv(4096)):
        data += more
    return data.decode().splitlines()


@pytest.mark.parametrize(
    ("code", "reported", "passed_on"),
    [
        ("raise SystemExit(0)", "exited 0", 0),
        ("raise SystemExit(5)", "exited 5", 5),
        ("import os; os.kill(os.getpid(), 9)", "exited -9", 137),
    ],
)
def test_the_exit_status_is_reported_and_passed_on(tmp_path: Path, code: str, reported: str, passed_on: int) -> None:
    with nanny(tmp_path, code) as (process, channel):
        assert reports(channel, 2)[1] == reported
        assert channel.recv(1) == b""
        assert process.wait(timeout=40) == passed_on


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_end_is_passed_on_as_sigterm(tmp_path: Path, number: signal.Signals) -> None:
    code = "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(42)); print('listening', flush=True); time.sleep(600)"
    with nanny(tmp_path, code) as (process, channel):
        reports(channel, 1)
        wait_for(lambda: "listening" in (tmp_path / "log").read_text(), "the engine listens")
        process.send_signal(number)
        assert reports(channel, 1) == ["exited 42"]


def test_a_closed_channel_ends_an_engine_that_ignores_sigterm(tmp_path: Path) -> None:
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); print('listening', flush=True); time.sleep(600)"
    with nanny(tmp_path, code) as (process, channel):
        engine = int(reports(channel, 1)[0].split()[1])
        wait_for(lambda: "listening" in (tmp_path / "log").read_text(), "the engine listens")
        channel.close()
        assert process.wait(timeout=40) == 137
        assert not is_running(engine)


def test_the_engine_starts_with_clean_signals_and_descriptors(tmp_path: Path) -> None:
    code = (
        "import os, signal\n"
        "print([str(signal.getsignal(n)) for n in (1, 15, 17)], signal.getsignal(13), os.read(0, 1), os.getpgrp() == os.getpid())\n"
        "print(sorted(int(fd) for fd in os.listdir('/dev/fd'))[:4])"
    )
    with nanny(tmp_path, code) as (_, channel):
        assert reports(channel, 2)[1] == "exited 0"
    first, second = (tmp_path / "log").read_text().splitlines()
    assert first == f"{[str(signal.SIG_DFL)] * 3} {signal.SIG_IGN} b'' True"  # SIGPIPE: ignored by Python itself
    assert second == "[0, 1, 2, 3]"  # 3 is the listing itself


def test_secrets_are_blotted_out_even_when_a_read_cuts_them_in_two(tmp_path: Path) -> None:
    code = (
        "import os, sys, time\n"
        "key = os.environ['SOME_API_KEY']\n"
        "for piece in ('key: ', key[:6], key[6:], '\\n', 'progress\\r', key, '\\n', os.environ['PLAIN'], ' ', os.environ['SHORT_KEY']):\n"
        "    sys.stdout.write(piece); sys.stdout.flush(); time.sleep(0.02)\n"
    )
    env = {"SOME_API_KEY": "sk-0123456789", "PLAIN": "a plain value", "SHORT_KEY": "none"}
    with nanny(tmp_path, code, env=env) as (_, channel):
        reports(channel, 2)
    assert (tmp_path / "log").read_bytes() == b"key: ***\nprogress\r***\na plain value none"


def test_secrets_are_blotted_out_of_a_line_that_is_too_long_to_hold_back(tmp_path: Path) -> None:
    code = "import os, sys\nfor _ in range(3000): sys.stdout.write('0123456' + os.environ['SOME_API_KEY']); sys.stdout.flush()"
    with nanny(tmp_path, code, env={"SOME_API_KEY": "sk-0123456789"}, log_bytes=200_000) as (_, channel):
        reports(channel, 2)
    assert (tmp_path / "log").read_bytes() == b"0123456***" * 3000


def test_an_endless_line_is_not_kept_in_memory(tmp_path: Path) -> None:
    with nanny(tmp_path, "print('x' * 50_000, end='')") as (_, channel):
        reports(channel, 2)
    assert sum((tmp_path / name).stat().st_size for name in ("log", "log.1")) <= 10_000


def test_a_chatty_orphan_does_not_keep_the_guard(tmp_path: Path) -> None:
    code = "import os\nif os.fork() == 0:\n    while True: os.write(1, b'y' * 4096)\nimport time; time.sleep(0.1)"
    with nanny(tmp_path, code) as (process, channel):
        assert reports(channel, 2)[1] == "exited 0"
        assert process.wait(timeout=40) == 0


@contextmanager
def supervisor(folder: Path, count: int, *flags: str) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "tests.local_models.supervise", str(folder), str(count), *flags]
    with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True) as process:
        try:
            yield process
        finally:
            process.kill()  # or leaving the block would wait for ever where an assertion has failed


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_is_left_when_tandem_is_killed(tmp_path: Path, number: signal.Signals) -> None:
    engines = Engines(tmp_path)
    with supervisor(tmp_path, 2, "--descendants", "session", "--stubborn") as tandem:
        assert tandem.stdout is not None
        assert tandem.stdout.readline() == b"ready\n"
        wait_for(lambda: len(engines.running()) == 6, "all of them run")  # a descendant may be later than its engine
        guards = {psutil.Process(pid).ppid() for pid in engines.pids()} - set(engines.pids())
        tandem.send_signal(number)
        tandem.wait(timeout=40)
        wait_for(lambda: not engines.running() and not any(map(is_running, guards)), "all are gone")


def test_nothing_is_left_when_tandem_is_killed_during_a_start(tmp_path: Path) -> None:
    engines = Engines(tmp_path)
    with supervisor(tmp_path, 1, "--load-s", "600") as tandem:
        wait_for(lambda: bool(engines.pids()), "it runs")
        tandem.kill()
        tandem.wait(timeout=40)
        wait_for(lambda: not engines.running(), "all are gone")


def test_ctrl_c_in_the_terminal_reaches_tandem_only(tmp_path: Path) -> None:
    """The terminal sends SIGINT to its foreground group: engines must not be in it, or they die before Tandem can end them in order."""
    engines = Engines(tmp_path)
    with supervisor(tmp_path, 1) as tandem:
        assert tandem.stdout is not None
        assert tandem.stdout.readline() == b"ready\n"
        own = os.getpgid(tandem.pid)
        for pid in (*engines.pids(), *(psutil.Process(pid).ppid() for pid in engines.pids())):
            assert os.getpgid(pid) != own
            assert os.getsid(pid) != os.getsid(tandem.pid)
        tandem.kill()
        tandem.wait(timeout=40)
        wait_for(lambda: not engines.running(), "all are gone")


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG")
def test_an_engine_dies_with_tandem_and_guard_killed_together(tmp_path: Path) -> None:
    engines = Engines(tmp_path)
    with supervisor(tmp_path, 1, "--stubborn") as tandem:
        assert tandem.stdout is not None
        assert tandem.stdout.readline() == b"ready\n"
        guard = psutil.Process(engines.pids()[0]).ppid()
        tandem.send_signal(signal.SIGSTOP)
        os.kill(guard, signal.SIGKILL)
        tandem.kill()
        tandem.wait(timeout=40)
        wait_for(lambda: not engines.running(), "all are gone")


def test_the_guard_starts_fast() -> None:
    """It must not import what it does not need: counted in modules, not in milliseconds."""
    code = f"import runpy, sys; runpy.run_path({str(NANNY)!r}); print(len(sys.modules))"
    started = time.monotonic()
    modules = int(subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, check=True, timeout=30).stdout)
    assert modules < 90, f"{modules} modules in {time.monotonic() - started:.2f} s"
