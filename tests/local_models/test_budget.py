"""Who must leave for an engine: examples, and laws that hold for any engines."""

from __future__ import annotations

import random
from itertools import combinations

import pytest

from local_models.budget import Bytes, Decision, Evict, Holder, Never, Room, Wait, evictions_for, gib, who_holds

GPU = "cuda:0"
GIB = 2**30
BUDGET = {GPU: 22 * GIB}


def holder(engine_id: str, size: int, **more: int | bool) -> Holder:
    """size: GiB on cuda:0."""
    return Holder(engine_id, {GPU: size * GIB}, **more)  # type: ignore[arg-type]


def names(decision: Decision) -> list[str]:
    assert isinstance(decision, Evict | Wait)
    return [engine.engine_id for engine in decision.engines]


def test_what_fits_evicts_nobody() -> None:
    assert evictions_for(holder("new", 4), [holder("old", 18)], BUDGET) == Room()
    assert evictions_for(holder("new", 22), [], BUDGET) == Room()


def test_the_least_recently_used_leaves_first() -> None:
    running = [holder("late", 8, used=9), holder("early", 8, used=1)]
    decision = evictions_for(holder("new", 8), running, BUDGET)
    assert isinstance(decision, Evict)
    assert names(decision) == ["early"]


def test_nobody_leaves_who_could_have_stayed() -> None:
    running = [holder("small", 2, used=1), holder("large", 18, used=2)]
    assert names(evictions_for(holder("new", 16), running, BUDGET)) == ["large"]


def test_a_busy_engine_is_waited_for_only_where_idle_ones_are_not_enough() -> None:
    running = [holder("busy", 12, requests=3, used=1), holder("idle", 8, used=2)]
    assert isinstance(decision := evictions_for(holder("new", 10), running, BUDGET), Evict)
    assert names(decision) == ["idle"]
    assert isinstance(decision := evictions_for(holder("new", 12), running, BUDGET), Wait)
    assert names(decision) == ["busy"]
    assert isinstance(decision := evictions_for(holder("new", 20), running, BUDGET), Wait)
    assert names(decision) == ["idle", "busy"]


def test_what_leaves_anyway_is_waited_for_and_nobody_else_has_to_go() -> None:
    running = [holder("going", 12, leaving=True, pinned=True), holder("idle", 8)]
    assert isinstance(decision := evictions_for(holder("new", 12), running, BUDGET), Wait)
    assert names(decision) == ["going"]
    assert isinstance(decision := evictions_for(holder("new", 16), running, BUDGET), Evict)
    assert names(decision) == ["idle"]


def test_a_pinned_engine_stays_and_is_named() -> None:
    decision = evictions_for(holder("new", 8), [holder("chat", 18, pinned=True), holder("idle", 2)], BUDGET)
    assert decision == Never(
        "it takes 8.0 GiB of cuda:0; chat holds 18.0 GiB of 22.0 GiB on cuda:0 and is pinned; unload it, or set its pinned to false"
    )


def test_what_is_larger_than_the_budget_is_told_the_budget() -> None:
    decision = evictions_for(holder("new", 30), [holder("chat", 18)], BUDGET)
    assert isinstance(decision, Never)
    assert decision.reason.startswith("it takes 30.0 GiB of cuda:0, where engines may take 22.0 GiB together; raise memory.budgets")


def test_devices_have_budgets_of_their_own_and_none_without_one() -> None:
    wide = Holder("wide", {GPU: 10 * GIB, "cuda:1": 10 * GIB})
    budget = {GPU: 22 * GIB, "cuda:1": 12 * GIB}
    running = [holder("first", 10), Holder("second", {"cuda:1": 10 * GIB}), Holder("elsewhere", {"cuda:2": 90 * GIB})]
    assert names(evictions_for(wide, running, budget)) == ["second"]
    assert evictions_for(Holder("new", {"cpu": 900 * GIB}), running, budget) == Room()


def test_it_is_told_who_is_in_the_way() -> None:
    running = [holder("chat-9b", 18, requests=3), holder("one", 1, requests=1), holder("idle", 1), holder("going", 1, leaving=True)]
    assert who_holds(holder("new", 8), running, BUDGET) == (
        "it takes 8.0 GiB of cuda:0; chat-9b holds 18.0 GiB of 22.0 GiB on cuda:0 and answers 3 requests; "
        "one holds 1.0 GiB of 22.0 GiB on cuda:0 and answers 1 request; idle holds 1.0 GiB of 22.0 GiB on cuda:0 and is idle; "
        "going holds 1.0 GiB of 22.0 GiB on cuda:0 and is being stopped"
    )
    assert gib(300 * 2**20) == "300 MiB"


def any_case(chance: random.Random) -> tuple[Holder, list[Holder], Bytes]:
    devices = ["a", "b"][: chance.randint(1, 2)]

    def memory() -> Bytes:
        return {device: chance.randint(0, 6) for device in devices}

    running = [
        Holder(str(number), memory(), chance.choice([0, 0, 1, 3]), chance.randint(0, 9), chance.random() < 0.2, chance.random() < 0.2)
        for number in range(chance.randint(0, 5))
    ]
    return Holder("new", memory(), pinned=chance.random() < 0.5), running, {device: chance.randint(0, 12) for device in devices}


def fits(target: Holder, running: list[Holder], budget: Bytes) -> bool:
    return all(
        not wanted or wanted + sum(one.memory[device] for one in running) <= budget[device] for device, wanted in target.memory.items()
    )


@pytest.mark.parametrize("seed", range(20))
def test_laws(seed: int) -> None:
    """For any engines: nobody leaves in vain, who leaves is enough, pinned and busy ones are left alone, Never means never."""
    chance = random.Random(seed)
    for _ in range(200):
        target, running, budget = any_case(chance)
        movable = [one for one in running if one.leaving or not one.pinned]
        decision = evictions_for(target, running, budget)
        assert (decision == Room()) is fits(target, running, budget)
        match decision:
            case Evict(engines):
                leaving = [one for one in running if one.leaving]
                assert engines
                assert not any(one.pinned or one.requests or one.leaving for one in engines)
                assert _fit_without(target, running, [*engines, *leaving], budget)
                assert not any(_fit_without(target, running, [*set(engines) - {one}, *leaving], budget) for one in engines)
            case Wait(engines):
                assert any(one.requests or one.leaving for one in engines)
                assert set(engines) <= set(movable)
                assert _fit_without(target, running, engines, budget)
                idle = [one for one in movable if not one.requests and not one.leaving]
                leaving = [one for one in running if one.leaving]
                assert _fit_without(target, running, leaving, budget) or not _fit_without(target, running, [*idle, *leaving], budget)
            case Never():
                subsets = (subset for size in range(len(movable) + 1) for subset in combinations(movable, size))
                assert not any(_fit_without(target, running, subset, budget) for subset in subsets)


def _fit_without(target: Holder, running: list[Holder], gone: tuple[Holder, ...] | list[Holder], budget: Bytes) -> bool:
    return fits(target, [one for one in running if one not in gone], budget)
