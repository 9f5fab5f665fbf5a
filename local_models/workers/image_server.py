"""The image worker: one diffusers pipeline, told step by step over HTTP.

    python -m local_models.workers.image_server --model DIR --served-model-name NAME --port P

An answer is a stream of JSON events: progress after each step, an image as soon as it is finished, then done or error.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from local_models.workers.chat_request import check_model
from local_models.workers.checkpoint import find_checkpoint
from local_models.workers.errors import ApiError
from local_models.workers.image_request import parse_image_request
from local_models.workers.jobs import IDLE, JobThread
from local_models.workers.serving import (
    KEEP_ALIVE,
    Health,
    arguments,
    build_app,
    event_stream,
    give_up,
    quiet_environment,
    read_json,
    serve,
    settle_memory,
    sse,
    trim_memory,
    worker_key,
)

if TYPE_CHECKING:
    from local_models.workers.image_engine import ImageEngine

IMPORTING = 0.4  # share of a small pipeline's loading time


class ImageWorker:
    """The route, and the engine that its thread fills in."""

    def __init__(self, model: str, served_model_name: str, device: str, dtype: str, max_queue: int) -> None:
        self.health = Health()
        self._model, self._device, self._dtype = model, device, dtype
        self._name = served_model_name
        self._engine: ImageEngine | None = None
        self.jobs = JobThread(self._load, max_queue=max_queue, give_up=give_up, after_job=self._clean_up, translate=self._translate)

    def routes(self) -> list[Route]:
        return [Route("/v1/images/generations", self.generations, methods=["POST"])]

    def figures(self) -> dict[str, int]:
        return {**self.jobs.load_figures(), "steps_done": self._engine.steps_done if self._engine else 0}

    async def generations(self, request: Request) -> Response:
        assert self._engine is not None
        body = await read_json(request)
        if "model" in body:
            check_model(body, self._name)
        asked = parse_image_request(body)
        self._engine.check(asked)
        job = self.jobs.submit(partial(self._engine.draw, asked))
        return await event_stream(request, job, _frames(job.items()))

    def _load(self) -> None:
        folder = find_checkpoint(self._model, "model_index.json")
        self.health.advance("importing torch and diffusers", 0.02)
        from local_models.workers import image_engine

        def report(stage: str, done: float) -> None:
            self.health.advance(stage, IMPORTING + (1 - IMPORTING) * done)

        self._engine = image_engine.load(folder, self._device, self._dtype, report)
        settle_memory()
        self.health.ready()

    def _clean_up(self) -> None:
        from local_models.workers.torch_device import empty_cache

        trim_memory()
        empty_cache()

    def _translate(self, error: Exception) -> ApiError | None:
        from local_models.workers.torch_device import answer_to

        return answer_to(error, "ask for a smaller size")


async def _frames(items: AsyncIterator[Any]) -> AsyncIterator[bytes]:
    """An ApiError before the first frame is raised; a later one is told in the stream."""
    started = False
    try:
        async for item in items:
            started = True
            yield KEEP_ALIVE if item is IDLE else sse(item)
    except ApiError as error:
        if not started:
            raise
        yield sse({"type": "error", **error.body()})


def main() -> None:
    options = arguments("Serve one image pipeline on 127.0.0.1.").parse_args()
    quiet_environment()
    key = worker_key()
    worker = ImageWorker(options.model, options.served_model_name or options.model, options.device, options.dtype, options.max_queue)
    serve(build_app(worker.routes(), key=key, health=worker.health, figures=worker.figures), worker.jobs, options.port)


if __name__ == "__main__":
    main()
