"""The HTTP side that both workers share: key, readiness, error shape, body bound, event streams, shutdown.

The socket answers /health from the first second, while the engine thread still imports and loads.
SIGTERM aborts what runs and leaves with code 0; it never waits for a generation to finish.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import gc
import hmac
import json
import os
import signal
import socket
import sys
import warnings
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from types import FrameType
from typing import Any, NoReturn, TypeVar

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from local_models.workers.errors import ApiError, EngineBroken, LoadError, internal_error
from local_models.workers.jobs import Job, JobThread

HOST = "127.0.0.1"
KEY_VARIABLE = "TANDEM_WORKER_KEY"
MAX_BODY_BYTES = 32 * 1024 * 1024
SHUTDOWN_S = 1
KEEP_CONNECTIONS_S = 75  # idle ones; the gateway keeps its own for less
KEEP_ALIVE = b": keep-alive\n\n"

T = TypeVar("T")


class Health:
    """How far the worker is. Written by the engine thread, read by /health."""

    def __init__(self) -> None:
        self._ready = False
        self._stage = "starting"
        self._progress = 0.0

    @property
    def is_ready(self) -> bool:
        return self._ready

    def advance(self, stage: str, progress: float) -> None:
        self._stage = stage
        self._progress = min(1.0, max(self._progress, progress))

    def ready(self) -> None:
        self._ready = True

    def body(self) -> dict[str, object]:
        if self._ready:
            return {"status": "ready"}
        return {"status": "loading", "progress": round(self._progress, 3), "stage": self._stage}


class ClientGone(Exception):
    """The client closed the connection; there is nobody to answer."""


class Gate:
    """Lets /health through; every other route wants the key, and then a loaded engine."""

    def __init__(self, app: ASGIApp, key: str, health: Health) -> None:
        self._app = app
        self._expected = f"Bearer {key}".encode()
        self._health = health

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(scope) if scope["type"] == "http" else None
        await (error_response(refusal) if refusal else self._app)(scope, receive, send)

    def _refusal(self, scope: Scope) -> ApiError | None:
        if scope["path"] == "/health":
            return None
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        if not hmac.compare_digest(given, self._expected):
            return ApiError(
                f"The worker's key is missing or wrong; send 'Authorization: Bearer' with the value of {KEY_VARIABLE}.",
                status=401,
                type="authentication_error",
                code="invalid_api_key",
            )
        if not self._health.is_ready:
            return ApiError(
                "The model is still loading; ask /health and try again.",
                status=503,
                type="server_error",
                code="model_loading",
                headers={"retry-after": "1"},
            )
        return None


def error_response(error: ApiError) -> JSONResponse:
    return JSONResponse(error.body(), status_code=error.status, headers=error.headers)


async def read_json(request: Request) -> dict[str, Any]:
    """The body as an object. Raises ApiError 413 past MAX_BODY_BYTES, 400 for anything but a JSON object."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise ApiError(
                f"The request body is larger than {MAX_BODY_BYTES} bytes; send fewer or smaller images.",
                status=413,
                code="request_too_large",
            )
    try:
        value = json.loads(body)
        if b"\\ud" in body or b"\\uD" in body:  # half a surrogate pair is text that nobody can encode again
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:  # json.JSONDecodeError, UnicodeError, nested too deep
        raise ApiError(f"The request body is not JSON ({error}); send a JSON object.", code="invalid_json") from error
    if not isinstance(value, dict):
        raise ApiError(f"The request body is a JSON {type(value).__name__}; send a JSON object.", code="invalid_json")
    return value


