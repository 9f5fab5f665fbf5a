from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import psutil
import pytest
import uvloop

from local_models.backoff import RestartPolicy
from local_models.errors import EngineError, GivenUp, RuntimeClosed, StartFailed, StartTimeout
from local_models.launch import Launch
from local_models.logs import LOG_BYTES
from local_models.process import PORT_TRIES, Process, exit_words, free_port, is_taken
from tests.local_models.conftest import Clock, Engines, ask, launch_fake, until, until_state, wait_for

SLOW = ("--load-s", "600")


def nanny_of(pid: int) -> int:
    return psutil.Process(pid).ppid()


def progressed(process: Process, least: float) -> bool:
    return (process.status().progress or 0.0) >= least


async def failure_of(process: Process) -> EngineError:
    with pytest.raises(EngineError) as caught:
        await process.ensure_ready()
    return caught.value


# Starts


async def test_twenty_callers_share_one_start(engines: Engines) -> None:
    process = engines.process("--load-s", "0.1")
    addresses = await asyncio.gather(*(process.ensure_ready() for _ in range(20)))
    assert len(set(addresses)) == 1
    assert len(engines.pids()) == 1
    assert process.status().pid == engines.pids()[0]


async def test_a_ready_child_is_not_started_again(engines: Engines) -> None:
    process = engines.process()
    assert await process.ensure_ready() == await process.ensure_ready()
    assert len(engines.pids()) == 1


async def test_a_cancelled_caller_does_not_abort_the_start(engines: Engines) -> None:
    process = engines.process("--load-s", "0.1")
    first, second = asyncio.create_task(process.ensure_ready()), asyncio.create_task(process.ensure_ready())
    await until_state(process, "starting")
    first.cancel()
    await second
    assert first.cancelled()
    assert len(engines.pids()) == 1


async def test_a_start_whose_only_caller_left_goes_on(engines: Engines) -> None:
    process = engines.process("--load-s", "0.1")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(process.ensure_ready(), 0.01)
    await until_state(process, "ready")


async def test_the_progress_of_a_start_can_be_seen(engines: Engines) -> None:
    process = engines.process("--load-s", "300", "--steps", "3000")
    start = asyncio.create_task(process.ensure_ready())
    for step in (1, 2):
        await until(partial(progressed, process, step / 3000), "progress is seen")
        assert (process.status().stage or "").startswith("step ")
    await process.stop()
    assert process.status().progress is None
    with pytest.raises(StartFailed):
        await start


async def test_a_port_taken_late_is_waited_for(engines: Engines) -> None:
    process = engines.process("--bind-late-s", "0.2")
    address = await process.ensure_ready()
    assert b"200" in await ask(address, "/")


async def test_the_key_differs_from_start_to_start_and_is_wanted(engines: Engines) -> None:
    process = engines.process()
    first = await process.ensure_ready()
    await process.stop()
    second = await process.ensure_ready()
    assert first.key != second.key
    assert len(first.key) >= 32
    assert b" 200 " in await ask(second, "/")
    assert b" 401 " in await ask(type(second)(second.host, second.port, first.key), "/")


# Failed starts


async def test_an_exit_while_starting_fails_at_once_with_the_last_line(engines: Engines) -> None:
    process = engines.process("--exit", "3")
    error = await failure_of(process)
    assert type(error) is StartFailed
    assert "engine 'fake' did not start: it ended with exit code 3: OSError: no weights in /nowhere; see logs/fake.log" in str(error)
    assert error.retry_after_s is not None
    status = process.status()
    assert (status.state, status.reason, status.pid) == ("failed", error.reason, None)


async def test_every_waiter_of_a_failed_start_gets_an_error_of_its_own(engines: Engines) -> None:
    process = engines.process("--exit", "3")
    errors = await asyncio.gather(*(process.ensure_ready() for _ in range(5)), return_exceptions=True)
    assert {type(error) for error in errors} == {StartFailed}
    assert len({id(error) for error in errors}) == 5
    assert len(engines.pids()) == 1


async def test_a_start_that_takes_too_long_names_limit_stage_and_next_step(engines: Engines) -> None:
    process = engines.process(*SLOW, "--say", "reading shard 1", start_timeout_s=2.5)
    error = await failure_of(process)
    assert type(error) is StartTimeout
    for part in ("2.5 s", "'step 0', 0%", "reading shard 1", "start_timeout_s", "logs/fake.log"):
        assert part in error.reason
    assert engines.running() == []


