from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from local_models.errors import EngineLost, GivenUp, RuntimeClosed, StartFailed, UnknownEngine
from local_models.launch import EngineSpec, Launch
from local_models.process import Address
from local_models.runtime import Lease, Runtime
from tests.local_models.conftest import Engines, ask, launch_fake, until

SPEC = EngineSpec(engine_id="here:one", kind="transformers", model="one", served_model_name="one", start_timeout_s=20)


@dataclass
class Fakes:
    """A runtime whose engines are fakes, started with the `args` of their specs."""

    runtime: Runtime
    engines: Engines


@pytest.fixture
async def fakes_of(tmp_path: Path) -> AsyncIterator[Callable[..., Fakes]]:
    made: list[Fakes] = []

    def build(*specs: EngineSpec) -> Fakes:
        engines = Engines(tmp_path)

        def launch(spec: EngineSpec, port: int, key: str) -> Launch:
            return launch_fake(port, key, "--pids", str(engines.pids_file), *spec.args)

        made.append(Fakes(Runtime({spec.engine_id: spec for spec in specs}, data_dir=tmp_path, launch=launch), engines))
        return made[-1]

    yield build
    for fakes in made:
        await fakes.runtime.close()
        assert fakes.engines.running() == []


async def crash(lease: Lease) -> None:
    await ask(Address(lease.host, lease.port, lease.key), "/crash?code=1")


async def test_a_lease_starts_the_engine_and_says_where_it_is(fakes_of: Callable[..., Fakes]) -> None:
    runtime = fakes_of(SPEC).runtime
    assert runtime.status("here:one").state == "stopped"
    async with runtime.lease("here:one") as lease:
        assert b"200" in await ask(Address(lease.host, lease.port, lease.key), "/")
        assert lease.engine_id == "here:one"
        assert lease.key not in repr(lease)
        status = runtime.status("here:one")
        assert (status.state, status.leases) == ("ready", 1)
    assert runtime.status("here:one").leases == 0
    assert status.log.exists()


async def test_leases_share_one_engine_and_are_counted(fakes_of: Callable[..., Fakes]) -> None:
    fakes = fakes_of(SPEC)
    async with fakes.runtime.lease("here:one"), fakes.runtime.lease("here:one"):
        assert fakes.runtime.status("here:one").leases == 2
    assert fakes.runtime.status("here:one").leases == 0
    assert len(fakes.engines.pids()) == 1


async def test_a_lease_ends_with_an_error_of_its_holder_too(fakes_of: Callable[..., Fakes]) -> None:
    runtime = fakes_of(SPEC).runtime
    with pytest.raises(ZeroDivisionError):
        async with runtime.lease("here:one"):
            raise ZeroDivisionError
    assert runtime.status("here:one").leases == 0


async def test_a_caller_who_stops_waiting_gives_the_lease_back_and_the_start_goes_on(fakes_of: Callable[..., Fakes]) -> None:
    runtime = fakes_of(replace(SPEC, args=("--load-s", "0.2"))).runtime
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05), runtime.lease("here:one"):
            pass
    assert runtime.status("here:one").leases == 0
    await until(lambda: runtime.status("here:one").state == "ready", "the start goes on")


async def test_a_waiting_caller_counts_and_sees_progress(fakes_of: Callable[..., Fakes]) -> None:
    runtime = fakes_of(replace(SPEC, args=("--load-s", "600"))).runtime
    waiter = asyncio.create_task(runtime.lease("here:one").__aenter__())
    await until(lambda: runtime.status("here:one").progress == 0.0, "progress is seen")
    status = runtime.status("here:one")
    assert (status.state, status.stage, status.leases) == ("starting", "step 0", 1)
    await runtime.stop("here:one")
    with pytest.raises(StartFailed, match="stopped while it was starting"):
        await waiter
    assert runtime.status("here:one").leases == 0


async def test_an_idle_engine_is_unloaded_and_comes_back(fakes_of: Callable[..., Fakes]) -> None:
    fakes = fakes_of(replace(SPEC, idle_unload_s=0.05))
    async with fakes.runtime.lease("here:one"):
        pass
    assert fakes.runtime.status("here:one").state == "ready"
    await until(lambda: fakes.runtime.status("here:one").state == "stopped", "it is unloaded")
    assert fakes.engines.running() == []
    async with fakes.runtime.lease("here:one"):
        assert len(fakes.engines.pids()) == 2


