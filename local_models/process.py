"""One supervised child process and its states.

Callers say what they need (`ensure_ready`, `stop`) and never read `status` to decide what to do next: every decision is taken here,
without an `await` between looking and acting, so nobody can race a crash or an idle unload.

A life is one run from spawn to the last of its processes; the task `_live` owns it and no other code changes the state, except that
`_begin` and `request_stop` announce at once what that task is about to do.
"""

from __future__ import annotations

import asyncio
import errno
import secrets
import signal
import socket
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from local_models.backoff import NO_CRASHES, RestartPolicy, delay_s, is_given_up
from local_models.child import Child
from local_models.errors import EngineError, EngineLost, GivenUp, RuntimeClosed, StartFailed, StartTimeout
from local_models.health import SILENT, Health, ask_health
from local_models.launch import HOST, Launch
from local_models.logs import Follower, last_useful_line, read_tail
from local_models.probe import ask_for_model, ask_for_token
from local_models.vllm_errors import explain
from local_models.vllm_progress import FIRST_TOKEN, LISTING, STARTING, Loading, advance

State = Literal["stopped", "starting", "ready", "stopping", "failed"]
LaunchFor = Callable[[int, str], Launch]
"""What to run on this port with this key, called in a thread. May raise StartFailed, which is then not counted as a crash."""

PORT_TRIES = 3
KEY_BYTES = 32
HEALTH_TIMEOUT_S = 2.0
FIRST_POLL_S = 0.02
LONGEST_POLL_S = 0.25
UNHEALTHY_ANSWERS = 2
# An engine that is dead behind an open socket is known after this and a second look, sooner where a broken answer gave it away.
WATCH_INTERVAL_S = 2.0
LOOK_AGAIN_S = 0.1  # while there is reason to believe that it is dead
LOG_LAG_S = 0.3  # until what a child said at its end has reached its log
EXPLAINED_BYTES = 256 * 1024  # a traceback of vLLM's, once for each of its processes, takes dozens of KiB


@dataclass(frozen=True)
class Address:
    """Where a ready child listens, and the key it wants."""

    host: str
    port: int
    key: str = field(repr=False)


@dataclass(frozen=True)
class ProcessStatus:
    """For people to look at, out of date as soon as it is made. restarts: starts that followed a crash."""

    state: State
    progress: float | None
    stage: str | None
    restarts: int
    reason: str | None
    pid: int | None


@dataclass(frozen=True)
class Failure:
    """Why a life ended before somebody asked for it. counts: as a crash, for the back-off. lasting: another start would end so too."""

    kind: type[EngineError]
    reason: str
    counts: bool = True
    lasting: bool = False


class _NotServing(Exception):
    """It is healthy and yet does not do what it is for; the message is a clause that says what it does instead."""


@dataclass
class _Life:
    """settled: ready, or over. interrupted: the child exited, or somebody wants it to. suspected: somebody believes that it is dead.

    begun_at, ready_at: of the process' clock. death: why it does not serve any more, once somebody asked. failure: set before `over`.
    """

    settled: asyncio.Event = field(default_factory=asyncio.Event)
    interrupted: asyncio.Event = field(default_factory=asyncio.Event)
    over: asyncio.Event = field(default_factory=asyncio.Event)
    suspected: asyncio.Event = field(default_factory=asyncio.Event)
    begun_at: float = 0.0
    stop_requested: bool = False
    child: Child | None = None
    launch: Launch | None = None
    address: Address | None = None
    ready_at: float | None = None
    death: Failure | None = None
    failure: Failure | None = None
    task: asyncio.Task[None] | None = None