async def test_a_server_that_never_answers_is_a_time_out(engines: Engines) -> None:
    process = engines.process("--silent", start_timeout_s=0.4)
    assert type(await failure_of(process)) is StartTimeout
    assert engines.running() == []


async def test_a_missing_program_is_named(engines: Engines, tmp_path: Path) -> None:
    process = Process("fake", lambda port, key: Launch(argv=("/no/such/engine",), env={}), log=engines.log)
    error = await failure_of(process)
    assert "cannot run /no/such/engine: No such file or directory" in error.reason


async def test_a_log_that_cannot_be_written_fails_the_start(engines: Engines, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    process = Process("fake", launch_fake, log=tmp_path / "file" / "fake.log")
    error = await failure_of(process)
    assert type(error) is StartFailed
    assert "fake.log" in error.reason or str(tmp_path / "file") in error.reason


async def test_what_cannot_be_launched_is_no_crash(engines: Engines) -> None:
    def refuse(port: int, key: str) -> Launch:
        raise StartFailed("fake", "there is no engine here")

    process = Process("fake", refuse, log=engines.log, restarts=RestartPolicy(max_restarts=0, first_delay_s=600))
    for _ in range(3):
        error = await failure_of(process)
        assert (type(error), error.reason, error.retry_after_s) == (StartFailed, "there is no engine here", None)


async def test_a_fault_in_tandem_itself_does_not_leave_callers_waiting(engines: Engines) -> None:
    def broken(port: int, key: str) -> Launch:
        raise ZeroDivisionError

    faults: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: faults.append(context.get("exception")))
    process = Process("fake", broken, log=engines.log)
    assert "inside Tandem" in (await failure_of(process)).reason
    await until(lambda: bool(faults), "the fault is reported")
    assert isinstance(faults[0], ZeroDivisionError)


# Ports


async def test_a_fixed_port_that_is_taken_is_named(engines: Engines) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        error = await failure_of(engines.process(port=port))
    assert f"port {port} of 127.0.0.1 is taken" in error.reason
    assert engines.pids() == []


async def test_a_fixed_port_is_used(engines: Engines) -> None:
    port = free_port()
    assert (await engines.process(port=port).ensure_ready()).port == port


async def test_a_port_lost_to_another_program_is_replaced(engines: Engines) -> None:
    thieves: list[socket.socket] = []

    def launch(port: int, key: str) -> Launch:
        if not thieves:
            thieves.append(socket.create_server(("127.0.0.1", port)))
        return launch_fake(port, key, "--pids", str(engines.pids_file))

    process = Process("fake", launch, log=engines.log)
    engines.made.append(process)
    with_thief = await process.ensure_ready()
    assert with_thief.port != thieves[0].getsockname()[1]
    assert len(engines.pids()) == 2
    assert process.status().restarts == 0
    thieves[0].close()


async def test_after_some_lost_ports_the_start_fails(engines: Engines) -> None:
    thieves: list[socket.socket] = []

    def launch(port: int, key: str) -> Launch:
        thieves.append(socket.create_server(("127.0.0.1", port)))
        return launch_fake(port, key)

    error = await failure_of(Process("fake", launch, log=engines.log))
    assert len(thieves) == PORT_TRIES
    assert "ddress already in use" in error.reason
    for thief in thieves:
        thief.close()


def test_a_port_of_ipv6_can_be_asked_for() -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as server:
        assert is_taken("::1", server.getsockname()[1])
    assert not is_taken("::1", free_port("::1"))


# Stops


async def test_stopping_leaves_nothing(engines: Engines) -> None:
    process = engines.process()
    await process.ensure_ready()
    await process.stop()
    assert engines.running() == []
    assert process.status().state == "stopped"
    assert process.status().reason is None


async def test_stopping_what_does_not_run_does_nothing(engines: Engines) -> None:
    process = engines.process()
    await process.stop()
    assert process.status().state == "stopped"
    assert engines.pids() == []


async def test_a_stop_during_the_start_is_an_error_of_ours_for_its_waiters(engines: Engines) -> None:
    process = engines.process(*SLOW)
    waiters = [asyncio.create_task(process.ensure_ready()) for _ in range(3)]
    await until(lambda: bool(engines.pids()), "it runs")
    await process.stop()
    errors = await asyncio.gather(*waiters, return_exceptions=True)
    assert [(type(error), getattr(error, "reason", None)) for error in errors] == [
        (StartFailed, "it was stopped while it was starting")
    ] * 3
    assert engines.running() == []
    assert process.status().state == "stopped"