async def test_a_busy_engine_is_never_unloaded(fakes_of: Callable[..., Fakes]) -> None:
    runtime = fakes_of(replace(SPEC, idle_unload_s=0.02)).runtime
    async with runtime.lease("here:one"):
        async with runtime.lease("here:one"):
            pass
        await asyncio.sleep(0.1)
        assert runtime.status("here:one").state == "ready"
    async with runtime.lease("here:one"):
        await asyncio.sleep(0.1)
        assert runtime.status("here:one").state == "ready"


async def test_a_lease_at_the_moment_of_the_unload_gets_a_new_engine(fakes_of: Callable[..., Fakes]) -> None:
    fakes = fakes_of(replace(SPEC, idle_unload_s=0.01))
    async with fakes.runtime.lease("here:one") as first:
        pass
    await until(lambda: fakes.runtime.status("here:one").state == "stopping", "the unload has begun")
    async with fakes.runtime.lease("here:one") as second:
        assert second.key != first.key
        assert len(fakes.engines.running()) == 1


async def test_the_end_of_an_engine_is_noticed_by_a_holder_and_its_life_is_not_mistaken_for_it(fakes_of: Callable[..., Fakes]) -> None:
    runtime = fakes_of(SPEC).runtime
    async with runtime.lease("here:one") as lease:
        assert not await runtime.notice_end(lease, 0.01)
        await crash(lease)
        assert await runtime.notice_end(lease, 10)
    async with runtime.lease("here:one") as another:
        assert another.port != lease.port or another.key != lease.key
        assert await runtime.notice_end(lease, 0.01), "the old one has ended, whatever the new one does"
        assert not await runtime.notice_end(another, 0.01)


async def test_an_engine_that_crashed_under_a_lease_is_started_by_the_next(fakes_of: Callable[..., Fakes]) -> None:
    runtime = fakes_of(SPEC).runtime
    async with runtime.lease("here:one") as first:
        await crash(first)
        await until(lambda: runtime.status("here:one").state == "failed", "the crash is noticed")
        async with runtime.lease("here:one") as second:
            assert second.key != first.key
    status = runtime.status("here:one")
    assert (status.state, status.restarts, status.leases) == ("ready", 1, 0)


async def test_an_engine_given_up_says_so_until_it_is_reset(fakes_of: Callable[..., Fakes], tmp_path: Path) -> None:
    runtime = fakes_of(replace(SPEC, args=("--exit-once", str(tmp_path / "once")), max_restarts=0)).runtime
    for expected in (StartFailed, GivenUp):
        with pytest.raises(expected, match="no weights"):
            async with runtime.lease("here:one"):
                pass
    assert "given up" in (runtime.status("here:one").reason or "")
    runtime.reset("here:one")
    async with runtime.lease("here:one"):
        assert runtime.status("here:one").reason is None


async def test_stopping_a_leased_engine_stops_it(fakes_of: Callable[..., Fakes]) -> None:
    fakes = fakes_of(SPEC)
    async with fakes.runtime.lease("here:one"):
        await fakes.runtime.stop("here:one")
        assert fakes.engines.running() == []


async def test_closing_stops_all_engines_at_once(fakes_of: Callable[..., Fakes]) -> None:
    stubborn = [replace(SPEC, engine_id=f"here:{number}", args=("--stubborn",)) for number in range(3)]
    starting = replace(SPEC, engine_id="here:slow", args=("--load-s", "600"))
    fakes = fakes_of(*stubborn, starting)
    waiter = asyncio.create_task(fakes.runtime.lease("here:slow").__aenter__())
    async with fakes.runtime.lease("here:0"), fakes.runtime.lease("here:1"), fakes.runtime.lease("here:2"):
        await until(lambda: len(fakes.engines.running()) == 4, "all run")
    states: set[tuple[str, ...]] = set()
    closing = asyncio.create_task(fakes.runtime.close())
    while not closing.done():
        states.add(tuple(fakes.runtime.status(f"here:{number}").state for number in range(3)))
        await asyncio.sleep(0.01)
    assert ("stopping", "stopping", "stopping") in states
    assert fakes.engines.running() == []
    with pytest.raises(RuntimeClosed):
        await waiter


async def test_a_closed_runtime_refuses(fakes_of: Callable[..., Fakes]) -> None:
    runtime = fakes_of(replace(SPEC, idle_unload_s=0.01)).runtime
    async with runtime.lease("here:one"):
        await runtime.close()
    with pytest.raises(RuntimeClosed, match="here:one"):
        async with runtime.lease("here:one"):
            pass
    await runtime.close()


