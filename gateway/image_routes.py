"""POST /v1/images/generations: who asks, what for, within which limits; then a job, whose events are the answer.

However it ends, its place among the limits is given back and its record goes to every sink, once.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass

import orjson
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from adapters.base import ImageUpstream
from gateway import image_request, images, replies
from gateway.admission import Admission, Admitted
from gateway.auth import KeyRing
from gateway.body import read_body
from gateway.departure import Departure
from gateway.description import EVENTS, Responses, body_of, errors, reply
from gateway.errors import to_gateway_error
from gateway.image_request import ImageRequest
from gateway.jobs import ImageJob, JobQueue
from gateway.record import CLIENT_LEFT, Outcome, RequestRecord, Sink, note_departure, note_failure
from gateway.routing import Route, Router
from local_models.runtime import Runtime

PREFIX = "/v1/images"
GENERATIONS = f"{PREFIX}/generations"


@dataclass(frozen=True, slots=True)
class ImageDoor:
    """What an image request needs on its way to an engine."""

    router: Router
    queues: Mapping[str, JobQueue]
    runtime: Runtime
    keys: KeyRing
    admission: Admission
    max_body_bytes: int
    sinks: Sequence[Sink] = ()


def image_routes(door: ImageDoor) -> APIRouter:
    routes = APIRouter(prefix=PREFIX)

    @routes.post("/generations", openapi_extra={"requestBody": body_of(ImageRequest)}, responses=_replies())
    async def generate_images(request: Request) -> Response:
        """Pictures from a text, as OpenAI's images API."""
        visit = _Visit(door, RequestRecord(request.state.request_id, GENERATIONS, time.time()))
        try:
            return await _generate(door, request, visit)
        except ClientDisconnect:
            note_departure(visit.record)
            return Response(status_code=CLIENT_LEFT)  # nobody reads it
        except Exception as error:
            note_failure(visit.record, to_gateway_error(error))
            raise
        finally:
            visit.end_unless_streaming()

    return routes


def _replies() -> Responses:
    pictures = reply(replies.Pictures, "The pictures, or with stream: true the events on the way to them; the last may be an error.")
    pictures["content"]["text/event-stream"] = dict(EVENTS)
    return {200: pictures, **errors(400, 401, 403, 404, 413, 429, 500, 502, 503, 504, passed_on=True)}


async def _generate(door: ImageDoor, request: Request, visit: _Visit) -> Response:
    key = door.keys.check(request.scope["headers"])
    record = visit.record
    record.key_id = key.id
    body = await read_body(request.scope, request.receive, door.max_body_bytes)
    asked = image_request.parse(body)
    route = door.router.image(asked.model)
    record.model, record.stream = route.model.name, bool(asked.stream)
    job = _job(asked, route)
    visit.admitted = door.admission.admit(key, record.model, 0)
    visit.job = job
    headers = {name.decode(): value.decode() for name, value in visit.admitted.headers}
    events = images.run_job(job, route, door.queues, door.runtime)
    with Departure(request.scope):
        if not asked.stream:
            async with aclosing(events):
                reply = JSONResponse(await images.collect(job, events), headers=headers)
            record.status = 200
            return reply
        first = await anext(events)  # a job that cannot start is refused with its real status
        return _Events(visit, first, events, headers)
    note_departure(record)
    return Response(status_code=CLIENT_LEFT)  # nobody reads it


def _job(asked: ImageRequest, route: Route[ImageUpstream]) -> ImageJob:
    return ImageJob(f"img_{secrets.token_hex(12)}", route.model.name, image_request.work_for(asked, route.model))


class _Visit:
    """One request from its beginning to the end of its answer. job: once it is known what is wanted."""

    def __init__(self, door: ImageDoor, record: RequestRecord) -> None:
        self.record = record
        self.admitted: Admitted | None = None
        self.job: ImageJob | None = None
        self.streaming = False
        self._sinks = door.sinks
        self._started = time.monotonic()

    def end_unless_streaming(self) -> None:
        if not self.streaming:
            self.end()

    def end(self) -> None:
        """Once."""
        record, job = self.record, self.job
        if self.admitted is not None:
            self.admitted.release(0, None)
        record.duration_s = time.monotonic() - self._started
        if job is not None:
            record.images, record.upstream, record.upstream_model = job.pictures, job.upstream, job.upstream_model
            record.upstream_s = time.monotonic() - job.made_at
        for sink in self._sinks:
            sink(record)


class _Events(EventSourceResponse):
    """A streamed answer, which is over when it has been sent, however that ends."""

    def __init__(self, visit: _Visit, first: images.Event, rest: AsyncGenerator[images.Event, None], headers: Mapping[str, str]) -> None:
        self._visit, self._rest = visit, rest
        visit.streaming = True
        super().__init__(self._server_sent(first), headers=headers, sep="\n")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        record = self._visit.record
        record.status, record.outcome = 200, "client_left"  # unless the last event goes out
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._rest.aclose()
            self._visit.end()

    async def _server_sent(self, first: images.Event) -> AsyncGenerator[ServerSentEvent, None]:
        record = self._visit.record
        outcome: Outcome = "ok"
        async for event in images.to_the_end(first, self._rest):
            if event["type"] == "error":
                outcome, record.error_code = "failed", event["error"]["code"]
            yield ServerSentEvent(orjson.dumps(event).decode(), event=event["type"])
        record.outcome = outcome
