"""The chat worker: OpenAI's chat completions over one local model.

    python -m local_models.workers.chat_server --model DIR --served-model-name NAME --port P

Only this process's engine thread imports torch; the event loop answers /health while it does.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from local_models.workers.chat_replies import ChatReply
from local_models.workers.chat_request import parse_chat_request
from local_models.workers.checkpoint import find_checkpoint
from local_models.workers.errors import ApiError
from local_models.workers.jobs import JobThread
from local_models.workers.serving import (
    Health,
    arguments,
    build_app,
    event_stream,
    give_up,
    in_thread,
    quiet_environment,
    read_json,
    serve,
    settle_memory,
    trim_memory,
    while_connected,
    worker_key,
)

if TYPE_CHECKING:
    from local_models.workers.chat_engine import ChatEngine
    from local_models.workers.chat_prompt import PromptBuilder

IMPORTING = 0.25  # share of a small model's loading time


class ChatWorker:
    """The routes, and the engine that its thread fills in."""

    def __init__(self, model: str, served_model_name: str, device: str, dtype: str, max_queue: int) -> None:
        self.health = Health()
        self._model, self._device, self._dtype = model, device, dtype
        self._name = served_model_name
        self._created = int(time.time())
        self._engine: ChatEngine | None = None
        self._prompts: PromptBuilder | None = None
        self._preparing = ThreadPoolExecutor(1, thread_name_prefix="prompt")
        self.jobs = JobThread(self._load, max_queue=max_queue, give_up=give_up, after_job=trim_memory, translate=self._translate)

    def routes(self) -> list[Route]:
        return [Route("/v1/models", self.models), Route("/v1/chat/completions", self.chat_completions, methods=["POST"])]

    def figures(self) -> dict[str, int]:
        return {**self.jobs.load_figures(), "tokens_generated": self._engine.tokens_generated if self._engine else 0}

    async def models(self, request: Request) -> Response:
        assert self._engine is not None
        model = {
            "id": self._name,
            "object": "model",
            "created": self._created,
            "owned_by": "tandem",
            "max_model_len": self._engine.context_length,
        }
        return JSONResponse({"object": "list", "data": [model]})

    async def chat_completions(self, request: Request) -> Response:
        from local_models.workers.chat_answers import write_answers

        assert self._engine is not None
        assert self._prompts is not None
        asked = parse_chat_request(await read_json(request), self._name)
        prompt = await while_connected(request, in_thread(self._preparing, partial(self._prompts.build, asked)))
        job = self.jobs.submit(partial(write_answers, self._engine, asked, prompt))
        reply = ChatReply(self._name, len(prompt.token_ids), include_usage=asked.include_usage)
        if asked.stream:
            return await event_stream(request, job, reply.frames(job.items()))
        try:
            return JSONResponse(await while_connected(request, reply.whole(job.items())))
        finally:
            job.cancel()

    def _load(self) -> None:
        folder = find_checkpoint(self._model, "config.json")
        self.health.advance("importing torch and transformers", 0.02)
        from local_models.workers import chat_engine
        from local_models.workers.chat_prompt import PromptBuilder

        def report(stage: str, done: float) -> None:
            self.health.advance(stage, IMPORTING + (1 - IMPORTING) * done)

        engine = chat_engine.load(folder, self._device, self._dtype, report)
        self._prompts = PromptBuilder(engine.tokenizer, engine.images, context_length=engine.context_length, model_name=self._name)
        self._engine = engine
        settle_memory()
        self.health.ready()

    def _translate(self, error: Exception) -> ApiError | None:
        from local_models.workers.torch_device import answer_to

        return answer_to(error, "send a shorter prompt or a smaller max_tokens")


def main() -> None:
    options = arguments("Serve one chat model on 127.0.0.1.").parse_args()
    quiet_environment()
    key = worker_key()
    worker = ChatWorker(options.model, options.served_model_name or options.model, options.device, options.dtype, options.max_queue)
    app = build_app(worker.routes(), key=key, health=worker.health, figures=worker.figures)
    serve(app, worker.jobs, options.port)


if __name__ == "__main__":
    main()