async def test_an_unknown_engine_names_the_known_ones(fakes_of: Callable[..., Fakes]) -> None:
    runtime = fakes_of(SPEC, replace(SPEC, engine_id="here:two")).runtime
    with pytest.raises(UnknownEngine, match="engine 'three' does not exist: the configured ones are here:one, here:two"):
        runtime.status("three")
    with pytest.raises(UnknownEngine):
        runtime.lease("three")
    assert sorted(runtime.engines()) == ["here:one", "here:two"]


def test_a_runtime_is_made_without_an_event_loop_and_without_touching_the_disk(tmp_path: Path) -> None:
    Runtime({"here:one": SPEC}, data_dir=tmp_path / "data")
    assert not (tmp_path / "data").exists()


async def test_an_engine_that_stays_as_it_is_goes_on_undisturbed(fakes_of: Callable[..., Fakes]) -> None:
    fakes = fakes_of(SPEC)
    async with fakes.runtime.lease("here:one") as lease:
        fakes.runtime.reconfigure({SPEC.engine_id: SPEC, "other": replace(SPEC, engine_id="other")})
        async with fakes.runtime.lease("here:one") as again:
            assert again == lease
    assert len(fakes.engines.pids()) == 1


async def test_an_engine_that_is_gone_ends_with_its_last_lease(fakes_of: Callable[..., Fakes]) -> None:
    fakes = fakes_of(SPEC)
    async with fakes.runtime.lease("here:one") as lease:
        fakes.runtime.reconfigure({})
        with pytest.raises(UnknownEngine):
            async with fakes.runtime.lease("here:one"):
                pass
        assert b"200" in await ask(Address(lease.host, lease.port, lease.key), "/")
        assert not await fakes.runtime.notice_end(lease, 0)
    await until(lambda: fakes.engines.running() == [], "the engine has ended")


async def test_a_changed_engine_starts_when_the_one_before_it_has_ended(fakes_of: Callable[..., Fakes]) -> None:
    fakes = fakes_of(SPEC)
    changed = replace(SPEC, device="cpu")
    first = fakes.runtime.lease("here:one")
    await first.__aenter__()
    fakes.runtime.reconfigure({SPEC.engine_id: replace(SPEC, device="mps")})
    fakes.runtime.reconfigure({SPEC.engine_id: changed})
    second = asyncio.create_task(_lease_once(fakes.runtime))
    await asyncio.sleep(0.1)
    assert len(fakes.engines.pids()) == 1
    await first.__aexit__(None, None, None)
    await second
    assert len(fakes.engines.pids()) == 2
    assert len(fakes.engines.running()) == 1
    assert fakes.runtime.engines()["here:one"] == changed


async def _lease_once(runtime: Runtime) -> None:
    async with runtime.lease("here:one"):
        pass


async def test_closing_ends_engines_that_wait_to_leave(fakes_of: Callable[..., Fakes]) -> None:
    fakes = fakes_of(SPEC)
    lease = fakes.runtime.lease("here:one")
    await lease.__aenter__()
    fakes.runtime.reconfigure({})
    await fakes.runtime.close()
    assert fakes.engines.running() == []
    await lease.__aexit__(None, None, None)


async def test_the_note_of_a_launch_is_the_first_line_of_the_log(tmp_path: Path) -> None:
    engines = Engines(tmp_path)

    def launch(spec: EngineSpec, port: int, key: str) -> Launch:
        return replace(launch_fake(port, key, "--pids", str(engines.pids_file)), note="Tandem's plan: a small one")

    runtime = Runtime({"here:one": SPEC}, data_dir=tmp_path, launch=launch)
    try:
        async with runtime.lease("here:one"):
            assert runtime.status("here:one").log.read_text().splitlines()[0] == "Tandem's plan: a small one"
    finally:
        await runtime.close()


async def use(runtime: Runtime) -> str:
    async with runtime.lease("here:one") as lease:
        return lease.engine_id


async def test_a_launch_that_takes_its_time_keeps_nobody_waiting(tmp_path: Path) -> None:
    engines, go = Engines(tmp_path), threading.Event()

    def launch(spec: EngineSpec, port: int, key: str) -> Launch:
        assert go.wait(10)
        return launch_fake(port, key, "--pids", str(engines.pids_file))

    runtime = Runtime({"here:one": SPEC}, data_dir=tmp_path, launch=launch)
    try:
        used = asyncio.create_task(use(runtime))
        await until(lambda: runtime.status("here:one").state == "starting", "starting")  # the loop goes on while it looks
        go.set()
        assert await used == "here:one"
    finally:
        go.set()
        await runtime.close()


