"""Image jobs: every image request is one, and each engine does one at a time, in order of arrival.

`JobQueue.place` is the only way to an engine; whoever leaves, waiting or working, leaves no trace in the queue.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from config.schema import DiffusersUpstream, Settings
from gateway.errors import queue_full

FIRST_GUESS_S = 5.0  # how long a job takes, as long as none has been seen


@dataclass(slots=True, eq=False)
class ImageJob:
    """One image request on its way.

    request: what the worker is asked for. position: jobs ahead of it. step: of all its pictures together. upstream, upstream_model: the
    deployment that works on it. made_at, started_at: when it came, and when its turn came and the engine was there (time.monotonic()).
    """

    id: str
    model: str
    request: dict[str, Any]
    position: int = 0
    step: int = 0
    done: bool = False
    pictures: int = 0
    upstream: str = ""
    upstream_model: str = ""
    made_at: float = field(default_factory=time.monotonic)
    started_at: float | None = None
    moved: asyncio.Event = field(default_factory=asyncio.Event)

    def move(self, position: int) -> None:
        self.position = position
        self.moved.set()


@dataclass(frozen=True, slots=True)
class JobsStatus:
    """For people, out of date as soon as it is made. step and steps: of all the pictures of the running job together."""

    step: int
    steps: int
    waiting: int


class JobQueue:
    """The jobs of one engine. limit: how many may wait."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._jobs: deque[ImageJob] = deque()  # the first one has the engine
        self._typical_s = FIRST_GUESS_S

    def status(self) -> JobsStatus | None:
        """How far the running job is, and how many wait; None where there is no job."""
        if not self._jobs:
            return None
        running = self._jobs[0]
        return JobsStatus(running.step, running.request["n"] * running.request["num_inference_steps"], len(self._jobs) - 1)

    @asynccontextmanager
    async def place(self, job: ImageJob) -> AsyncIterator[None]:
        """A place in the queue for as long as the block runs. Raises GatewayError (429) when it is full."""
        if len(self._jobs) > self.limit:
            raise queue_full(job.model, self.limit, self._typical_s * len(self._jobs))
        job.move(len(self._jobs))
        self._jobs.append(job)
        try:
            yield
        finally:
            self._jobs.remove(job)
            for position, other in enumerate(self._jobs):
                other.move(position)
            if job.done and job.started_at is not None:
                self._typical_s += 0.3 * (time.monotonic() - job.started_at - self._typical_s)

    @staticmethod
    async def positions(job: ImageJob) -> AsyncIterator[int]:
        """How many are ahead, each time that changes; ends when it is this job's turn."""
        while job.position > 0:
            yield job.position
            job.moved.clear()
            await job.moved.wait()


def image_queues(settings: Settings, known: Mapping[str, JobQueue]) -> dict[str, JobQueue]:
    """A queue for each image engine, by engine id. known: those of the configuration before, whose jobs keep their places."""
    queues: dict[str, JobQueue] = {}
    for model in settings.models:
        for deployment in model.deployments:
            upstream = settings.upstreams[deployment.upstream]
            if isinstance(upstream, DiffusersUpstream):
                queue = queues.setdefault(deployment.engine_id, known.get(deployment.engine_id) or JobQueue(upstream.max_queue))
                queue.limit = upstream.max_queue
    return queues