def sse(payload: object) -> bytes:
    return b"data: " + json.dumps(payload, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Result of `work`, which is cancelled when the client leaves; ClientGone then.

    uvicorn tells a handler that does not stream nothing about a disconnect: `receive` has to be watched.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnect(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        gone.cancel()
        task.cancel()


async def in_thread(threads: ThreadPoolExecutor, work: Callable[[], T]) -> T:
    return await asyncio.get_running_loop().run_in_executor(threads, work)


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def event_stream(request: Request, job: Job, frames: AsyncIterator[bytes]) -> Response:
    """A stream of `frames`, the first of which decides the status: an ApiError before it is answered as plain JSON."""
    try:
        first = await while_connected(request, _first(frames))
    except BaseException:
        job.cancel()
        raise
    return _EventStream(job, first, frames)


async def _first(frames: AsyncIterator[bytes]) -> bytes:
    return await anext(frames, b"")


class _EventStream(StreamingResponse):
    """Cancels the job however the stream ends, also when the client left before its first byte."""

    def __init__(self, job: Job, first: bytes, frames: AsyncIterator[bytes]) -> None:
        super().__init__(_chain(first, frames), media_type="text/event-stream", headers={"cache-control": "no-store"})
        self._job = job

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._job.cancel()


async def _chain(first: bytes, frames: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for frame in frames:
        yield frame


def build_app(routes: list[Route], *, key: str, health: Health, figures: Callable[[], dict[str, int]]) -> Starlette:
    async def health_route(request: Request) -> Response:
        if health.is_ready:
            return JSONResponse({**health.body(), **figures()})
        return JSONResponse(health.body(), status_code=503)

    return Starlette(
        routes=[Route("/health", health_route), *routes],
        middleware=[Middleware(Gate, key=key, health=health)],
        exception_handlers={
            ApiError: _on_api_error,
            ClientGone: _on_client_gone,
            ClientDisconnect: _on_client_gone,
            HTTPException: _on_http_error,
            Exception: _on_bug,
        },
    )


async def _on_api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error_response(error)


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail}."
    code = HTTPStatus(error.status_code).name.lower()
    return error_response(ApiError(message, status=error.status_code, code=code, headers=error.headers))


async def _on_client_gone(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # never sent; nginx's number for it


async def _on_bug(request: Request, error: Exception) -> Response:
    return error_response(internal_error(f"The worker failed: {type(error).__name__}: {error}"))


class _Server(uvicorn.Server):
    """A uvicorn server whose exit signal aborts the jobs first, so that open streams end by themselves."""

    def __init__(self, config: uvicorn.Config, jobs: JobThread) -> None:
        super().__init__(config)
        self._jobs = jobs

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._jobs.close()
        super().handle_exit(sig, frame)


def serve(app: Starlette, jobs: JobThread, port: int) -> NoReturn:
    """Run until a signal comes. Exits the process: 0 after a signal, 1 when the port cannot be had.

    The engine thread may be inside a torch call that nothing can interrupt, and finalising the interpreter under it
    can crash: hence os._exit.
    """
    try:
        listener = socket.create_server((HOST, port), backlog=128)
    except OSError as error:
        fail(f"cannot listen on {HOST}:{port}: {error.strerror}; choose a free port")
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: os._exit(0))  # before uvicorn has its own handlers, and when it raises the signal again at its end
    config = uvicorn.Config(
        app,
        log_level="error",
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=SHUTDOWN_S,
        timeout_keep_alive=KEEP_CONNECTIONS_S,
    )
    server = _Server(config, jobs)
    jobs.start()
    server.run(sockets=[listener])
    sys.stderr.flush()
    os._exit(0)


def fail(reason: str) -> NoReturn:
    """Leave with one line on stderr and exit code 1, from any thread."""
    sys.stderr.write(f"{reason}\n")
    sys.stderr.flush()
    os._exit(1)


def give_up(error: Exception) -> NoReturn:
    """What the engine thread does when it can never serve, or no longer."""
    fail(str(error) if isinstance(error, LoadError | EngineBroken) else f"loading failed: {type(error).__name__}: {one_line(error)}")


def one_line(error: Exception, limit: int = 500) -> str:
    return " ".join(str(error).split())[:limit]


def worker_key() -> str:
    if key := os.environ.get(KEY_VARIABLE):
        return key
    fail(f"{KEY_VARIABLE} is not set; start the worker with the key that its requests will carry")


def quiet_environment() -> None:
    """Before torch and the Hugging Face libraries are imported: no network, no progress bars, no spinning threads.

    OpenMP's threads spin between two operations by default; beside any other busy process that made an answer five times
    slower (2 cores, 8 M parameters).
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for name in ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_PROGRESS_BARS", "TRANSFORMERS_NO_ADVISORY_WARNINGS"):
        os.environ[name] = "1"
    os.environ["TRANSFORMERS_VERBOSITY"] = os.environ["DIFFUSERS_VERBOSITY"] = "error"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.simplefilter("ignore")


def settle_memory() -> None:
    """After loading: what is there stays, so later collections need not walk through it (100 ms each time)."""
    trim_memory()
    gc.freeze()


def trim_memory() -> None:
    """Give freed memory back to the system: glibc keeps it otherwise (a worker would rest at its peak)."""
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)


def arguments(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--model", required=True, help="a checkpoint directory, or a Hugging Face id that is in the local cache")
    parser.add_argument("--served-model-name", help="the name that requests use (default: --model)")
    parser.add_argument("--port", type=int, required=True, help="port on 127.0.0.1")
    parser.add_argument("--device", default="auto", help="auto, cpu, mps, cuda or cuda:N (default: auto)")
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"])
    parser.add_argument("--max-queue", type=int, default=64, help="requests that may wait; one more is refused with 429")
    return parser