async def test_a_stop_in_the_first_moment_of_a_start(engines: Engines) -> None:
    process = engines.process()
    waiter = asyncio.create_task(process.ensure_ready())
    await asyncio.sleep(0)
    await process.stop()
    with pytest.raises(StartFailed):
        await waiter
    assert engines.running() == []


async def test_a_caller_during_a_stop_gets_a_new_child(engines: Engines) -> None:
    process = engines.process()
    first = await process.ensure_ready()
    process.request_stop()
    assert process.status().state == "stopping"
    second = await process.ensure_ready()
    assert first.key != second.key
    assert len(engines.pids()) == 2
    assert len(engines.running()) == 1


async def test_a_cancelled_stop_goes_on(engines: Engines) -> None:
    process = engines.process("--stubborn", stop_grace_s=0.2)
    await process.ensure_ready()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(process.stop(), 0.01)
    await until_state(process, "stopped")


async def test_one_that_ignores_sigterm_is_killed_after_the_grace(engines: Engines) -> None:
    process = engines.process("--stubborn", stop_grace_s=0.1)
    await process.ensure_ready()
    await process.stop()
    assert engines.running() == []


async def test_a_closed_process_refuses(engines: Engines) -> None:
    process = engines.process()
    await process.ensure_ready()
    await process.close()
    assert type(await failure_of(process)) is RuntimeClosed


async def test_closing_during_the_start_tells_its_waiters(engines: Engines) -> None:
    process = engines.process(*SLOW)
    waiter = asyncio.create_task(process.ensure_ready())
    await until(lambda: bool(engines.pids()), "it runs")
    await process.close()
    with pytest.raises(RuntimeClosed):
        await waiter


# Descendants


@pytest.mark.parametrize("where", ["group", pytest.param("session", marks=pytest.mark.skipif(sys.platform != "linux", reason="subreaper"))])
@pytest.mark.parametrize("stubborn", [(), ("--stubborn",)], ids=["polite", "stubborn"])
async def test_a_stop_ends_the_descendants_too(engines: Engines, where: str, stubborn: tuple[str, ...]) -> None:
    process = engines.process("--descendants", where, *stubborn, stop_grace_s=0.1)
    await process.ensure_ready()
    assert len(engines.running()) == 3
    await process.stop()
    assert engines.running() == []


async def test_a_crash_ends_the_descendants_too(engines: Engines) -> None:
    process = engines.process("--descendants", "group", "--stubborn", "--leave")
    error = await failure_of(process)
    assert "exit code 0" in error.reason
    assert len(engines.pids()) == 3
    assert engines.running() == []


# Crashes


async def test_a_crash_is_noticed_and_the_next_caller_gets_a_new_child(engines: Engines) -> None:
    process = engines.process()
    first = await process.ensure_ready()
    await ask(first, "/crash?code=7")
    await until_state(process, "failed")
    assert process.status().reason == "it ended with exit code 7: RuntimeError: asked to crash; see logs/fake.log"
    second = await process.ensure_ready()
    assert first.key != second.key
    status = process.status()
    assert (status.state, status.restarts, status.reason) == ("ready", 1, None)


async def test_a_kill_from_outside_is_named(engines: Engines) -> None:
    process = engines.process()
    await process.ensure_ready()
    os.kill(engines.pids()[0], signal.SIGKILL)
    await until_state(process, "failed")
    assert "killed by SIGKILL, 9" in (process.status().reason or "")


async def test_a_short_back_off_is_waited_for(engines: Engines) -> None:
    process = engines.process("--exit-once", str(engines.folder / "once"), restarts=RestartPolicy(first_delay_s=0.05))
    assert type(await failure_of(process)) is StartFailed
    await asyncio.gather(*(process.ensure_ready() for _ in range(5)))
    assert len(engines.pids()) == 2


async def test_a_long_back_off_is_refused_with_the_reason_and_when(engines: Engines) -> None:
    clock = Clock()
    process = engines.process("--exit", "1", restarts=RestartPolicy(first_delay_s=10, longest_delay_s=100, max_restarts=9), clock=clock)
    await failure_of(process)
    clock.now += 4
    error = await failure_of(process)
    assert (type(error), error.retry_after_s) == (StartFailed, 6.0)
    assert "it crashed once, because it ended with exit code 1: OSError: no weights" in error.reason
    assert "allowed in 6 s" in error.reason
    clock.now += 6
    await failure_of(process)
    assert len(engines.pids()) == 2
    assert (await failure_of(process)).retry_after_s == 20.0


