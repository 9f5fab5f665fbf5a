"""The engine thread and its queue, with plain functions for an engine."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from local_models.workers.errors import ApiError, EngineBroken
from local_models.workers.jobs import IDLE, Job, JobThread

Start = Callable[..., JobThread]


def translate(error: Exception) -> ApiError | None:
    if isinstance(error, SystemError):
        raise EngineBroken("the device is gone")
    return None


@pytest.fixture
def given_up() -> list[Exception]:
    return []


@pytest.fixture
def start(given_up: list[Exception]) -> Iterator[Start]:
    threads: list[JobThread] = []

    def started(max_queue: int = 8, after_job: Callable[[], None] = lambda: None) -> JobThread:
        jobs = JobThread(lambda: None, max_queue=max_queue, give_up=given_up.append, after_job=after_job, translate=translate)
        jobs.start()
        threads.append(jobs)
        return jobs

    yield started
    for jobs in threads:
        jobs.close()


async def collect(job: Job) -> list[Any]:
    return [item async for item in job.items()]


async def test_jobs_run_in_order_one_at_a_time(start: Start) -> None:
    jobs = start()
    running: list[int] = []

    def work(number: int) -> Callable[[Job], None]:
        def run(job: Job) -> None:
            running.append(number)
            assert len(running) == 1
            job.emit(number)
            running.remove(number)

        return run

    queued = [jobs.submit(work(number)) for number in range(5)]
    assert [await collect(job) for job in queued] == [[0], [1], [2], [3], [4]]


async def test_one_failure_does_not_end_the_thread(start: Start) -> None:
    jobs = start()

    def fails(job: Job) -> None:
        raise KeyError("x")

    with pytest.raises(ApiError, match="The engine failed: KeyError"):
        await collect(jobs.submit(fails))
    assert await collect(jobs.submit(lambda job: job.emit("fine"))) == ["fine"]


async def test_a_broken_engine_gives_up(start: Start, given_up: list[Exception]) -> None:
    def breaks(job: Job) -> None:
        raise SystemError

    with pytest.raises(ApiError, match="the device is gone"):
        await collect(start().submit(breaks))
    assert [str(error) for error in given_up] == ["the device is gone"]


async def test_a_job_cancelled_while_it_waits_never_runs(start: Start) -> None:
    jobs = start(max_queue=1)
    release = threading.Event()
    ran: list[str] = []

    def hold(job: Job) -> None:
        job.emit("on")
        release.wait()

    first = jobs.submit(hold)
    items = first.items()
    assert await anext(items) == "on"
    second = jobs.submit(lambda job: ran.append("second"))
    with pytest.raises(ApiError, match="limit is 1"):
        jobs.submit(lambda job: None)
    second.cancel()
    third = jobs.submit(lambda job: ran.append("third"))
    release.set()
    await collect(third)
    assert ran == ["third"]


async def test_leaving_the_items_cancels_the_running_job(start: Start) -> None:
    left = threading.Event()
    jobs = start(after_job=left.set)

    def endless(job: Job) -> None:
        while True:
            job.emit("step")
            job.checkpoint()

    items = jobs.submit(endless).items()
    await anext(items)
    await items.aclose()  # type: ignore[attr-defined]  # an async generator, typed as what its callers need
    assert await asyncio.to_thread(left.wait, 10)


async def test_silence_is_told(start: Start) -> None:
    release = threading.Event()

    def late(job: Job) -> None:
        release.wait()
        job.emit("late")

    items = start().submit(late).items(idle_s=0.01)
    assert await anext(items) is IDLE
    release.set()
    assert [item async for item in items if item is not IDLE] == ["late"]


async def test_closing_fails_the_waiting_and_the_running(start: Start) -> None:
    jobs = start()
    release = threading.Event()
    running, waiting = jobs.submit(lambda job: (release.wait(), None)[-1]), jobs.submit(lambda job: None)
    jobs.close()
    for job in (running, waiting):
        with pytest.raises(ApiError, match="shutting down"):
            await collect(job)
    release.set()
    with pytest.raises(ApiError, match="shutting down"):
        jobs.submit(lambda job: None)
