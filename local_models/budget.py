"""Who must leave so that an engine has the memory it takes. Pure: engines and budgets in, a decision out.

Idle engines go, least recently used first, and none that could have stayed. Busy ones are waited for; pinned ones do neither.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

Bytes: TypeAlias = Mapping[str, int]
"""Bytes by device, such as cuda:0 or cpu."""


@dataclass(frozen=True, eq=False)
class Holder:
    """An engine that holds memory, or wants it. requests: those it answers or starts for. used: greater for a later use.
    leaving: on its way out, so that its memory comes back by itself."""

    engine_id: str
    memory: Bytes
    requests: int = 0
    used: int = 0
    pinned: bool = False
    leaving: bool = False


@dataclass(frozen=True)
class Room:
    """It may start now."""


@dataclass(frozen=True)
class Evict:
    """There is room once these idle engines are gone, and those that leave already."""

    engines: tuple[Holder, ...]


@dataclass(frozen=True)
class Wait:
    """There is room once all of these are gone: some are busy, or leave already; idle ones are only of use together with them."""

    engines: tuple[Holder, ...]


@dataclass(frozen=True)
class Never:
    """There is no room, whoever leaves. reason: a clause for people."""

    reason: str


Decision: TypeAlias = Room | Evict | Wait | Never


def evictions_for(target: Holder, running: Sequence[Holder], budget: Bytes) -> Decision:
    """What must happen before `target` may start. running: everybody who holds memory, without `target`.

    1. what it takes fits                                   Room
    2. it fits without those that leave anyway              Wait for them
    3. it fits without idle engines that are not pinned     Evict them
    4. it fits without busy ones as well                    Wait for them
    5. anything else                                        Never
    """
    if not _lack(target, running, budget):
        return Room()
    leaving = [holder for holder in running if holder.leaving]
    staying = [holder for holder in running if not holder.leaving]
    if not _lack(target, staying, budget):
        return Wait(tuple(leaving))
    movable = sorted((holder for holder in staying if not holder.pinned), key=lambda holder: holder.used)
    idle = [holder for holder in movable if not holder.requests]
    if (chosen := _enough(target, staying, idle, budget)) is not None:
        return Evict(chosen)
    busy = [holder for holder in movable if holder.requests]
    if (chosen := _enough(target, staying, idle + busy, budget)) is not None:
        return Wait((*leaving, *chosen))
    return Never(_why_never(target, [holder for holder in staying if holder.pinned], budget))


def _enough(target: Holder, staying: Sequence[Holder], movable: Sequence[Holder], budget: Bytes) -> tuple[Holder, ...] | None:
    """The first of `movable` that must go, less those that need not go then; None where all of them are not enough."""
    gone: list[Holder] = []
    for holder in movable:
        if not _lack(target, _without(staying, gone), budget):
            break
        gone.append(holder)
    if _lack(target, _without(staying, gone), budget):
        return None
    for holder in reversed(gone.copy()):
        others = [other for other in gone if other is not holder]
        if not _lack(target, _without(staying, others), budget):
            gone = others
    return tuple(gone)


def _without(holders: Iterable[Holder], gone: Iterable[Holder]) -> list[Holder]:
    left = {id(holder) for holder in gone}
    return [holder for holder in holders if id(holder) not in left]


def _lack(target: Holder, running: Sequence[Holder], budget: Bytes) -> bool:
    """Whether a device that it takes memory of would be over its budget. A device without a budget never is."""
    return any(
        wanted + sum(holder.memory.get(device, 0) for holder in running) > budget[device]
        for device, wanted in target.memory.items()
        if wanted and device in budget
    )


def _why_never(target: Holder, pinned: Sequence[Holder], budget: Bytes) -> str:
    for device, wanted in target.memory.items():
        if wanted > budget.get(device, wanted):
            limit = f"engines may take {gib(budget[device])} together"
            return f"it takes {gib(wanted)} of {device}, where {limit}; raise memory.budgets, or lower what it takes"
    return f"{who_holds(target, pinned, budget)}; unload it, or set its pinned to false"


def who_holds(target: Holder, running: Sequence[Holder], budget: Bytes) -> str:
    """What `target` takes and who is in its way, as a clause for people."""
    wanted = " and ".join(f"{gib(amount)} of {device}" for device, amount in target.memory.items() if device in budget)
    told = [
        f"{holder.engine_id} holds {gib(held)} of {gib(budget[device])} on {device} and {_doing(holder)}"
        for device in target.memory
        for holder in running
        if device in budget and (held := holder.memory.get(device, 0))
    ]
    return "; ".join([f"it takes {wanted}", *told])


def _doing(holder: Holder) -> str:
    if holder.leaving:
        return "is being stopped"
    if holder.pinned:
        return "is pinned"
    match holder.requests:
        case 0:
            return "is idle"
        case 1:
            return "answers 1 request"
        case many:
            return f"answers {many} requests"


def gib(amount: int) -> str:
    """An amount of memory for people."""
    return f"{amount / 2**30:.1f} GiB" if amount >= 2**30 else f"{amount / 2**20:.0f} MiB"