class Process:
    """name: for messages. port: a fixed one; None: a free one for each start. log: where the child's output goes."""

    def __init__(
        self,
        name: str,
        launch_for: LaunchFor,
        *,
        log: Path,
        port: int | None = None,
        start_timeout_s: float = 600.0,
        stop_grace_s: float = 3.0,
        restarts: RestartPolicy | None = None,
        watch_interval_s: float = WATCH_INTERVAL_S,
        clock: Callable[[], float] = time.monotonic,
        on_end: Callable[[], None] = lambda: None,
        preflight: LaunchFor | None = None,
    ) -> None:
        """on_end: called each time that nothing of the child is left, however it ended.

        preflight: what of `launch_for` can be known at once and without looking at free memory; the same where None.
        """
        self.name = name
        self.log = log
        self._launch_for, self._preflight = launch_for, preflight or launch_for
        self._port = port
        self._start_timeout_s = start_timeout_s
        self._stop_grace_s = stop_grace_s
        self._policy = restarts or RestartPolicy()
        self._watch_interval_s = watch_interval_s
        self._clock = clock
        self._on_end = on_end
        self._state: State = "stopped"
        self._life: _Life | None = None
        self._failure: Failure | None = None
        self._crashes = NO_CRASHES
        self._restarts = 0
        self._start_took_s = 0.0
        self._health = SILENT
        self._closed = False
        self._nudge = asyncio.Event()

    def status(self) -> ProcessStatus:
        loading = self._health if self._state == "starting" else SILENT
        child = self._life.child if self._life else None
        reason = self._failure.reason if self._failure else None
        if self._state == "failed" and is_given_up(self._policy, self._crashes):
            reason = f"given up: {self._crash_story()}"
        return ProcessStatus(self._state, loading.progress, loading.stage, self._restarts, reason, child.pid if child else None)

    @property
    def alive(self) -> bool:
        """Whether anything of a child may be there, and with it the memory that it takes."""
        return self._life is not None

    @property
    def stopping(self) -> bool:
        """Whether its child is about to be gone."""
        return self._state == "stopping"

    def refusal(self) -> EngineError | None:
        """Why it would not start if somebody asked now, as far as that is known without trying. None where it runs."""
        if self._closed:
            return RuntimeClosed(self.name)
        if self._life is not None:
            return None
        try:
            self._preflight(self._port or 0, "")
        except StartFailed as error:
            return StartFailed(self.name, error.reason)
        except OSError:
            pass  # the start itself will say what that means
        return self._too_early(delay_s(self._policy, self._crashes, self._clock()))

    async def ensure_ready(self) -> Address:
        """Return once the child serves. A start belongs to the process: a cancelled caller does not abort it.

        closed             RuntimeClosed
        ready              return
        starting           join; StartFailed or StartTimeout if it fails
        stopping           wait for the end, then start
        stopped, failed    start; after a crash not before the back-off allows it: a short delay is waited for, a long one
                           raises the last failure with retry_after_s; GivenUp after too many crashes in a row
        """
        while True:
            life = self._life
            if self._closed:
                raise RuntimeClosed(self.name)
            if life is None:
                await self._begin_when_allowed()
            elif self._state == "stopping" or (self._state == "ready" and life.interrupted.is_set()):
                await life.over.wait()
            elif self._state == "ready" and life.address is not None:
                return life.address
            else:
                await life.settled.wait()
                if life.failure is not None:
                    raise self._error(life.failure)

    async def notice_end(self, address: Address, within_s: float) -> EngineLost | None:
        """Why the child at `address` does not serve any more; None while it does. Looks at once, and waits for the news: for a caller

        whose answer broke before the end was known.
        """
        life = self._life
        if life is None or life.address != address:
            reason = self._failure.reason if self._failure else "it has been stopped or started anew"
            return EngineLost(self.name, reason, retry_after_s=self._back_in_s())
        try:
            async with asyncio.timeout(within_s):
                while not life.interrupted.is_set():
                    life.suspected.set()
                    await happens(life.interrupted, LOOK_AGAIN_S)
        except TimeoutError:
            return None
        reason = "it was stopped" if life.stop_requested else self._death(life).reason
        return EngineLost(self.name, reason, retry_after_s=self._back_in_s())

    def _back_in_s(self) -> float:
        """How long a client should wait for the next start, by the last one."""
        return delay_s(self._policy, self._crashes, self._clock()) + self._start_took_s

    async def stop(self) -> None:
        """Return when nothing of the child is left. Callers that wait for its start get StartFailed."""
        life = self.request_stop()
        if life is not None:
            await life.over.wait()

    def request_stop(self) -> _Life | None:
        """Begin the stop, so that a caller who asks from now on gets a new child. Returns the life that ends, if there is one."""
        life = self._life
        if life is not None and self._state != "stopping":
            self._state = "stopping"
            life.stop_requested = True
            life.interrupted.set()
        return life

    async def close(self) -> None:
        """Stop for good."""
        self._closed = True
        self._nudged()
        await self.stop()

    def reset(self) -> None:
        """Forget earlier crashes: the next caller may start at once."""
        self._crashes = NO_CRASHES
        self._nudged()

    async def keep_ready(self) -> None:
        """Start it, and again after each crash, until it is closed. Raises GivenUp."""
        while not self._closed:
            try:
                await self.ensure_ready()
            except (StartFailed, StartTimeout) as error:
                if not is_given_up(self._policy, self._crashes):
                    await asyncio.sleep(max(error.retry_after_s or 0.0, self._policy.first_delay_s))
            except RuntimeClosed:
                return
            if self._life is not None:
                await self._life.over.wait()

    async def _begin_when_allowed(self) -> None:
        pause_s = delay_s(self._policy, self._crashes, self._clock())
        if pause_s == 0.0:
            self._begin()
        elif (error := self._too_early(pause_s)) is not None:
            raise error
        else:
            await self._pause(pause_s)

    def _too_early(self, pause_s: float) -> EngineError | None:
        """For a caller who would have to wait longer than callers do, until the next try is allowed."""
        given_up = is_given_up(self._policy, self._crashes)
        if pause_s == 0.0 or (not given_up and pause_s <= self._policy.patience_s):
            return None
        kind = GivenUp if given_up else StartFailed
        return kind(self.name, f"{self._crash_story()}; the next try is allowed in {pause_s:.0f} s", retry_after_s=pause_s)

    def _crash_story(self) -> str:
        reason = self._failure.reason if self._failure else "unknown"
        times = "once, because" if self._crashes.count == 1 else f"{self._crashes.count} times in a row, last because"
        return f"it crashed {times} {reason}"

    async def _pause(self, seconds: float) -> None:
        await happens(self._nudge, seconds)

    def _nudged(self) -> None:
        """Wake everybody who sits out a back-off."""
        self._nudge.set()
        self._nudge = asyncio.Event()

    def _error(self, failure: Failure) -> EngineError:
        """A new exception for each caller: one instance raised in several tasks would mix their tracebacks."""
        retry_after_s = delay_s(self._policy, self._crashes, self._clock()) if failure.counts else None
        return failure.kind(self.name, failure.reason, retry_after_s=retry_after_s)

    def _begin(self) -> None:
        if self._crashes.count:
            self._restarts += 1
        self._state = "starting"
        self._health = SILENT
        self._life = life = _Life(begun_at=self._clock())
        life.task = asyncio.get_running_loop().create_task(self._live(life), name=f"life of {self.name}")
        life.task.add_done_callback(_report_fault)

    async def _live(self, life: _Life) -> None:
        failure: Failure | None = Failure(StartFailed, "of an error inside Tandem; see its own output")
        try:
            failure = await self._start(life)
            if failure is None:
                self._state = "ready"
                self._failure = None
                life.ready_at = self._clock()
                self._start_took_s = life.ready_at - life.begun_at
                life.settled.set()
                failure = await self._serve(life)
                self._state = "stopping"
            if life.child is not None:
                await life.child.end()
        except asyncio.CancelledError:
            failure = Failure(RuntimeClosed, "its event loop ended", counts=False)
            raise
        finally:
            if life.child is not None:
                life.child.abandon()  # without effect after an orderly end
            self._end(life, failure)

    def _end(self, life: _Life, failure: Failure | None) -> None:
        """The last act of a life, in one piece: what callers may read and what they wait for change together."""
        now = self._clock()
        if life.ready_at is not None and now - life.ready_at >= self._policy.healthy_s:
            self._crashes = NO_CRASHES
        self._failure = None if life.stop_requested else failure
        if self._failure is not None and self._failure.counts:
            self._crashes = self._crashes.and_one(now, self._failure.lasting)
        life.failure = self._failure or self._stopped()
        self._state = "stopped" if self._failure is None else "failed"
        self._life = None
        life.settled.set()
        life.over.set()
        self._on_end()

    def _stopped(self) -> Failure:
        if self._closed:
            return Failure(RuntimeClosed, "Tandem is shutting down", counts=False)
        return Failure(StartFailed, "it was stopped while it was starting", counts=False)

    async def _start(self, life: _Life) -> Failure | None:
        """None once it serves. A child that lost its port to another program gets a second and a third one."""
        key = secrets.token_urlsafe(KEY_BYTES)
        for attempt in range(1, PORT_TRIES + 1):
            try:
                port = self._port or free_port()
                # in a thread: a plan for the GPU asks nvidia-smi how much memory is free
                launch = life.launch = await asyncio.to_thread(self._launch_for, port, key)
                if self._port and is_taken(launch.host, port):
                    return Failure(StartFailed, f"port {port} of {launch.host} is taken by another program; stop it or choose another port")
                child = life.child = Child(launch, log=self.log, grace_s=self._stop_grace_s, on_exit=life.interrupted.set)
            except StartFailed as error:
                return Failure(StartFailed, error.reason, counts=False)
            except OSError as error:
                return Failure(StartFailed, f"it could not be run: {error}", counts=False)
            failure = await self._await_ready(life, child, launch, port, key)
            if failure is None:
                life.address = Address(launch.host, port, key)
                return None
            await child.end()
            if life.stop_requested or self._port or attempt == PORT_TRIES or not self._lost_its_port(child, launch, port):
                return failure
            life.interrupted.clear()
        raise AssertionError("the last attempt returns")

    async def _await_ready(self, life: _Life, child: Child, launch: Launch, port: int, key: str) -> Failure | None:
        try:
            async with asyncio.timeout(self._start_timeout_s):
                await unless(life.interrupted, self._become_ready(launch, port, key))
        except TimeoutError:
            return Failure(StartTimeout, self._timeout_reason())
        except _NotServing as trouble:
            await happens(child.exited, LOG_LAG_S)
            return self._failed_child(launch, f"it said that it is healthy, but {trouble}")
        if life.interrupted.is_set():
            return self._exit_failure(child, launch)
        return None

    async def _become_ready(self, launch: Launch, port: int, key: str) -> None:
        """Return when it is ready. Raises _NotServing."""
        log = Follower(self.log)
        loading = STARTING
        pause_s = FIRST_POLL_S
        while True:
            health = await ask_health(launch.host, port, launch.ready_path, timeout_s=HEALTH_TIMEOUT_S)
            if launch.vllm_model is not None:
                loading = advance(loading, log.new_lines())
                health = replace(health, progress=loading.progress, stage=loading.stage)
            self._health = health
            if health.is_ready and (launch.vllm_model is None or await self._proves_itself(launch.vllm_model, launch.host, port, key)):
                return
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 1.5, LONGEST_POLL_S)

    async def _proves_itself(self, model: str, host: str, port: int, key: str) -> bool:
        """Whether it lists its model and makes a token of it; False where it has yet to answer. Raises _NotServing."""
        self._health = _loading(LISTING)
        try:
            trouble = await ask_for_model(host, port, key, model)
        except (OSError, TimeoutError):
            return False
        if trouble is None:
            self._health = _loading(FIRST_TOKEN)
            trouble = await ask_for_token(host, port, key, model)
        if trouble is not None:
            raise _NotServing(trouble)
        return True

    async def _serve(self, life: _Life) -> Failure | None:
        """Return when it does not serve any more, and why: None when it was asked to stop."""
        launch, address = life.launch, life.address
        assert launch is not None
        assert address is not None
        await unless(life.interrupted, self._watch(life, launch, address.port))
        life.interrupted.set()  # whoever waits to hear of its end hears of it now
        return None if life.stop_requested else self._death(life)

    async def _watch(self, life: _Life, launch: Launch, port: int) -> None:
        """Return when it says that its engine is dead: more than once, or once where somebody suspected it. No answer is no reason: a

        busy worker may be late.
        """
        unhealthy = 0
        while unhealthy < UNHEALTHY_ANSWERS:
            suspected = await happens(life.suspected, LOOK_AGAIN_S if unhealthy else self._watch_interval_s)
            life.suspected.clear()
            health = await ask_health(launch.host, port, launch.ready_path, timeout_s=HEALTH_TIMEOUT_S)
            unhealthy = unhealthy + (UNHEALTHY_ANSWERS if suspected else 1) if health.status == 503 else 0

    def _death(self, life: _Life) -> Failure:
        """Why it does not serve any more, though nobody stopped it. Read from its log once, however many ask."""
        if life.death is None:
            child, launch = life.child, life.launch
            assert child is not None
            assert launch is not None
            if child.exited.is_set():
                life.death = self._exit_failure(child, launch)
            else:
                words = f"it kept answering 503 to GET {launch.ready_path} after it had been ready"
                life.death = self._failed_child(launch, words)
            # what lasts shows in a start; in a log of days the same words may have been said of a request
            life.death = replace(life.death, lasting=False)
        return life.death

    def _lost_its_port(self, child: Child, launch: Launch, port: int) -> bool:
        """Whether somebody else took its port after `free_port`. The other one may be gone again, so the log counts too."""
        if child.status in (0, None):
            return False
        return is_taken(launch.host, port) or "address already in use" in read_tail(self.log).lower()

    def _exit_failure(self, child: Child, launch: Launch) -> Failure:
        if child.trouble is not None:
            return Failure(StartFailed, f"its guard process could not run it: {child.trouble}")
        if child.status is None:
            return Failure(StartFailed, "its guard process was killed from outside")
        return self._failed_child(launch, exit_words(child.status), last_useful_line(read_tail(self.log)))

    def _failed_child(self, launch: Launch, words: str, last_line: str | None = None) -> Failure:
        """words: how its end was noticed. last_line: of its log, said where that explains nothing by itself."""
        explanation = explain(read_tail(self.log, EXPLAINED_BYTES)) if launch.vllm_model is not None else None
        why = explanation.sentence if explanation else last_line
        lasting = explanation is not None and explanation.lasting
        return Failure(StartFailed, f"{words}{f': {why}' if why else ''}; {self._see_log()}", lasting=lasting)

    def _timeout_reason(self) -> str:
        health, last_line = self._health, last_useful_line(read_tail(self.log))
        words = [f"it was not ready within {self._start_timeout_s:g} s"]
        if health.stage:
            words.append(f"it was at {health.stage!r}" + ("" if health.progress is None else f", {health.progress:.0%}"))
        if last_line:
            words.append(f"the last line of its log is: {last_line}")
        words.append(f"raise start_timeout_s if it only needs longer; {self._see_log()}")
        return "; ".join(words)

    def _see_log(self) -> str:
        return f"see {self.log.parent.name}/{self.log.name}"