async def test_a_load_starts_it_for_nobody_and_ends_when_it_is_ready(fakes_of: Callable[..., Fakes]) -> None:
    runtime = fakes_of(replace(SPEC, args=("--load-s", "0.2"))).runtime
    loading = runtime.load("here:one")
    await asyncio.sleep(0)
    assert runtime.status("here:one").state == "starting"
    await loading
    assert (runtime.status("here:one").state, runtime.status("here:one").leases) == ("ready", 0)


async def test_a_load_whose_caller_left_goes_on_and_its_failure_is_in_the_status(fakes_of: Callable[..., Fakes]) -> None:
    runtime = fakes_of(replace(SPEC, args=("--exit", "1"))).runtime
    runtime.load("here:one")
    await until(lambda: runtime.status("here:one").state == "failed", "the start fails")
    assert "no weights in /nowhere" in (runtime.status("here:one").reason or "")
    with pytest.raises(StartFailed):
        await runtime.load("here:one")


async def test_a_load_tries_one_again_that_was_given_up(fakes_of: Callable[..., Fakes], tmp_path: Path) -> None:
    runtime = fakes_of(replace(SPEC, max_restarts=0, args=("--exit-once", str(tmp_path / "once")))).runtime
    with pytest.raises(StartFailed):
        await runtime.load("here:one")
    with pytest.raises(GivenUp):
        async with runtime.lease("here:one"):
            pass
    await runtime.load("here:one")
    assert runtime.status("here:one").state == "ready"


async def test_an_unload_waits_for_those_who_use_it_and_later_ones_wait_for_the_unload(fakes_of: Callable[..., Fakes]) -> None:
    fakes = fakes_of(SPEC)
    entered = asyncio.Event()

    async def later() -> str:
        async with fakes.runtime.lease("here:one") as lease:
            entered.set()
            return lease.key

    async with fakes.runtime.lease("here:one") as first:
        unloading = fakes.runtime.unload("here:one", 600)
        assert fakes.runtime.unload("here:one", 0) is unloading, "the second joins the first"
        waiter = asyncio.create_task(later())
        assert b"200" in await ask(Address(first.host, first.port, first.key), "/")
        assert not unloading.done()
        assert not entered.is_set()
    await unloading
    assert await waiter != first.key
    assert len(fakes.engines.pids()) == 2


async def test_an_unload_waits_no_longer_than_it_may(fakes_of: Callable[..., Fakes]) -> None:
    fakes = fakes_of(SPEC)
    async with fakes.runtime.lease("here:one") as lease:
        await fakes.runtime.unload("here:one", 0.01)
        assert fakes.engines.running() == []
        lost = await fakes.runtime.notice_end(lease, 0)
        assert isinstance(lost, EngineLost)
        assert "stopped" in lost.reason
    assert fakes.runtime.status("here:one").state == "stopped"


async def test_an_unload_of_one_that_nobody_uses_stops_it_even_while_it_starts(fakes_of: Callable[..., Fakes]) -> None:
    fakes = fakes_of(replace(SPEC, args=("--load-s", "600")))
    waiter = asyncio.create_task(fakes.runtime.lease("here:one").__aenter__())
    await until(lambda: fakes.runtime.status("here:one").progress is not None, "it loads")
    waiter.cancel()
    await asyncio.gather(waiter, return_exceptions=True)
    await fakes.runtime.unload("here:one", 600)
    assert fakes.engines.running() == []


async def test_a_closed_runtime_ends_the_loads_and_unloads_under_way(fakes_of: Callable[..., Fakes]) -> None:
    runtime = fakes_of(replace(SPEC, args=("--load-s", "600"))).runtime
    loading = runtime.load("here:one")
    await asyncio.sleep(0)
    unloading = runtime.unload("here:one", 600)
    await runtime.close()
    assert loading.done()
    assert unloading.done()


async def test_only_engines_that_exist_are_loaded_and_unloaded(fakes_of: Callable[..., Fakes]) -> None:
    runtime = fakes_of(SPEC).runtime
    with pytest.raises(UnknownEngine):
        runtime.load("here:two")
    with pytest.raises(UnknownEngine):
        runtime.unload("here:two", 0)
