"""A scripted gateway over real HTTP: it speaks the gateway's dialect and obeys words in the prompt.

In a chat: `slow`, `on and on` (words until `enough` is set), `think`, `hang`, `silent` (no headers), `refuse` (429), `break` (error
event), `cut` (the connection drops), `long` (much Markdown). For a picture: `slow`, `never done` (no step after the third until
`enough` is set), `queue`, `break`, `refuse`. Everything else is answered at once. Run `python -m tests.chat_app.fake_gateway PORT` to
try the app by hand.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import queue
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import uvicorn
from PIL import Image, ImageDraw
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

IMAGE_FACTS = {
    "default_size": "128x128",
    "size_multiple": 32,
    "min_side": 64,
    "max_side": 256,
    "max_n": 4,
    "num_inference_steps": 8,
    "max_num_inference_steps": 50,
    "guidance_scale": 3.0,
}
POEM = "The quick brown fox jumps over the lazy dog while the small stream runs on to the sea. "
LONG = "\n\n".join(
    f"## Part {n}\n\nSome **bold** words and `code`, price $5 and $7.\n\n```python\nprint({n})\n\nprint({n + 1})\n```\n\n- one\n- two\n"
    for n in range(1, 40)
)


def deployment(state: str = "ready", *, local: bool = True, **more: object) -> dict[str, object]:
    return {"upstream": "demo", "kind": "transformers", "model": "builtin:demo", "local": local, "state": state, **more}


def model(name: str, kind: str = "chat", **facts: object) -> dict[str, Any]:
    base: dict[str, object] = {
        "kind": kind,
        "description": "",
        "demo": False,
        "input_modalities": ["text"],
        "tools": None,
        "reasoning": None,
    }
    tandem = {**base, "context_length": None, "deployments": [deployment()], "image": IMAGE_FACTS if kind == "image" else None, **facts}
    return {"id": name, "object": "model", "created": 1, "owned_by": "tandem", "tandem": tandem}


def usual_models() -> list[dict[str, Any]]:
    sees = ["text", "image"]
    return [
        model("demo", description="A tiny model that ships with Tandem.", demo=True, input_modalities=sees, tools=True, reasoning=True),
        model("demo-image", "image", description="Draws simple shapes.", demo=True, deployments=[deployment("stopped")]),
        model("words-only", deployments=[deployment("hosted", local=False)], tools=True),
        model("sleepy", deployments=[deployment("starting", progress=0.42, stage="reading weights")]),
    ]


@dataclass
class FakeGateway:
    """Serves in a thread of its own while entered. `hangups` gets the monotonic time of each client that left early. `enough`: what went on

    for its sake may end.
    """

    port: int = 0
    models: list[dict[str, Any]] = field(default_factory=usual_models)
    api_key: str = "test-key"
    pace_s: float = 0.05
    requests: list[dict[str, Any]] = field(default_factory=list)
    hangups: queue.Queue[float] = field(default_factory=queue.Queue)
    enough: threading.Event = field(default_factory=threading.Event)
    retrieved: int = 0

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> Self:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        self.port = listener.getsockname()[1]
        self._listener = listener
        self._server = uvicorn.Server(uvicorn.Config(self.application(), log_level="error", timeout_graceful_shutdown=1, ws="none"))
        self._thread = threading.Thread(target=self._server.run, args=([listener],), daemon=True)
        self._thread.start()
        while not self._server.started:
            time.sleep(0.005)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.enough.set()
        self._server.should_exit = True
        self._thread.join(5)
        self._listener.close()

    def application(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/v1/models", self.list_models),
                Route("/v1/models/{name}", self.retrieve_model),
                Route("/v1/chat/completions", self.chat, methods=["POST"]),
                Route("/v1/images/generations", self.images, methods=["POST"]),
            ]
        )

    async def list_models(self, request: Request) -> Response:
        return self._refused(request) or JSONResponse({"object": "list", "data": self.models})

    async def retrieve_model(self, request: Request) -> Response:
        self.retrieved += 1
        return JSONResponse(next(one for one in self.models if one["id"] == request.path_params["name"]))

    async def chat(self, request: Request) -> Response:
        body = await self._read(request)
        if refused := self._refused(request):
            return refused
        prompt = _last_words(body)
        if "refuse" in prompt:
            return error(429, "too many requests: 3 are running, the limit is 3; try again in 2 s", "rate_limit_exceeded")
        if "silent" in prompt:
            while (await request.receive())["type"] != "http.disconnect":
                pass
            self.hangups.put(time.monotonic())
            return Response(status_code=499)
        stream = self._watched(self._answer(body, prompt))
        return StreamingResponse(stream, media_type="text/event-stream", headers={"x-request-id": "req-chat"})

    async def _answer(self, body: dict[str, Any], prompt: str) -> AsyncIterator[str]:
        if body["model"] == "sleepy":
            until = self.retrieved + 4
            while self.retrieved < until:
                yield ": keep-alive\n\n"
                await asyncio.sleep(0.05)
        yield chunk({"role": "assistant", "content": ""})
        if "think" in prompt:
            for word in (POEM * 2).split() if "slow" in prompt else ("Let", "me", "see."):
                word = f"{word} "
                yield chunk({"reasoning": word, "reasoning_content": word})
                await asyncio.sleep(self.pace_s)
        for word in _words(prompt):
            yield chunk({"content": word})
            await asyncio.sleep(self.pace_s if "slow" in prompt else 0)
        while "on and on" in prompt and not self.enough.is_set():
            yield chunk({"content": "and on "})
            await asyncio.sleep(self.pace_s)
        if "hang" in prompt:
            await asyncio.sleep(3600)
        if "break" in prompt:
            fault = {"message": "the engine of 'demo' died; the next request starts it anew", "type": "server_error", "param": None}
            yield f"data: {json.dumps({'error': {**fault, 'code': 'engine_died'}})}\n\n"
            return
        if "cut" in prompt:
            raise ConnectionError("cut on purpose")
        yield chunk({}, "length" if "limit" in prompt else "stop")
        usage = {"prompt_tokens": 7, "completion_tokens": 20, "total_tokens": 27}
        yield f"data: {json.dumps({**_frame(), 'choices': [], 'usage': usage})}\n\n"
        yield "data: [DONE]\n\n"

    async def images(self, request: Request) -> Response:
        body = await self._read(request)
        if "refuse" in body["prompt"]:
            return error(400, "size '1x1' cannot be made: every side must be a multiple of 32 from 64 to 256", "invalid_size")
        stream = self._watched(self._paint(body))
        return StreamingResponse(stream, media_type="text/event-stream", headers={"x-request-id": "req-image"})

    async def _paint(self, body: dict[str, Any]) -> AsyncIterator[str]:
        prompt, steps, first_seed = body["prompt"], body.get("num_inference_steps", 8), body.get("seed", 1234)
        pace_s = self.pace_s * 6 if "slow" in prompt else self.pace_s / 10
        yield event("queued", job_id="job-1", position=2 if "queue" in prompt else 0)
        if "queue" in prompt:
            await asyncio.sleep(self.pace_s * 20)
        yield event("loading", job_id="job-1", progress=0.5, stage="reading weights")
        await asyncio.sleep(pace_s)
        for index in range(body.get("n", 1)):
            for step in range(1, steps + 1):
                await asyncio.sleep(pace_s)
                yield event("progress", job_id="job-1", image_index=index, step=step, steps=steps, eta_s=(steps - step) * pace_s)
                while "never done" in prompt and step == 3 and not self.enough.is_set():
                    await asyncio.sleep(self.pace_s)
                if "break" in prompt and step == 3:
                    fault = {"message": "out of memory", "type": "server_error", "param": None, "code": "out_of_memory"}
                    yield f"event: error\ndata: {json.dumps({'type': 'error', 'error': fault})}\n\n"
                    return
            png = picture(body["size"], first_seed + index)
            facts = {"b64_json": png, "created_at": 1, "size": body["size"], "output_format": "png", "seed": first_seed + index}
            yield event("completed", **facts, image_index=index, job_id="job-1", model=body["model"], duration_s=1.5)

    async def _read(self, request: Request) -> dict[str, Any]:
        body: dict[str, Any] = await request.json()
        self.requests.append(body)
        return body

    def _refused(self, request: Request) -> Response | None:
        if request.headers.get("authorization") != f"Bearer {self.api_key}":
            return error(401, "this API key is not known; use the one printed at start", "invalid_api_key")
        return None

    async def _watched(self, stream: AsyncIterator[str]) -> AsyncIterator[str]:
        try:
            async for frame in stream:
                yield frame
        except (asyncio.CancelledError, GeneratorExit):
            self.hangups.put(time.monotonic())
            raise


def error(status: int, message: str, code: str) -> Response:
    body = {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": code}}
    return JSONResponse(body, status, headers={"x-request-id": "req-error"})


def chunk(delta: dict[str, str], finish_reason: str | None = None) -> str:
    return f"data: {json.dumps({**_frame(), 'choices': [{'index': 0, 'delta': delta, 'finish_reason': finish_reason}]})}\n\n"


def _frame() -> dict[str, object]:
    return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "demo"}


def event(name: str, **facts: object) -> str:
    kind = f"image_generation.{name}"
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **facts})}\n\n"


def picture(size: str, seed: int) -> str:
    """A red circle on blue; the seed moves it, so another seed is another picture."""
    width, height = (int(side) for side in size.split("x"))
    image = Image.new("RGB", (width, height), (35, 80, 190))
    shift, radius = seed % 17 - 8, min(width, height) // 3
    centre = (width // 2 + shift, height // 2)
    box = (centre[0] - radius, centre[1] - radius, centre[0] + radius, centre[1] + radius)
    ImageDraw.Draw(image).ellipse(box, fill=(215, 45, 45))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _last_words(body: dict[str, Any]) -> str:
    content = body["messages"][-1]["content"]
    return content if isinstance(content, str) else " ".join(part.get("text", "a picture") for part in content)


def _words(prompt: str) -> list[str]:
    if "long" in prompt:
        return [LONG[start : start + 20] for start in range(0, len(LONG), 20)]
    if "slow" in prompt:
        return [f"{word} " for word in (POEM * 6).split()]
    return [f"{word} " for word in f"You said: {prompt}. I can chat and draw.".split()]


if __name__ == "__main__":
    with FakeGateway(port=int(sys.argv[1])):
        threading.Event().wait()