def _report_fault(task: asyncio.Task[None]) -> None:
    """An error in this module must be seen, though nobody waits for the task."""
    if not task.cancelled() and (error := task.exception()) is not None:
        task.get_loop().call_exception_handler({"message": f"fault in the {task.get_name()}", "exception": error, "task": task})


async def unless(event: asyncio.Event, work: Coroutine[Any, Any, None]) -> None:
    """Do `work` to its end, or cancel it as soon as `event` is set."""
    tasks = [asyncio.ensure_future(work), asyncio.ensure_future(event.wait())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if tasks[0].done():
            tasks[0].result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def happens(event: asyncio.Event, within_s: float) -> bool:
    """Whether `event` is set by then."""
    try:
        await asyncio.wait_for(event.wait(), within_s)
    except TimeoutError:
        return False
    return True


def _loading(loading: Loading) -> Health:
    return Health(progress=loading.progress, stage=loading.stage)


def free_port(host: str = HOST) -> int:
    """A TCP port that nobody had a moment ago. Raises OSError."""
    with socket.socket(_family(host)) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def is_taken(host: str, port: int) -> bool:
    with socket.socket(_family(host)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error.errno == errno.EADDRINUSE
    return False


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def exit_words(status: int) -> str:
    """How it ended. status: negative for a signal."""
    if status >= 0:
        return f"it ended with exit code {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = "an unknown signal"
    hint = " (by a person, or by the system for lack of memory)" if name == "SIGKILL" else ""
    return f"it was killed by {name}, {-status}{hint}"
