"""All local engines: started when somebody leases one, kept while leased, unloaded when idle.

A lease is the only way in. It counts before the engine is ready and until its holder is done, so an engine that somebody waits for
or uses is never unloaded. Whether a process runs is `Process`' decision, and whether there is memory for it is `Places`'; this module
only counts and says who may go.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from config.hardware import Gpu
from config.weights import weights_bytes
from local_models.backoff import RestartPolicy
from local_models.budget import Bytes
from local_models.errors import EngineError, EngineLost, RuntimeClosed, UnknownEngine
from local_models.installed import launch_here, preflight_here
from local_models.launch import BUILTIN_MODELS, EngineSpec, Launch
from local_models.logs import log_path
from local_models.need import MemoryRules, budget_of, need_of
from local_models.places import Place, Places
from local_models.process import Address, Process, State, happens

LaunchEngine = Callable[[EngineSpec, int, str], Launch]
"""How to run this engine on this port with this key: `installed.launch_here`, or a test's. Called in a thread."""


@dataclass(frozen=True)
class Lease:
    """Where a running engine listens. Good until the `async with` ends; the engine may crash meanwhile."""

    engine_id: str
    host: str
    port: int
    key: str = field(repr=False)


@dataclass(frozen=True)
class EngineStatus:
    """For people and model lists, out of date as soon as it is made. progress: 0 to 1. restarts: starts that followed a crash.

    memory: bytes that it holds, by device; none while nothing of it is there. waiting: those of its leases that wait for others to
    leave. waits_for: what those hold, as a clause for people.
    """

    state: State
    progress: float | None
    stage: str | None
    leases: int
    restarts: int
    reason: str | None
    pid: int | None
    log: Path
    memory: Bytes = field(default_factory=dict)
    waiting: int = 0
    waits_for: str | None = None


@dataclass
class _Engine:
    """leases counts holders and those who wait to become one. idle_timer runs while there are none. leaving: it is closed when nobody

    leases it any more; before: an engine whose place it takes, and whose memory it may need. drain: its unload, which waits until those who
    came before are done (`drained`), while those who come later wait for it; inside counts those who came before.
    """

    spec: EngineSpec
    process: Process
    place: Place
    leases: int = 0
    idle_timer: asyncio.TimerHandle | None = None
    leaving: bool = False
    unleased: asyncio.Event = field(default_factory=asyncio.Event)
    before: asyncio.Task[None] | None = None
    drain: asyncio.Task[None] | None = None
    inside: int = 0
    drained: asyncio.Event = field(default_factory=asyncio.Event)


