"""One memory budget over real processes: engines that take each other's place, and what may happen meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest

from config.hardware import Gpu
from local_models.errors import EngineError, GivenUp, NoMemory, RuntimeClosed, StartFailed
from local_models.launch import EngineSpec, Launch
from local_models.need import MemoryRules
from local_models.process import Address
from local_models.runtime import Runtime
from tests.local_models.conftest import ask, is_running, launch_fake, until

GIB = 2**30
ONE = MemoryRules({"cpu": 10 * GIB}, wait_s=60)
A = EngineSpec(engine_id="here:a", kind="transformers", model="a", served_model_name="a", device="cpu", start_timeout_s=20, memory=8 * GIB)
B = replace(A, engine_id="here:b")


@dataclass
class Machine:
    """A runtime whose engines are fakes, and the processes that each of them has started."""

    runtime: Runtime
    folder: Path

    def pids(self, spec: EngineSpec) -> list[int]:
        file = self.folder / f"{spec.engine_id}.pids"
        return [int(line) for line in file.read_text().split()] if file.exists() else []

    def is_loaded(self, spec: EngineSpec) -> bool:
        return any(is_running(pid) for pid in self.pids(spec))

    def all_running(self) -> list[int]:
        return [pid for file in self.folder.glob("*.pids") for pid in map(int, file.read_text().split()) if is_running(pid)]

    async def use(self, spec: EngineSpec) -> None:
        """A request that is answered. Looks at the processes while it has the engine."""
        async with self.runtime.lease(spec.engine_id) as lease:
            assert b"200" in await ask(Address(lease.host, lease.port, lease.key), "/")
            assert [is_running(pid) for pid in self.pids(spec)].count(True) == 1


@pytest.fixture
async def machine_of(tmp_path: Path) -> AsyncIterator[Callable[..., Machine]]:
    made: list[Machine] = []

    def build(*specs: EngineSpec, memory: MemoryRules = ONE) -> Machine:
        def launch(spec: EngineSpec, port: int, key: str) -> Launch:
            return launch_fake(port, key, "--pids", str(tmp_path / f"{spec.engine_id}.pids"), *spec.args)

        runtime = Runtime({spec.engine_id: spec for spec in specs}, data_dir=tmp_path, launch=launch, memory=memory)
        made.append(Machine(runtime, tmp_path))
        return made[-1]

    yield build
    for machine in made:
        await machine.runtime.close()
        assert machine.all_running() == []


async def hold(machine: Machine, spec: EngineSpec, until_set: asyncio.Event) -> None:
    async with machine.runtime.lease(spec.engine_id):
        await until_set.wait()


async def waits(machine: Machine, spec: EngineSpec, count: int = 1) -> None:
    await until(lambda: machine.runtime.status(spec.engine_id).waiting == count, f"{count} wait for {spec.engine_id}")


async def test_two_engines_and_memory_for_one_alternating_requests_of_four_clients(machine_of: Callable[..., Machine]) -> None:
    machine, served, both = machine_of(A, B), list[str](), list[tuple[list[int], list[int]]]()

    async def client(number: int) -> None:
        for turn in range(20):
            spec = (A, B)[(number + turn) % 2]
            await machine.use(spec)
            served.append(spec.engine_id)

    async def look() -> None:
        while True:
            running = [[pid for pid in machine.pids(spec) if is_running(pid)] for spec in (A, B)]
            if all(running):
                both.append((running[0], running[1]))
            await asyncio.sleep(0.002)

    looking = asyncio.create_task(look())
    async with asyncio.timeout(100):
        await asyncio.gather(*(client(number) for number in range(4)))
    looking.cancel()
    assert both == []
    assert {spec: served.count(spec) for spec in ("here:a", "here:b")} == {"here:a": 40, "here:b": 40}
    swaps = len(machine.pids(A)) + len(machine.pids(B))
    assert 2 <= swaps <= 80
    assert machine.runtime.status("here:a").restarts == machine.runtime.status("here:b").restarts == 0


async def test_a_stream_of_requests_does_not_keep_another_engine_out(machine_of: Callable[..., Machine]) -> None:
    machine, wanted = machine_of(A, B), True

    async def busy() -> None:
        while wanted:
            await machine.use(A)

    streams = [asyncio.create_task(busy()) for _ in range(3)]
    await until(lambda: machine.is_loaded(A), "the first engine runs")
    async with asyncio.timeout(20):
        await machine.use(B)
    wanted = False
    await asyncio.gather(*streams)


async def test_an_engine_holds_what_it_takes_until_its_process_is_gone(machine_of: Callable[..., Machine]) -> None:
    machine = machine_of(replace(A, args=("--stubborn",)), B)
    await machine.use(A)
    status = machine.runtime.status("here:a")
    assert (status.memory, status.waiting, status.waits_for) == ({"cpu": 8 * GIB}, 0, None)
    using_b = asyncio.create_task(machine.use(B))
    await waits(machine, B)
    assert machine.is_loaded(A), "it ignores SIGTERM"
    assert not machine.is_loaded(B)
    told = machine.runtime.status("here:b").waits_for
    assert told == "it takes 8.0 GiB of cpu; here:a holds 8.0 GiB of 10.0 GiB on cpu and is being stopped"
    assert machine.runtime.status("here:b").memory == {}
    await using_b
    assert not machine.is_loaded(A)
    assert machine.runtime.status("here:a").memory == {}


async def test_a_wait_for_a_busy_engine_ends_with_who_holds_the_memory(machine_of: Callable[..., Machine]) -> None:
    machine = machine_of(A, B, memory=replace(ONE, wait_s=0.1))
    async with machine.runtime.lease("here:a"):
        with pytest.raises(NoMemory, match=r"here:a holds 8.0 GiB of 10.0 GiB on cpu and answers 1 request; it waited 0.1 s"):
            await machine.use(B)
        await machine.use(A)
    assert len(machine.pids(A)) == 1


async def test_a_pinned_engine_stays(machine_of: Callable[..., Machine]) -> None:
    machine = machine_of(replace(A, pinned=True), B)
    await machine.use(A)
    with pytest.raises(NoMemory, match=r"here:a holds 8.0 GiB of 10.0 GiB on cpu and is pinned"):
        await machine.use(B)
    assert machine.is_loaded(A)
    await machine.runtime.stop("here:a")
    await machine.use(B)


async def test_a_cancelled_wait_leaves_the_engine_in_its_way_alone(machine_of: Callable[..., Machine]) -> None:
    machine, done = machine_of(A, B), asyncio.Event()
    holder = asyncio.create_task(hold(machine, A, done))
    await until(lambda: machine.is_loaded(A), "the first engine runs")
    waiting = asyncio.create_task(machine.use(B))
    await waits(machine, B)
    waiting.cancel()
    with suppress(asyncio.CancelledError):
        await waiting
    await machine.use(A)
    done.set()
    await holder
    assert machine.runtime.status("here:b").leases == machine.runtime.status("here:b").waiting == 0
    assert (len(machine.pids(A)), machine.pids(B)) == (1, [])


async def test_the_crash_of_an_engine_makes_room(machine_of: Callable[..., Machine]) -> None:
    machine, done = machine_of(A, B), asyncio.Event()
    holder = asyncio.create_task(hold(machine, A, done))
    await until(lambda: machine.runtime.status("here:a").state == "ready", "the first engine serves")
    using_b = asyncio.create_task(machine.use(B))
    await waits(machine, B)
    psutil.Process(machine.pids(A)[0]).kill()
    await using_b
    done.set()
    await holder


async def test_an_engine_that_dies_while_it_is_stopped_for_another(machine_of: Callable[..., Machine]) -> None:
    machine = machine_of(replace(A, args=("--stubborn",)), B)
    await machine.use(A)
    using_b = asyncio.create_task(machine.use(B))
    await waits(machine, B)
    psutil.Process(machine.pids(A)[0]).kill()
    await using_b
    await machine.use(A)
    assert machine.runtime.status("here:a").restarts == 0, "it was asked to go"


async def test_a_failed_start_gives_its_memory_back_and_one_given_up_takes_nobody_s_place(machine_of: Callable[..., Machine]) -> None:
    machine = machine_of(A, replace(B, args=("--exit", "3"), max_restarts=0))
    await machine.use(A)
    with pytest.raises(StartFailed):
        await machine.use(B)
    await machine.use(A)
    with pytest.raises(GivenUp):
        await machine.use(B)
    assert len(machine.pids(A)) == 2, "stopped for the start that failed, and not for the one that was refused"


async def test_a_start_whose_caller_left_goes_on_and_gives_way(machine_of: Callable[..., Machine]) -> None:
    machine = machine_of(replace(A, args=("--load-s", "600")), B)
    starting = asyncio.create_task(machine.use(A))
    await until(lambda: machine.is_loaded(A), "it loads")
    starting.cancel()
    await machine.use(B)
    assert not machine.is_loaded(A)


async def test_a_changed_engine_and_a_changed_budget(machine_of: Callable[..., Machine]) -> None:
    machine, done = machine_of(A, B), asyncio.Event()
    holder = asyncio.create_task(hold(machine, A, done))
    await until(lambda: machine.runtime.status("here:a").state == "ready", "the first engine serves")
    changed = replace(A, memory=2 * GIB)
    machine.runtime.reconfigure({spec.engine_id: spec for spec in (changed, B)})
    using = [asyncio.create_task(machine.use(spec)) for spec in (changed, B)]
    await waits(machine, B)
    done.set()
    await asyncio.gather(holder, *using)
    machine.runtime.reconfigure({spec.engine_id: spec for spec in (changed, B)}, MemoryRules({"cpu": 7 * GIB}))
    await machine.use(changed)
    await machine.runtime.stop("here:b")
    with pytest.raises(NoMemory, match=r"engines may take 7.0 GiB together"):
        await machine.use(B)


async def test_an_engine_that_left_the_configuration_counts_until_it_is_gone(machine_of: Callable[..., Machine]) -> None:
    machine, done = machine_of(A, B), asyncio.Event()
    holder = asyncio.create_task(hold(machine, A, done))
    await until(lambda: machine.runtime.status("here:a").state == "ready", "the first engine serves")
    machine.runtime.reconfigure({B.engine_id: B})
    using_b = asyncio.create_task(machine.use(B))
    await waits(machine, B)
    assert not machine.is_loaded(B)
    done.set()
    await asyncio.gather(holder, using_b)
    assert not machine.is_loaded(A)


async def test_closing_refuses_those_who_wait_for_memory(machine_of: Callable[..., Machine]) -> None:
    machine, done = machine_of(A, B), asyncio.Event()
    holder = asyncio.create_task(hold(machine, A, done))
    await until(lambda: machine.is_loaded(A), "the first engine runs")
    waiting = asyncio.create_task(machine.use(B))
    await waits(machine, B)
    await machine.runtime.close()
    with pytest.raises(RuntimeClosed):
        await waiting
    done.set()
    with suppress(EngineError):
        await holder


async def test_a_gpu_has_a_budget_by_itself_and_other_devices_have_none(machine_of: Callable[..., Machine], tmp_path: Path) -> None:
    def launch(spec: EngineSpec, port: int, key: str) -> Launch:
        return launch_fake(port, key)

    chat, draw = replace(A, kind="vllm", device="auto", memory=None), replace(B, kind="diffusers", device="auto", memory=3 * GIB)
    near = replace(A, engine_id="here:cpu", memory=900 * GIB)
    engines = {spec.engine_id: spec for spec in (chat, draw, near)}
    runtime = Runtime(engines, data_dir=tmp_path, launch=launch, gpus=[Gpu(0, "A", 24 * GIB, 24 * GIB)])
    async with runtime.lease(near.engine_id):
        async with runtime.lease(chat.engine_id):
            assert runtime.status(chat.engine_id).memory == {"cuda:0": int(24 * GIB * 0.92)}
        async with runtime.lease(draw.engine_id):
            assert runtime.status(chat.engine_id).state == "stopped"
            assert runtime.status(near.engine_id).state == "ready"
    await runtime.close()
