"""POST /v1/images/generations: an image request as a job, and the job's events as they come.

`run_job` is the one line that a job goes along, streamed or not: place in the queue, turn, engine, steps, pictures. Closing it
anywhere (the client has left) frees the place and stops the engine at its next step.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

from adapters.base import ImageUpstream
from adapters.errors import UpstreamError, bad_reply
from gateway.errors import GatewayError, to_gateway_error
from gateway.jobs import ImageJob, JobQueue
from gateway.routing import Route, Target, another_may_help
from local_models.errors import EngineError
from local_models.runtime import Runtime

LOADING_REPORT_S = 0.5  # between two reports on an engine that loads

Event = dict[str, Any]


async def run_job(
    job: ImageJob, route: Route[ImageUpstream], queues: Mapping[str, JobQueue], runtime: Runtime
) -> AsyncGenerator[Event, None]:
    """The job's events under the names that a streaming client sees, `image_generation.completed` once for each picture.

    Raises GatewayError, UpstreamError, EngineError.
    """
    usable = route.usable
    for target in usable:
        try:
            async with aclosing(_run_on(job, target, queues[target.deployment.engine_id], runtime)) as events:
                async for event in events:
                    yield event
            return
        except (UpstreamError, EngineError) as error:
            if job.step or target is usable[-1] or not another_may_help(error):
                raise


async def _run_on(job: ImageJob, target: Target[ImageUpstream], queue: JobQueue, runtime: Runtime) -> AsyncGenerator[Event, None]:
    job.upstream, job.upstream_model = target.deployment.upstream, target.deployment.model
    async with queue.place(job):
        async for position in queue.positions(job):
            yield {"type": "image_generation.queued", "job_id": job.id, "position": position}
        job.started_at = time.monotonic()
        async with aclosing(_with_loading(job, target, runtime)) as events:
            async for event in events:
                if (translated := _translate(job, event)) is not None:
                    yield translated
        if not job.done:
            raise bad_reply(target.deployment.engine_id, "no more events before its job was done")


async def _with_loading(job: ImageJob, target: Target[ImageUpstream], runtime: Runtime) -> AsyncGenerator[Event, None]:
    """The engine's events, after reports on its loading where it has to load first."""
    engine_events = target.upstream.generate(job.request, job.id)
    first: asyncio.Task[Event | None] = asyncio.ensure_future(anext(engine_events, None))
    try:
        while not first.done():
            status = runtime.status(target.deployment.engine_id)
            if status.state == "starting":
                job.started_at = time.monotonic()  # loading is no measure of drawing
                yield {"type": "loading", "progress": status.progress, "stage": status.stage}
            await asyncio.wait({first}, timeout=LOADING_REPORT_S)
        if (event := first.result()) is not None:
            yield event
        async for event in engine_events:
            yield event
    finally:
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        await engine_events.aclose()


def _translate(job: ImageJob, event: Event) -> Event | None:
    """A worker's event as the client sees it. Raises the GatewayError that an error event holds."""
    match event["type"]:
        case "loading":
            return event | {"type": "image_generation.loading", "job_id": job.id}
        case "progress":
            done = event["image_index"] * event["steps"] + event["step"]
            job.step = done
            assert job.started_at is not None, "a job that makes progress has started"
            left = job.request["n"] * event["steps"] - done
            eta_s = round((time.monotonic() - job.started_at) / done * left, 1) if done else None
            return event | {"type": "image_generation.progress", "job_id": job.id, "eta_s": eta_s}
        case "image":
            job.pictures += 1
            return _completed(job, event)
        case "error":
            error = event["error"]
            raise GatewayError(500, error["message"], error.get("code"), error.get("type") or "api_error", error.get("param"))
        case "done":
            job.done = True
    return None


def _made_with(job: ImageJob) -> Event:
    """What a reply says of the job as a whole, streamed or not."""
    return {
        "job_id": job.id,
        "model": job.model,
        "output_format": "png",
        "quality": "auto",
        "background": "opaque",
        "num_inference_steps": job.request["num_inference_steps"],
        "guidance_scale": job.request.get("guidance_scale"),
    }


def _completed(job: ImageJob, event: Event) -> Event:
    return {
        "type": "image_generation.completed",
        **_made_with(job),
        "created_at": int(time.time()),
        "b64_json": event["b64_json"],
        "image_index": event["image_index"],
        "seed": event["seed"],
        "size": f"{event['width']}x{event['height']}",
        "duration_s": event["duration_s"],
    }


async def collect(job: ImageJob, events: AsyncGenerator[Event, None]) -> Event:
    """The reply to a client that does not stream. Raises what `run_job` raises."""
    completed = [event async for event in events if event["type"] == "image_generation.completed"]
    return {
        "created": int(time.time()),
        "data": [{"b64_json": event["b64_json"], "seed": event["seed"]} for event in completed],
        "size": f"{job.request['width']}x{job.request['height']}",
        **_made_with(job),
    }


async def to_the_end(first: Event, rest: AsyncGenerator[Event, None]) -> AsyncGenerator[Event, None]:
    """The events of a response that has begun: a failure is the last of them."""
    try:
        yield first
        async for event in rest:
            yield event
    except Exception as error:  # noqa: BLE001 - every failure becomes one error of ours
        yield {"type": "error", **to_gateway_error(error).document}