class Runtime:
    """Owns every engine process. Made anywhere, used on one event loop, closed before that loop ends."""

    def __init__(
        self,
        engines: Mapping[str, EngineSpec],
        *,
        data_dir: Path,
        launch: LaunchEngine | None = None,
        memory: MemoryRules | None = None,
        gpus: Sequence[Gpu] = (),
    ) -> None:
        """gpus: those of this machine, as cuda:0 and so on."""
        self._logs, self._gpus = data_dir / "logs", gpus
        self._launch, self._preflight = launch or partial(launch_here, data_dir), launch or partial(preflight_here, data_dir)
        rules = memory or MemoryRules()
        self._budget = budget_of(rules.budgets, gpus)
        self._places = Places(self._budget, rules.wait_s)
        self._engines = {engine_id: self._made(spec) for engine_id, spec in engines.items()}
        self._leaving: dict[asyncio.Task[None], _Engine] = {}
        self._asked: set[asyncio.Task[None]] = set()  # loads and unloads that go on though nobody may wait for them
        self._closed = False

    def engines(self) -> Mapping[str, EngineSpec]:
        return {engine_id: engine.spec for engine_id, engine in self._engines.items()}

    def reconfigure(self, engines: Mapping[str, EngineSpec], memory: MemoryRules | None = None) -> None:
        """From now on these are the engines. One that is as it was goes on undisturbed; one that is gone or has changed ends when its

        last lease does, and until then the one that takes its place is not started. memory: None leaves it as it was.
        """
        if memory is not None:
            self._budget = budget_of(memory.budgets, self._gpus)
            self._places.configure(self._budget, memory.wait_s)
        before, self._engines = self._engines, {}
        for engine_id, spec in engines.items():
            known = before.get(engine_id)
            self._engines[engine_id] = known if known is not None and known.spec == spec else self._made(spec)
        for engine_id, engine in before.items():
            successor = self._engines.get(engine_id)
            if successor is not engine:
                engine.leaving = True
                _cancel_idle_timer(engine)
                leaving = asyncio.get_running_loop().create_task(self._leave(engine))
                self._leaving[leaving] = engine
                leaving.add_done_callback(self._leaving.pop)
                if successor is not None:
                    successor.before = leaving

    def lease(self, engine_id: str) -> AbstractAsyncContextManager[Lease]:
        """The engine, running. Starts it if needed; cancelling the wait leaves the start to others. Raises EngineError."""
        return self._lease(self._engine(engine_id))

    async def notice_end(self, lease: Lease, within_s: float) -> EngineLost | None:
        """Why the engine of this lease does not serve any more, as `Process.notice_end`. From then on a new lease starts it again."""
        engine = self._engines.get(lease.engine_id)  # it may have left the configuration meanwhile
        return await engine.process.notice_end(Address(lease.host, lease.port, lease.key), within_s) if engine is not None else None

    def status(self, engine_id: str) -> EngineStatus:
        engine = self._engine(engine_id)
        seen = engine.process.status()
        waiting = self._places.waiting(engine.place)
        return EngineStatus(
            seen.state,
            seen.progress,
            seen.stage,
            engine.leases,
            seen.restarts,
            seen.reason,
            seen.pid,
            engine.process.log,
            engine.place.memory if engine.place.is_held else {},
            waiting,
            self._places.in_the_way(engine.place) if waiting else None,
        )

    def load(self, engine_id: str) -> asyncio.Task[None]:
        """Begin to start it, whatever it died of before. The task ends when it is ready, or with an EngineError; cancelling it leaves the

        start to others. Raises UnknownEngine.
        """
        self.reset(engine_id)
        return self._ask(self._load(engine_id))

    def unload(self, engine_id: str, drain_s: float) -> asyncio.Task[None]:
        """Begin to stop it once nobody uses it, at the latest after `drain_s`: what then is still under way ends with an error.

        A lease that is asked for meanwhile waits, and starts it again. The task ends when it is gone. Raises UnknownEngine.
        """
        engine = self._engine(engine_id)
        if engine.drain is None or engine.drain.done():
            engine.drain = self._ask(_drain(engine, drain_s))
        return engine.drain

    async def stop(self, engine_id: str) -> None:
        """Stop it even while it is leased, and return when it is gone. The next lease starts it again."""
        await self._engine(engine_id).process.stop()

    def reset(self, engine_id: str) -> None:
        """Forget its crashes, so that one that was given up is tried again by the next lease."""
        self._engine(engine_id).process.reset()

    async def close(self) -> None:
        """Stop everything, all at once, for good."""
        self._closed = True
        for engine in self._engines.values():
            _cancel_idle_timer(engine)
        leaving = list(self._leaving)
        engines = [*self._engines.values(), *self._leaving.values()]
        asked = list(self._asked)
        for task in (*leaving, *asked):
            task.cancel()
        await asyncio.gather(*(engine.process.close() for engine in engines))
        await asyncio.gather(*leaving, *asked, return_exceptions=True)

    def _ask(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._asked.add(task)
        task.add_done_callback(self._asked.discard)
        task.add_done_callback(_outcome_is_in_the_status)
        return task

    async def _load(self, engine_id: str) -> None:
        async with self.lease(engine_id):
            return

    def _made(self, spec: EngineSpec) -> _Engine:
        process = Process(
            spec.engine_id,
            partial(self._launch, spec),
            log=log_path(self._logs, spec.engine_id),
            start_timeout_s=spec.start_timeout_s,
            restarts=RestartPolicy(max_restarts=spec.max_restarts),
            on_end=self._places.look_again,
            preflight=partial(self._preflight, spec),
        )
        place = Place(spec.engine_id, process, partial(self._needs, spec), spec.pinned)
        self._places.add(place)
        return _Engine(spec, process, place)

    def _needs(self, spec: EngineSpec) -> Bytes:
        return need_of(spec, self._budget, self._gpus, lambda: weights_bytes(spec.model, BUILTIN_MODELS, os.environ))

    def _engine(self, engine_id: str) -> _Engine:
        engine = self._engines.get(engine_id)
        if engine is None:
            raise UnknownEngine(engine_id, f"the configured ones are {', '.join(sorted(self._engines)) or 'none'}")
        return engine

    @asynccontextmanager
    async def _lease(self, engine: _Engine) -> AsyncIterator[Lease]:
        if self._closed:
            raise RuntimeClosed(engine.spec.engine_id)
        engine.leases += 1
        _cancel_idle_timer(engine)
        engine.unleased.clear()
        try:
            if engine.before is not None:
                await asyncio.wait({engine.before})
                engine.before = None
            while engine.drain is not None and not engine.drain.done():
                await asyncio.wait({engine.drain})
            async with self._places.visit(engine.place) as is_ready:
                with _inside(engine):
                    address = await engine.process.ensure_ready()
                    is_ready()
                    yield Lease(engine.spec.engine_id, address.host, address.port, address.key)
        finally:
            engine.leases -= 1
            if not engine.leases:
                engine.unleased.set()
            self._start_idle_timer(engine)

    def _start_idle_timer(self, engine: _Engine) -> None:
        idle_s = engine.spec.idle_unload_s
        if engine.leases or idle_s is None or self._closed or engine.leaving:
            return
        _cancel_idle_timer(engine)
        engine.idle_timer = asyncio.get_running_loop().call_later(idle_s, engine.process.request_stop)

    async def _leave(self, engine: _Engine) -> None:
        """Close it once nobody leases it, and once the one before it has ended."""
        if engine.before is not None:
            await asyncio.wait({engine.before})
        while engine.leases:
            await engine.unleased.wait()
        await engine.process.close()
        self._places.remove(engine.place)


@contextmanager
def _inside(engine: _Engine) -> Iterator[None]:
    """One of those whom an unload waits for."""
    engine.inside += 1
    engine.drained.clear()
    try:
        yield
    finally:
        engine.inside -= 1
        if not engine.inside:
            engine.drained.set()


async def _drain(engine: _Engine, drain_s: float) -> None:
    if engine.inside:
        await happens(engine.drained, drain_s)
    await engine.process.stop()


def _outcome_is_in_the_status(task: asyncio.Task[None]) -> None:
    """Nobody need wait for a load: why it failed is the engine's reason. An error that is none of an engine's must be seen."""
    if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, EngineError):
        task.get_loop().call_exception_handler({"message": "fault in a load or unload", "exception": error, "task": task})


def _cancel_idle_timer(engine: _Engine) -> None:
    if engine.idle_timer is not None:
        engine.idle_timer.cancel()
        engine.idle_timer = None
