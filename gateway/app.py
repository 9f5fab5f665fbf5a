"""The ASGI application: the chat route as it is, everything else through FastAPI, errors in one shape.

`create_app` composes; it starts nothing. The order of a request is the order of this file: request id, chat or FastAPI, route.
"""

from __future__ import annotations

import logging
import random
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.routing import iter_route_contexts
from fastapi.telemetry import TelemetryConfig
from starlette.exceptions import HTTPException
from starlette.routing import compile_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from adapters.build import engine_specs, memory_rules
from adapters.errors import UpstreamError
from config.schema import Settings
from gateway import chat, replies
from gateway.admin_keys import key_routes
from gateway.admission import Admission, limits_of_models
from gateway.api_key import ApiKey
from gateway.auth import KeyRing
from gateway.chat import ChatCompletions
from gateway.description import ABOUT, NO_KEY_NEEDED, Responses, describe, errors, reply
from gateway.engine_routes import engine_routes
from gateway.errors import GatewayError, from_validation, no_route, to_gateway_error
from gateway.image_routes import ImageDoor, image_routes
from gateway.jobs import JobQueue, image_queues
from gateway.loading import wait_for
from gateway.metrics import Readings
from gateway.models import ModelList
from gateway.record import Sink
from gateway.respond import send_error
from gateway.routing import Router
from local_models.errors import EngineError
from local_models.runtime import Runtime

VERSION = "0.1.0"
_REQUEST_ID = re.compile(rb"[A-Za-z0-9_.:/+=-]{1,128}")
# FastAPI would export the messages of exceptions, where its environment variables ask for it; gateway.observers watches instead.
_NO_TELEMETRY_OF_ITS_OWN: TelemetryConfig = {"tracing": False, "metrics": False, "logs": False, "auto_configure": False}
log = logging.getLogger("tandem.gateway")


class Gateway:
    """The outermost application. It owns what a configuration is served with, so `close` it when serving has ended."""

    def __init__(
        self, settings: Settings, runtime: Runtime, keys: KeyRing, sinks: Sequence[Sink] = (), routes: Sequence[APIRouter] = ()
    ) -> None:
        self._runtime, self._keys, self._sinks, self._routes = runtime, keys, sinks, routes
        self.admission = Admission(limits_of_models(settings))
        self._created = int(time.time())
        self._serving = self._served(settings, {})
        self._superseded: set[_Served] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        serving = self._serving
        serving.requests += 1
        try:
            await serving.answer(scope, receive, send)
        finally:
            serving.requests -= 1
            if serving in self._superseded and not serving.requests:
                self._superseded.discard(serving)
                serving.router.close()

    @property
    def settings(self) -> Settings:
        return self._serving.settings

    @property
    def router(self) -> Router:
        return self._serving.router

    def readings(self) -> Readings:
        """What the parts that serve now say of themselves."""
        return Readings(
            in_flight=lambda: self.admission.in_flight().by_model,
            queues=lambda: {engine: status.waiting for engine, queue in self._serving.queues.items() if (status := queue.status())},
            breakers=self._breakers,
            engines=lambda: {engine: self._runtime.status(engine).state for engine in self._runtime.engines()},
            memory=lambda: {engine: self._runtime.status(engine).memory for engine in self._runtime.engines()},
        )

    def _breakers(self) -> dict[str, str]:
        now = time.monotonic()
        return {f"{model}/{deployment.upstream}": condition.breaker.state(now) for model, deployment, condition in self.router.conditions()}

    def reconfigure(self, settings: Settings) -> None:
        """Serve the next request with these. Those under way end as they began. Raises ValueError, and nothing has changed then."""
        before = self._serving
        self._runtime.reconfigure(engine_specs(settings), memory_rules(settings))
        try:
            self._serving = self._served(settings, before.queues)
        except ValueError:
            self._runtime.reconfigure(engine_specs(before.settings), memory_rules(before.settings))
            raise
        self.admission.configure(limits_of_models(settings))
        if before.requests:
            self._superseded.add(before)
        else:
            before.router.close()

    def close(self) -> None:
        for served in (self._serving, *self._superseded):
            served.router.close()

    def _served(self, settings: Settings, queues: Mapping[str, JobQueue]) -> _Served:
        router = Router(settings, self._runtime)
        queues = image_queues(settings, queues)
        limit = settings.server.max_body_bytes
        models = ModelList(settings, self._runtime, queues, router, self._created)
        door = ImageDoor(router, queues, self._runtime, self._keys, self.admission, limit, self._sinks)
        rest = _control_plane(settings, self._runtime, self._keys, models, door, self._routes)
        chats = ChatCompletions(router, self._keys, self.admission, limit, self._sinks, partial(wait_for, self._runtime))
        return _Served(settings, router, queues, chats, rest)


@dataclass(eq=False, slots=True)
class _Served:
    """One configuration and what it is served with. requests: those under way."""

    settings: Settings
    router: Router
    queues: Mapping[str, JobQueue]
    chat: ChatCompletions
    rest: ASGIApp
    requests: int = 0

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.rest(scope, receive, send)
            return
        request_id = _request_id(scope)
        scope.setdefault("state", {})["request_id"] = request_id
        if scope["path"] != chat.PATH:
            await self.rest(scope, receive, _naming_request(send, request_id))
        elif scope["method"] == "POST":
            await self.chat(scope, receive, send)
        else:
            await send_error(send, no_route(scope["method"], chat.PATH, ["POST"]), [(b"x-request-id", request_id.encode())])