async def test_it_is_given_up_after_max_restarts_and_says_why(engines: Engines) -> None:
    clock = Clock()
    policy = RestartPolicy(max_restarts=2, first_delay_s=0.001, given_up_s=300)
    process = engines.process("--exit", "1", restarts=policy, clock=clock)
    for _ in range(3):
        assert type(await failure_of(process)) is StartFailed
        clock.now += 1
    error = await failure_of(process)
    assert (type(error), error.retry_after_s) == (GivenUp, 299.0)
    assert "3 times in a row, last because it ended with exit code 1: OSError: no weights in /nowhere" in error.reason
    assert len(engines.pids()) == 3
    status = process.status()
    assert (status.state, status.restarts) == ("failed", 2)
    assert "given up" in (status.reason or "")


async def test_one_given_up_is_tried_once_more_after_a_while(engines: Engines) -> None:
    clock = Clock()
    process = engines.process("--exit", "1", restarts=RestartPolicy(max_restarts=0, given_up_s=300), clock=clock)
    await failure_of(process)
    assert type(await failure_of(process)) is GivenUp
    clock.now += 300
    assert type(await failure_of(process)) is StartFailed
    assert type(await failure_of(process)) is GivenUp
    assert len(engines.pids()) == 2


async def test_a_reset_lets_one_given_up_start_at_once(engines: Engines) -> None:
    process = engines.process("--exit-once", str(engines.folder / "once"), restarts=RestartPolicy(max_restarts=0))
    await failure_of(process)
    assert type(await failure_of(process)) is GivenUp
    process.reset()
    await process.ensure_ready()


async def test_a_reset_wakes_those_who_sit_out_a_back_off(engines: Engines) -> None:
    process = engines.process(
        "--exit-once", str(engines.folder / "once"), restarts=RestartPolicy(first_delay_s=600, longest_delay_s=600, patience_s=600)
    )
    await failure_of(process)
    waiter = asyncio.create_task(process.ensure_ready())
    await asyncio.sleep(0)
    process.reset()
    await waiter


async def test_closing_wakes_those_who_sit_out_a_back_off(engines: Engines) -> None:
    process = engines.process("--exit", "1", restarts=RestartPolicy(first_delay_s=600, longest_delay_s=600, patience_s=600))
    await failure_of(process)
    waiter = asyncio.create_task(process.ensure_ready())
    await asyncio.sleep(0)
    await process.close()
    with pytest.raises(RuntimeClosed):
        await waiter


async def test_a_long_healthy_life_makes_up_for_earlier_crashes(engines: Engines) -> None:
    clock = Clock()
    policy = RestartPolicy(max_restarts=1, first_delay_s=0.001, healthy_s=60)
    process = engines.process(restarts=policy, clock=clock)
    for _ in range(4):
        await ask(await process.ensure_ready(), "/crash?code=1")
        clock.now += 61
        await until_state(process, "failed")
        clock.now += 1
    await process.ensure_ready()


async def test_short_lives_are_crashes_in_a_row_though_each_was_ready(engines: Engines) -> None:
    clock = Clock()
    process = engines.process(restarts=RestartPolicy(max_restarts=1, first_delay_s=0.001), clock=clock)
    for _ in range(2):
        await ask(await process.ensure_ready(), "/crash?code=1")
        await until_state(process, "failed")
        clock.now += 1
    assert type(await failure_of(process)) is GivenUp


async def test_a_server_that_says_its_engine_is_dead_is_a_crash(engines: Engines) -> None:
    process = engines.process(watch_interval_s=0.02)
    await ask(await process.ensure_ready(), "/sick")
    await until_state(process, "failed")
    assert "answering 503" in (process.status().reason or "")
    assert engines.running() == []


async def test_a_refusal_is_known_before_anything_is_started(engines: Engines) -> None:
    clock = Clock()
    process = engines.process("--exit", "1", restarts=RestartPolicy(max_restarts=1, first_delay_s=10, patience_s=2), clock=clock)
    assert process.refusal() is None
    await failure_of(process)
    assert "the next try is allowed in 10 s" in str(process.refusal())
    clock.now += 9
    assert process.refusal() is None, "so short a delay is waited for"
    clock.now += 1
    await failure_of(process)
    assert type(process.refusal()) is GivenUp
    process.reset()
    assert process.refusal() is None
    await process.close()
    assert type(process.refusal()) is RuntimeClosed
    assert len(engines.pids()) == 2


