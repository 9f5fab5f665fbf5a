"""One thread that owns the engine, and the jobs that wait for it.

Everything that touches the model runs in this thread, first come first served, so neither a KV cache nor a scheduler
is ever shared. A job that nobody waits for is dropped from the queue at once, or told to stop between two steps.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

from local_models.workers.errors import ApiError, Cancelled, EngineBroken, internal_error

IDLE_S = 10.0
IDLE = object()

Work = Callable[["Job"], None]


@dataclass(frozen=True)
class _End:
    error: BaseException | None


class Job:
    """One piece of work: the engine thread emits items, one coroutine reads them."""

    def __init__(self, work: Work, leave_queue: Callable[[Job], None]) -> None:
        self.work = work
        self._leave_queue = leave_queue
        self._loop = asyncio.get_running_loop()
        self._items: asyncio.Queue[Any] = asyncio.Queue()
        self._cancelled = threading.Event()

    def emit(self, item: object) -> None:
        try:
            self._loop.call_soon_threadsafe(self._items.put_nowait, item)
        except RuntimeError:  # the loop closed under a job that was still running: the process is on its way out
            self._cancelled.set()

    def checkpoint(self) -> None:
        """Raise Cancelled if the job should not go on. The engine calls it between two steps."""
        if self._cancelled.is_set():
            raise Cancelled

    def cancel(self) -> None:
        self._cancelled.set()
        self._leave_queue(self)

    async def items(self, idle_s: float = IDLE_S) -> AsyncIterator[Any]:
        """What the engine emits, to the end, and IDLE after each `idle_s` without anything.

        Raises what the work raised. Leaving early cancels the job.
        """
        try:
            while True:
                try:
                    async with asyncio.timeout(idle_s):
                        item = await self._items.get()
                except TimeoutError:
                    item = IDLE
                if isinstance(item, _End):
                    if item.error is not None:
                        raise item.error
                    return
                yield item
        finally:
            self.cancel()


class JobThread:
    """Runs `load` once, then one job at a time.

    `max_queue` bounds the jobs that wait behind the running one. `translate` turns an exception of the engine into an
    ApiError, so that one bad job never ends the worker; it raises EngineBroken where no later job could succeed.
    `give_up` gets what stops the load or breaks the engine, and ends the process.
    """

    def __init__(
        self,
        load: Callable[[], None],
        *,
        max_queue: int,
        give_up: Callable[[Exception], None],
        after_job: Callable[[], None],
        translate: Callable[[Exception], ApiError | None],
    ) -> None:
        self._load = load
        self._max_queue = max_queue
        self._give_up = give_up
        self._after_job = after_job
        self._translate = translate
        self._waiting: deque[Job] = deque()
        self._running: Job | None = None
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def submit(self, work: Work) -> Job:
        """Queue the work. Raises ApiError 429 when `max_queue` jobs wait already."""
        with self._changed:
            if self._closing:
                raise shutting_down()
            if len(self._waiting) >= self._max_queue:
                raise ApiError(
                    f"{len(self._waiting)} requests wait for this model already and the limit is {self._max_queue}; try again in a moment.",
                    status=429,
                    type="rate_limit_error",
                    code="queue_full",
                    headers={"retry-after": "1"},
                )
            job = Job(work, self._forget)
            self._waiting.append(job)
            self._changed.notify()
        return job

    def load_figures(self) -> dict[str, int]:
        with self._changed:
            return {"running": int(self._running is not None), "queued": len(self._waiting)}

    def close(self) -> None:
        """Abort everything: the running job at its next step, the waiting ones now."""
        with self._changed:
            self._closing = True
            jobs = [*self._waiting, *([self._running] if self._running else [])]
            self._waiting.clear()
            self._changed.notify()
        for job in jobs:
            job.cancel()
            job.emit(_End(shutting_down()))

    def _forget(self, job: Job) -> None:
        with self._changed:
            if job in self._waiting:
                self._waiting.remove(job)

    def _run(self) -> None:
        try:
            self._load()
        except Exception as error:  # noqa: BLE001 - whatever stops the load ends the process with one line
            self._give_up(error)
            return
        while (job := self._next_job()) is not None:
            self._run_job(job)

    def _next_job(self) -> Job | None:
        with self._changed:
            self._running = None
            self._changed.wait_for(lambda: self._waiting or self._closing)
            if self._closing:
                return None
            self._running = self._waiting.popleft()
            return self._running

    def _run_job(self, job: Job) -> None:
        error: BaseException | None = None
        try:
            job.checkpoint()
            job.work(job)
        except ApiError as refused:
            error = refused
        except Cancelled:
            pass
        except Exception as failure:  # noqa: BLE001 - the worker outlives any one job
            error = self._answer_to(failure)
        job.emit(_End(error))
        self._after_job()

    def _answer_to(self, failure: Exception) -> ApiError:
        try:
            return self._translate(failure) or internal_error(f"The engine failed: {type(failure).__name__}: {failure}")
        except EngineBroken as broken:
            self._give_up(broken)
            return internal_error(str(broken))


def shutting_down() -> ApiError:
    return ApiError(
        "The model's worker is shutting down; send the request again.",
        status=503,
        type="server_error",
        code="shutting_down",
        headers={"retry-after": "1"},
    )
