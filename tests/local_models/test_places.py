"""Places in a device's memory: order, bounds and what is left behind, with occupants that are scripted instead of processes."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from local_models.errors import EngineError, NoMemory, StartFailed
from local_models.places import Place, Places

GIB = 2**30


@dataclass
class Occupant:
    """A process that starts at once, and is gone when the test says so, or at once with `quick`."""

    quick: bool = True
    alive: bool = False
    stopping: bool = False
    refused: EngineError | None = None
    stops: int = 0
    on_end: list[Callable[[], None]] = field(default_factory=list)

    def refusal(self) -> EngineError | None:
        return self.refused

    def request_stop(self) -> None:
        self.stops += 1
        self.stopping = True
        if self.quick:
            asyncio.get_running_loop().call_soon(self.end)

    def end(self) -> None:
        self.alive = self.stopping = False
        for call in self.on_end:
            call()


class Device:
    """One device of 10 GiB, and engines that want a part of it."""

    def __init__(self, wait_s: float = 20.0, **sizes: int) -> None:
        self.places = Places({"gpu": 10 * GIB}, wait_s)
        self.occupants = {name: Occupant() for name in sizes}
        self.of = {name: Place(name, self.occupants[name], lambda size=size: {"gpu": size * GIB}) for name, size in sizes.items()}  # type: ignore[misc]
        for name, place in self.of.items():
            self.occupants[name].on_end.append(self.places.look_again)
            self.places.add(place)

    def held(self) -> set[str]:
        return {name for name, place in self.of.items() if place.is_held}

    @asynccontextmanager
    async def using(self, name: str) -> AsyncIterator[None]:
        async with self.places.visit(self.of[name]) as is_ready:
            occupant = self.occupants[name]
            while occupant.stopping:  # as Process.ensure_ready does
                await asyncio.sleep(0)
            occupant.alive = True
            is_ready()
            assert sum(sum(place.memory.values()) for place in self.of.values() if place.is_held) <= 10 * GIB
            yield


async def turns(count: int = 10) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


class Client:
    """A request in a task of its own: `done` lets it end."""

    def __init__(self, device: Device, name: str, order: list[str] | None = None, label: str = "") -> None:
        self.served, self.done = asyncio.Event(), asyncio.Event()
        self.task = asyncio.create_task(self._run(device, name, order if order is not None else [], label or name))

    async def _run(self, device: Device, name: str, order: list[str], label: str) -> None:
        async with device.using(name):
            order.append(label)
            self.served.set()
            await self.done.wait()

    async def end(self) -> None:
        self.done.set()
        await self.task


async def test_what_fits_together_runs_together() -> None:
    device = Device(a=4, b=6)
    async with device.using("a"), device.using("b"):
        assert device.held() == {"a", "b"}
    assert device.held() == {"a", "b"}, "idle engines stay until somebody needs their place"


async def test_an_idle_engine_leaves_for_another_and_comes_back() -> None:
    device = Device(a=6, b=6)
    for name in ("a", "b", "a"):
        async with device.using(name):
            assert device.held() == {name}
    assert device.occupants["a"].stops == device.occupants["b"].stops == 1


async def test_the_engine_whose_last_use_is_longest_ago_leaves() -> None:
    device = Device(a=4, b=4, c=4)
    long = Client(device, "a")
    await long.served.wait()
    async with device.using("b"):
        pass
    await long.end()
    async with device.using("c"):
        assert device.held() == {"a", "c"}


async def test_memory_counts_until_the_process_is_really_gone() -> None:
    device = Device(a=6, b=6)
    device.occupants["a"].quick = False
    async with device.using("a"):
        pass
    waiting = Client(device, "b")
    await turns()
    assert device.occupants["a"].stopping
    assert not waiting.served.is_set()
    device.occupants["a"].end()
    await waiting.end()
    assert device.held() == {"b"}


async def test_a_busy_engine_is_not_stopped_and_its_later_requests_wait_behind_the_one_that_waits_for_it() -> None:
    device, order = Device(a=6, b=6), list[str]()
    first = Client(device, "a", order, "a1")
    await first.served.wait()
    other = Client(device, "b", order, "b1")
    await turns()
    later = Client(device, "a", order, "a2")
    await turns()
    assert order == ["a1"]
    assert device.occupants["a"].stops == 0
    await first.end()
    await other.served.wait()
    await turns()
    assert order == ["a1", "b1"]
    await other.end()
    await later.end()
    assert order == ["a1", "b1", "a2"]


async def test_all_who_wait_for_an_engine_when_it_gets_its_place_go_together() -> None:
    device, order = Device(a=6, b=6), list[str]()
    first = Client(device, "a", order, "a1")
    await first.served.wait()
    clients = {}
    for label in ("b1", "a2", "b2"):
        clients[label] = Client(device, label[0], order, label)
        await turns()
    await first.end()
    await turns()
    assert order == ["a1", "b1", "b2"]
    clients["b3"] = Client(device, "b", order, "b3")
    await turns()
    assert order == ["a1", "b1", "b2"], "who comes later waits behind a2"
    for label in ("b1", "b2", "a2", "b3"):
        await clients[label].end()
    assert order[3:] == ["a2", "b3"]


async def test_those_who_need_nothing_that_others_wait_for_are_not_held_up() -> None:
    device, order = Device(a=6, b=6, small=2), list[str]()
    small = Client(device, "small", order)
    first = Client(device, "a", order)
    await first.served.wait()
    waiting = Client(device, "b", order)
    await turns()
    assert not waiting.served.is_set()
    async with asyncio.timeout(5), device.using("small"):
        pass
    for client in (first, waiting, small):
        await client.end()


async def test_a_wait_is_bounded_and_says_who_is_in_the_way() -> None:
    device = Device(wait_s=0.05, a=6, b=8)
    async with device.using("a"):
        with pytest.raises(NoMemory) as caught:
            async with device.using("b"):
                pass
        assert str(caught.value) == (
            "engine 'b' has no memory to run in: it takes 8.0 GiB of gpu; "
            "a holds 6.0 GiB of 10.0 GiB on gpu and answers 1 request; it waited 0.05 s"
        )
        assert caught.value.retry_after_s
        assert device.places.waiting(device.of["b"]) == 0
        async with device.using("a"):
            pass


async def test_who_waits_behind_others_is_told_so() -> None:
    device = Device(a=6, b=6)
    first = Client(device, "a")
    await first.served.wait()
    other, later = Client(device, "b"), Client(device, "a")
    await turns()
    assert device.places.waiting(device.of["a"]) == 1
    assert device.places.in_the_way(device.of["a"]) == "others, who came before, wait for its place"
    for client in (first, other, later):
        await client.end()


async def test_what_never_fits_is_refused_at_once() -> None:
    device = Device(a=11, b=6, c=6)
    with pytest.raises(NoMemory, match=r"takes 11.0 GiB of gpu, where engines may take 10.0 GiB") as caught:
        async with device.using("a"):
            pass
    assert caught.value.retry_after_s is None
    device.of["b"].pinned = True
    async with device.using("b"):
        pass
    with pytest.raises(NoMemory, match=r"b holds 6.0 GiB of 10.0 GiB on gpu and is pinned"):
        async with device.using("c"):
            pass
    assert device.occupants["b"].stops == 0


async def test_nobody_leaves_for_a_start_that_would_be_refused() -> None:
    device = Device(a=6, b=6)
    async with device.using("a"):
        pass
    device.occupants["b"].refused = StartFailed("b", "there is no `vllm`")
    with pytest.raises(StartFailed, match="no `vllm`"):
        async with device.using("b"):
            pass
    assert device.held() == {"a"}
    assert device.occupants["a"].stops == 0


async def test_a_start_that_fails_frees_its_place() -> None:
    device = Device(a=6, b=6)

    async def start() -> None:
        async with device.places.visit(device.of["a"]):
            assert device.held() == {"a"}
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await start()
    assert device.held() == set()
    async with device.using("b"):
        pass


async def test_a_crash_frees_the_place_while_its_requests_still_end() -> None:
    device = Device(a=6, b=6)
    first = Client(device, "a")
    await first.served.wait()
    waiting = Client(device, "b")
    await turns()
    device.occupants["a"].end()
    await waiting.served.wait()
    await waiting.end()
    await first.end()


async def test_a_cancelled_wait_leaves_nothing_behind() -> None:
    device = Device(a=6, b=6)
    first = Client(device, "a")
    await first.served.wait()
    waiting = Client(device, "b")
    await turns()
    later = Client(device, "a")
    await turns()
    assert not later.served.is_set()
    waiting.task.cancel()
    await later.served.wait()
    assert device.held() == {"a"}
    assert device.places.waiting(device.of["b"]) == 0
    for client in (first, later):
        await client.end()
    assert device.occupants["a"].stops == 0


async def test_a_wait_that_is_cancelled_at_the_moment_of_its_turn_gives_the_place_back() -> None:
    device = Device(a=6, b=6)
    first = Client(device, "a")
    await first.served.wait()
    waiting = Client(device, "b")
    await turns()
    device.occupants["a"].end()  # from here on it has the place, and has not noticed
    assert device.of["b"].is_held
    waiting.task.cancel()
    await turns()
    assert waiting.task.cancelled()
    assert device.held() == set()
    await first.end()


async def test_an_engine_on_its_way_out_for_one_who_has_left_is_used_again() -> None:
    device = Device(a=6, b=6)
    device.occupants["a"].quick = False
    async with device.using("a"):
        pass
    waiting = Client(device, "b")
    await turns()
    waiting.task.cancel()
    again = Client(device, "a")
    await turns()
    assert device.held() == {"a"}
    device.occupants["a"].end()
    await again.served.wait()
    await again.end()


async def test_a_smaller_budget_counts_for_the_next_start_and_a_larger_one_at_once() -> None:
    device = Device(a=4, b=4)
    first = Client(device, "a")
    await first.served.wait()
    device.places.configure({"gpu": 6 * GIB}, 20)
    waiting = Client(device, "b")
    await turns()
    assert device.held() == {"a"}
    device.places.configure({"gpu": 8 * GIB}, 20)
    await waiting.served.wait()
    for client in (first, waiting):
        await client.end()


async def test_a_small_engine_does_not_take_the_room_that_a_large_one_waits_for() -> None:
    device, order = Device(a=6, large=10, small=2), list[str]()
    first = Client(device, "a", order)
    await first.served.wait()
    large = Client(device, "large", order)
    await turns()
    small = Client(device, "small", order)
    await turns()
    assert order == ["a"], "there are 4 GiB left, and somebody came before"
    for client in (first, large, small):
        await client.end()
    assert order == ["a", "large", "small"]


async def test_an_engine_that_comes_back_is_not_counted_on() -> None:
    """It is being stopped, and somebody waits to start it again: whoever comes then takes the place of an idle one."""
    device = Device(a=6, large=10, c=4, small=4)
    device.occupants["a"].quick = False
    for name in ("a", "c"):
        async with device.using(name):
            pass
    gone = Client(device, "large")
    await turns()
    gone.task.cancel()
    back = Client(device, "a")
    async with device.using("c"):  # it was stopped with a
        pass
    small = Client(device, "small")
    await small.served.wait()
    assert device.held() == {"a", "small"}
    device.occupants["a"].end()
    for client in (back, small):
        await client.end()


@pytest.mark.parametrize("seed", range(10))
async def test_any_requests_that_crash_and_are_cancelled_all_end_and_the_budget_holds(seed: int) -> None:
    chance = random.Random(seed)
    device = Device(a=6, b=6, c=4, d=2)

    async def request() -> None:
        name = chance.choice("abcd")
        async with device.using(name):  # checks the budget
            await turns(chance.randint(0, 5))
            if chance.random() < 0.1:
                device.occupants[name].end()

    async def client() -> None:
        for _ in range(20):
            task = asyncio.create_task(request())
            await turns(chance.randint(0, 3))
            if chance.random() < 0.1:
                task.cancel()
            await asyncio.wait({task})
            assert task.cancelled() or task.exception() is None

    async with asyncio.timeout(20):
        await asyncio.gather(*(client() for _ in range(6)))
    assert all(not place.visits and device.places.waiting(place) == 0 for place in device.of.values())