async def test_a_launch_that_cannot_be_is_a_refusal(engines: Engines) -> None:
    def launch(port: int, key: str) -> Launch:
        raise StartFailed("vllm", "there is no `vllm` on the PATH")

    process = Process("fake", launch, log=engines.log)
    assert str(process.refusal()) == "engine 'fake' did not start: there is no `vllm` on the PATH"
    await process.close()


async def test_it_is_alive_until_nothing_is_left_and_then_says_so(engines: Engines) -> None:
    ends = list[bool]()
    process = Process(
        "fake",
        lambda port, key: launch_fake(port, key, "--pids", str(engines.pids_file)),
        log=engines.log,
        on_end=lambda: ends.append(process.alive or bool(engines.running())),
    )
    assert not process.alive
    await process.ensure_ready()
    assert (process.alive, process.stopping, process.refusal()) == (True, False, None)
    process.request_stop()
    assert (process.alive, process.stopping) == (True, True)
    await process.stop()
    await ask_and_crash(process)
    assert ends == [False, False]
    await process.close()


async def ask_and_crash(process: Process) -> None:
    await ask(await process.ensure_ready(), "/crash?code=1")
    await until_state(process, "failed")


async def test_keep_ready_starts_it_again_without_a_caller(engines: Engines) -> None:
    process = engines.process()
    keeper = asyncio.create_task(process.keep_ready())
    await until_state(process, "ready")
    await ask(await process.ensure_ready(), "/crash?code=1")
    await until(lambda: process.status().restarts == 1 and process.status().state == "ready", "it runs again")
    await process.close()
    await keeper


async def test_keep_ready_ends_when_it_is_given_up(engines: Engines) -> None:
    process = engines.process("--exit", "1", restarts=RestartPolicy(max_restarts=1, first_delay_s=0.01))
    with pytest.raises(GivenUp):
        await process.keep_ready()
    assert len(engines.pids()) == 2


# The guard


async def test_a_killed_guard_takes_the_whole_engine_along(engines: Engines) -> None:
    process = engines.process("--descendants", "group", "--stubborn", stop_grace_s=0.1)
    await process.ensure_ready()
    assert len(engines.running()) == 3
    os.kill(nanny_of(engines.pids()[0]), signal.SIGKILL)
    await until_state(process, "failed")
    await until(lambda: not engines.running(), "all are gone")
    assert process.status().reason == "its guard process was killed from outside"
    await process.ensure_ready()


async def test_a_killed_guard_fails_a_start_at_once(engines: Engines) -> None:
    process = engines.process(*SLOW)
    waiter = asyncio.create_task(process.ensure_ready())
    await until(lambda: bool(engines.pids()), "it runs")
    os.kill(nanny_of(engines.pids()[0]), signal.SIGKILL)
    with pytest.raises(StartFailed, match="guard"):
        await waiter


