"""The engines' places in the memory of the devices: who has one, and who waits for one.

An engine has its place from the moment it is given it until the last of its processes is gone. Whoever comes while somebody waits for
an engine to leave waits behind him, even for that engine; and when an engine gets its place, all who wait for it by then have it. So
every turn comes, whatever goes on arriving. All is decided in `look_again`, without an `await` between looking and acting.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Protocol

from local_models.budget import Bytes, Decision, Evict, Holder, Never, Room, Wait, evictions_for, who_holds
from local_models.errors import EngineError, NoMemory

RETRY_AFTER_S = 10.0  # what is advised to one who waited in vain: nobody knows how long the others need


class Occupant(Protocol):
    """What has a place: a `Process`."""

    @property
    def alive(self) -> bool: ...
    @property
    def stopping(self) -> bool: ...
    def refusal(self) -> EngineError | None: ...
    def request_stop(self) -> object: ...


@dataclass(eq=False)
class Place:
    """One engine's. needs: what it takes, asked each time before it gets its place. memory: what it got.

    visits: those who use it or start it. used: when it was used last, in uses of any engine.
    """

    engine_id: str
    occupant: Occupant
    needs: Callable[[], Bytes]
    pinned: bool = False
    memory: Bytes = field(default_factory=dict)
    visits: set[Visit] = field(default_factory=set)
    used: int = 0

    @property
    def is_held(self) -> bool:
        return self.occupant.alive or any(visit.starting for visit in self.visits)

    def holder(self) -> Holder:
        leaving = self.occupant.stopping and not any(visit.starting for visit in self.visits)
        return Holder(self.engine_id, self.memory, len(self.visits), self.used, self.pinned, leaving)


@dataclass(eq=False)
class Visit:
    """One request for an engine. starting: it has the place, and the engine is not ready for it yet."""

    place: Place
    starting: bool = False
    error: EngineError | None = None
    settled: asyncio.Event = field(default_factory=asyncio.Event)


class Places:
    """budget: bytes by device; a device that is not in it has no limit. wait_s: how long a request may wait for others to leave."""

    def __init__(self, budget: Bytes, wait_s: float) -> None:
        self._budget, self._wait_s = budget, wait_s
        self._places: list[Place] = []
        self._queue: list[Visit] = []
        self._uses = 0

    def configure(self, budget: Bytes, wait_s: float) -> None:
        """Decide by these from now on. Who has a place keeps it."""
        self._budget, self._wait_s = budget, wait_s
        self.look_again()

    def add(self, place: Place) -> None:
        self._places.append(place)

    def remove(self, place: Place) -> None:
        """Of an engine that is gone for good."""
        self._places.remove(place)

    def waiting(self, place: Place) -> int:
        """Requests for this engine that wait for others to leave."""
        return sum(visit.place is place for visit in self._queue)

    def in_the_way(self, place: Place) -> str:
        """What it takes and who holds it, as a clause for people."""
        if place.is_held:
            return "others, who came before, wait for its place"
        holders = [other.holder() for other in self._places if other.is_held]
        return who_holds(Holder(place.engine_id, place.memory), holders, self._budget)

    @asynccontextmanager
    async def visit(self, place: Place) -> AsyncIterator[Callable[[], None]]:
        """A place for the engine, for as long as the block runs. Yields what to call once the engine is ready.

        Raises NoMemory, and what a start would raise. A cancelled wait leaves nothing behind.
        """
        visit = Visit(place)
        if not place.is_held:
            place.memory = place.needs()
        self._queue.append(visit)
        try:
            self.look_again()
            await self._settled(visit)
            if visit.error is not None:
                raise visit.error

            def ready() -> None:
                visit.starting = False

            yield ready
        finally:
            self._leave(visit)

    async def _settled(self, visit: Visit) -> None:
        try:
            async with asyncio.timeout(self._wait_s):
                await visit.settled.wait()
        except TimeoutError:
            if not visit.settled.is_set():
                waited = f"{self.in_the_way(visit.place)}; it waited {self._wait_s:g} s"
                raise NoMemory(visit.place.engine_id, waited, retry_after_s=RETRY_AFTER_S) from None

    def look_again(self) -> None:
        """Something has changed: let go on who can, and have those leave whose place the first ones need.

        sought: places that somebody further ahead waits for. short: devices on which somebody further ahead waits.
        """
        sought: set[Place] = set()
        short: set[str] = set()
        for visit in self._queue.copy():
            place = visit.place
            if visit.settled.is_set():
                continue
            if place.is_held:
                if place not in sought:
                    self._admit(visit)
                continue
            limited = place.memory.keys() & self._budget.keys()
            if short & limited:
                continue
            decision, _ = self._decide(place)
            if isinstance(decision, Room):
                for companion in [other for other in self._queue if other.place is place]:
                    self._admit(companion)
            elif (refusal := place.occupant.refusal()) is not None:  # nobody should leave for a start that fails anyway
                self._refuse(visit, refusal)
            elif isinstance(decision, Never):
                self._refuse(visit, NoMemory(place.engine_id, decision.reason))
            else:
                short |= limited
                sought |= self._make_room(place)

    def _make_room(self, place: Place) -> set[Place]:
        """Stop the idle engines that must leave for it; returns all that it waits for."""
        decision, placed = self._decide(place)
        stopped: set[Place] = set()
        if isinstance(decision, Evict):
            stopped = {placed[holder] for holder in decision.engines}
            for other in stopped:
                other.occupant.request_stop()
            decision, placed = self._decide(place)  # those who leave already count now
        return stopped | {placed[holder] for holder in decision.engines} if isinstance(decision, Wait) else stopped

    def _decide(self, place: Place) -> tuple[Decision, dict[Holder, Place]]:
        placed = {other.holder(): other for other in self._places if other.is_held}
        return evictions_for(Holder(place.engine_id, place.memory), list(placed), self._budget), placed

    def _admit(self, visit: Visit) -> None:
        self._queue.remove(visit)
        visit.starting = True
        visit.place.visits.add(visit)
        self._note_use(visit.place)
        visit.settled.set()

    def _refuse(self, visit: Visit, error: EngineError) -> None:
        self._queue.remove(visit)
        visit.error = error
        visit.settled.set()

    def _leave(self, visit: Visit) -> None:
        if visit in visit.place.visits:
            visit.place.visits.remove(visit)
            self._note_use(visit.place)
        elif visit in self._queue:
            self._queue.remove(visit)
        if self._queue:
            self.look_again()

    def _note_use(self, place: Place) -> None:
        self._uses += 1
        place.used = self._uses