def create_app(
    settings: Settings, runtime: Runtime, keys: KeyRing, sinks: Sequence[Sink] = (), routes: Sequence[APIRouter] = ()
) -> Gateway:
    """sinks: what is told of each request that has ended. routes: more of them, of parts that have their own."""
    return Gateway(settings, runtime, keys, sinks, routes)


def _request_id(scope: Scope) -> str:
    """The client's own id where it is fit for a header and a log; a new one otherwise."""
    given = dict(scope["headers"]).get(b"x-request-id")
    if given is not None and _REQUEST_ID.fullmatch(given):
        return str(given.decode())
    return f"req_{random.getrandbits(96):024x}"  # not a secret, and the kernel's generator costs ten times as much


def _naming_request(send: Send, request_id: str) -> Send:
    async def named(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], (b"x-request-id", request_id.encode())]}
        await send(message)

    return named


class _ControlPlane(FastAPI):
    """FastAPI, whose description of itself tells of the chat route as well."""

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            self.openapi_schema = describe(super().openapi(), chat.PATH)
        return self.openapi_schema

    def methods_at(self, path: str) -> list[str]:
        """Those of every route with this path. Starlette's own 405 names the first one's only."""
        found = (context for context in iter_route_contexts(self.routes) if compile_path(context.path or "")[0].match(path))
        return sorted({method for context in found for method in context.methods or ()} - {"HEAD"})


def _control_plane(
    settings: Settings, runtime: Runtime, keys: KeyRing, models: ModelList, door: ImageDoor, more: Sequence[APIRouter]
) -> ASGIApp:
    app = _ControlPlane(
        title="Tandem",
        version=VERSION,
        description=ABOUT,
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json",
        redirect_slashes=False,  # a redirect loses a POST's body in many clients, and is no error of OpenAI's
        telemetry=_NO_TELEMETRY_OF_ITS_OWN,
    )
    app.include_router(_health(settings, runtime))
    app.include_router(_model_routes(models, keys))
    app.include_router(image_routes(door))
    app.include_router(engine_routes(runtime, keys))
    if keys.file is not None:
        app.include_router(key_routes(keys, keys.file, settings.server.max_body_bytes))
    for routes in more:
        app.include_router(routes)
    for kind in (GatewayError, UpstreamError, EngineError, HTTPException, RequestValidationError, Exception):
        app.add_exception_handler(kind, _show_error)
    return app


async def _show_error(request: Request, error: Exception) -> Response:
    if isinstance(error, RequestValidationError):
        shown = from_validation([dict(problem) for problem in error.errors()])
    elif isinstance(error, HTTPException) and error.status_code in (404, 405):
        allowed = request.app.methods_at(request.url.path) if error.status_code == 405 else []
        shown = no_route(request.method, request.url.path, allowed)
    else:
        shown = to_gateway_error(error)
    if shown.code == "internal_error":
        log.error("request_id=%s failed", request.state.request_id, exc_info=error)
    headers = {name.decode(): value.decode() for name, value in shown.headers.items()}
    return JSONResponse(shown.document, shown.status, headers)


def _health(settings: Settings, runtime: Runtime) -> APIRouter:
    routes = APIRouter()

    open_to_all = dict(NO_KEY_NEEDED)

    @routes.get("/healthz", responses={200: reply(replies.Health, "It lives.")}, response_model=None, openapi_extra=open_to_all)
    async def healthz() -> dict[str, str]:
        """The process lives."""
        return {"status": "ok"}

    ready_or_not: Responses = {
        200: reply(replies.Readiness, "It can serve."),
        503: reply(replies.Readiness, "No model has a usable deployment."),
    }

    @routes.get("/readyz", responses=ready_or_not, openapi_extra=open_to_all)
    async def readyz() -> JSONResponse:
        """It can serve: at least one model has a deployment that lacks nothing. Engines start on demand."""
        ready = {
            model.name: any(settings.key_problem(deployment.upstream) is None for deployment in model.deployments)
            for model in settings.models
        }
        engines = {engine: runtime.status(engine).state for engine in runtime.engines()}
        serves = any(ready.values())
        return JSONResponse({"status": "ready" if serves else "not ready", "models": ready, "engines": engines}, 200 if serves else 503)

    return routes


def _require_key(keys: KeyRing) -> Any:
    async def require_key(request: Request) -> ApiKey:
        return keys.check(request.scope["headers"])

    return Depends(require_key)


def _model_routes(models: ModelList, keys: KeyRing) -> APIRouter:
    routes = APIRouter(prefix="/v1")
    asked_with = _require_key(keys)

    listed = {200: reply(replies.ModelPage, "The models that the key may use."), **errors(401, 500)}
    described = {200: reply(replies.Model, "The model."), **errors(401, 403, 404, 500)}

    @routes.get("/models", response_model=None, responses=listed)
    async def list_models(key: ApiKey = asked_with) -> dict[str, Any]:
        """Every model, what it can do, who answers for it and in which state that is."""
        return models.all(key)

    @routes.get("/models/{name:path}", response_model=None, responses=described)
    async def retrieve_model(name: str, key: ApiKey = asked_with) -> dict[str, Any]:
        """One model. Its name may hold slashes."""
        return models.one(name, key)

    return routes