async def test_a_guard_that_hangs_is_killed_with_its_engine(engines: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("local_models.child.NANNY_MARGIN_S", 0.1)
    process = engines.process(stop_grace_s=0.1)
    await process.ensure_ready()
    os.kill(nanny_of(engines.pids()[0]), signal.SIGSTOP)
    await process.stop()
    await until(lambda: not engines.running(), "all are gone")


# Secrets and logs


async def test_the_key_is_in_no_command_line_and_no_log(engines: Engines) -> None:
    process = engines.process("--say", "my key is $TANDEM_WORKER_KEY, keep it", "--say", "Bearer $TANDEM_WORKER_KEY")
    address = await process.ensure_ready()
    pid = engines.pids()[0]
    for each in (pid, nanny_of(pid)):
        assert address.key not in " ".join(psutil.Process(each).cmdline())
    assert psutil.Process(pid).environ()["TANDEM_WORKER_KEY"] == address.key
    await process.stop()
    log = engines.log.read_text()
    assert address.key not in log
    assert "my key is ***, keep it" in log
    assert address.key not in repr(address)


async def test_a_log_is_new_for_each_start_and_the_last_one_is_kept(engines: Engines) -> None:
    process = engines.process("--say", "started as $TANDEM_START")
    await process.ensure_ready()
    await process.stop()
    first = engines.log.read_text()
    await process.ensure_ready()
    await process.stop()
    assert engines.log.with_name("fake.log.1").read_text() == first
    assert engines.log.stat().st_mode & 0o777 == 0o600


async def test_a_talkative_engine_does_not_fill_the_disk(engines: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("local_models.child.LOG_BYTES", 20_000)
    process = engines.process("--chatter", "1000", "--exit", "1")
    error = await failure_of(process)
    assert "no weights" in error.reason
    sizes = [file.stat().st_size for file in engines.log.parent.iterdir()]
    assert len(sizes) == 2
    assert LOG_BYTES > 20_000 >= sum(sizes) > 10_000


async def test_a_log_in_a_relative_folder_is_found_by_an_engine_that_runs_elsewhere(
    engines: Engines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("local_models.child.LOG_BYTES", 20_000)
    monkeypatch.chdir(tmp_path)

    def launch(port: int, key: str) -> Launch:
        return replace(launch_fake(port, key, "--chatter", "1000", "--exit", "1"), cwd=Path("/"))

    error = await failure_of(Process("fake", launch, log=Path("data/logs/fake.log")))
    assert "no weights" in error.reason
    assert len(list((tmp_path / "data" / "logs").iterdir())) == 2


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (2, "it ended with exit code 2"),
        (-11, "it was killed by SIGSEGV, 11"),
        (-9, "it was killed by SIGKILL, 9 (by a person, or by the system for lack of memory)"),
        (-99, "it was killed by an unknown signal, 99"),
    ],
)
def test_an_exit_in_words(status: int, words: str) -> None:
    assert exit_words(status) == words


# Everything at once


@pytest.mark.parametrize("seed", range(2))
async def test_whatever_is_asked_in_whatever_order_there_is_one_child_at_most(engines: Engines, seed: int) -> None:
    """Callers, cancelled callers, stops, kills from outside, all racing: each caller gets an address or an error of ours, and in time."""
    choice = random.Random(seed)
    process = engines.process(
        "--load-s", "0.02", "--steps", "1", restarts=RestartPolicy(max_restarts=10**6, first_delay_s=0.001, longest_delay_s=0.01)
    )
    outcomes: list[str] = []

    async def call() -> None:
        try:
            await process.ensure_ready()
            outcomes.append("ready")
        except EngineError as error:
            outcomes.append(type(error).__name__)
        assert len(engines.running()) <= 1

    async def disturb() -> None:
        await asyncio.sleep(choice.random() * 0.3)
        match choice.randrange(3):
            case 0:
                await process.stop()
            case 1:
                process.request_stop()
            case _:
                for pid in engines.running():
                    os.kill(pid, signal.SIGKILL)

    callers = [asyncio.create_task(call()) for _ in range(20)]
    disturbances: list[asyncio.Task[None]] = []
    for _ in range(20):
        disturbances.append(asyncio.create_task(disturb()))
        callers += [asyncio.create_task(call()) for _ in range(choice.randrange(3))]
        if choice.random() < 0.3:
            choice.choice(callers).cancel()
        await asyncio.sleep(choice.random() * 0.05)
        if choice.random() < 0.5:
            await disturbances[-1]
    async with asyncio.timeout(20):
        results = await asyncio.gather(*callers, return_exceptions=True)
    assert {type(result) for result in results} <= {type(None), asyncio.CancelledError}
    assert set(outcomes) <= {"ready", "StartFailed"}
    await asyncio.gather(*disturbances)
    await process.ensure_ready()
    await process.stop()
    assert process.status().state == "stopped"


# Ends of the world


async def test_twenty_lives_leak_neither_descriptors_nor_processes(engines: Engines) -> None:
    me = psutil.Process()
    process = engines.process()
    await process.ensure_ready()
    await process.stop()
    descriptors, tasks = me.num_fds(), len(asyncio.all_tasks())
    for _ in range(20):
        await process.ensure_ready()
        await process.stop()
    assert me.num_fds() == descriptors
    assert len(asyncio.all_tasks()) == tasks
    assert me.children() == []


def test_the_end_of_the_event_loop_is_the_end_of_the_child(tmp_path: Path) -> None:
    engines = Engines(tmp_path)

    async def leave_without_a_stop() -> None:
        await engines.process("--descendants", "group").ensure_ready()

    asyncio.run(leave_without_a_stop())
    assert len(engines.pids()) == 3
    wait_for(lambda: not engines.running(), "all are gone")
    assert engines.made[0].status().state == "failed"


def test_it_works_on_uvloop(tmp_path: Path) -> None:
    engines = Engines(tmp_path)

    async def live() -> None:
        process = engines.process("--descendants", "group")
        await ask(await process.ensure_ready(), "/crash?code=1")
        await until_state(process, "failed")
        await process.ensure_ready()
        await process.stop()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(live())
    assert len(engines.pids()) == 6
    assert engines.running() == []
