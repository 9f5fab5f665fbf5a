"""POST /v1/chat/completions: the hot path, a plain ASGI callable.

authenticate -> read -> check -> route -> one deployment after the other until one has begun to answer -> bytes back.
Once content is out no other deployment is tried: a failure then is one error event and the end.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable
from typing import TypeVar

from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from adapters.base import ChatCall, ChatUpstream
from adapters.errors import UpstreamError
from gateway.auth import KeyRing
from gateway.body import read_body
from gateway.chat_request import check_for_model, parse
from gateway.client_stream import ClientStream
from gateway.departure import Departure
from gateway.errors import GatewayError, shutting_down, to_gateway_error
from gateway.respond import RawHeaders, send_error, send_json
from gateway.routing import Route, Router, Target, another_may_help
from local_models.errors import EngineError

PATH = "/v1/chat/completions"
UPSTREAM_HEADER = b"x-tandem-upstream"  # which deployment answered

Result = TypeVar("Result")
log = logging.getLogger("tandem.chat")


class ChatCompletions:
    """See the module."""

    def __init__(self, router: Router, keys: KeyRing, max_body_bytes: int) -> None:
        self._router, self._keys, self._max_body_bytes = router, keys, max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_id: str = scope["state"]["request_id"]
        headers: RawHeaders = [(b"x-request-id", request_id.encode())]
        try:
            self._keys.check(scope["headers"])
            body = await read_body(scope, receive, self._max_body_bytes)
            fields = parse(body)
            route = self._router.chat(fields["model"])
            check_for_model(fields, route.model)
        except GatewayError as error:
            await send_error(send, error, headers)
            return
        except ClientDisconnect:
            return
        call = ChatCall(body, fields, _upstream_request_id(request_id))
        with Departure(receive):
            if fields.get("stream"):
                await _stream(route, call, ClientStream(send, headers))
            else:
                await _complete(route, call, send, headers)


def _upstream_request_id(request_id: str) -> str:
    """An id that no other request has, for vLLM keys its engine by it and a client may send one id twice. Begins with the client's."""
    return f"{request_id}-{secrets.token_hex(4)}"


async def _stream(route: Route[ChatUpstream], call: ChatCall, client: ClientStream) -> None:
    async def attempt(target: Target[ChatUpstream]) -> None:
        client.answer_headers = [(UPSTREAM_HEADER, target.deployment.upstream.encode())]
        await target.upstream.stream(call, client)

    try:
        try:
            await _first_that_answers(route, attempt, lambda: client.began)
            await client.finish()
        except asyncio.CancelledError:  # the gateway stops; or the client has left, and this goes nowhere
            await _fail(client, shutting_down())
        except Exception as error:  # noqa: BLE001 - every failure becomes one error of ours
            await _fail(client, _explain(error, call.request_id))
    finally:
        client.close()


async def _fail(client: ClientStream, failure: GatewayError) -> None:
    if client.started:
        await client.finish(failure)
    else:
        await send_error(client.send, failure, client.headers)


async def _complete(route: Route[ChatUpstream], call: ChatCall, send: Send, headers: RawHeaders) -> None:
    answered_by = ""

    async def attempt(target: Target[ChatUpstream]) -> bytes:
        nonlocal answered_by
        answered_by = target.deployment.upstream
        return await target.upstream.complete(call)

    try:
        document = await _first_that_answers(route, attempt, lambda: False)
    except asyncio.CancelledError:  # as in _stream
        await send_error(send, shutting_down(), headers)
    except Exception as error:  # noqa: BLE001 - every failure becomes one error of ours
        await send_error(send, _explain(error, call.request_id), headers)
    else:
        await send_json(send, 200, document, [*headers, (UPSTREAM_HEADER, answered_by.encode())])


async def _first_that_answers(
    route: Route[ChatUpstream], attempt: Callable[[Target[ChatUpstream]], Awaitable[Result]], too_late: Callable[[], bool]
) -> Result:
    """The result of the first target that answers. The error of the last one tried, which names those before it, where none does."""
    failed: list[str] = []
    for target in route.usable:
        try:
            return await attempt(target)
        except (UpstreamError, EngineError) as error:
            if target is route.usable[-1] or too_late() or not another_may_help(error):
                raise _after(error, failed) from error
            failed.append(str(error))
            log.warning("model=%s upstream=%s failed, trying the next: %s", route.model.name, target.deployment.upstream, error)
    raise AssertionError("a route has a usable target")


def _after(error: UpstreamError | EngineError, failed: list[str]) -> GatewayError:
    shown = to_gateway_error(error)
    if failed:
        shown.message = f"{shown.message} (tried before: {'; '.join(failed)})"
    return shown


def _explain(error: Exception, request_id: str) -> GatewayError:
    shown = to_gateway_error(error)
    if shown.status >= 500:
        bug = error if shown.code == "internal_error" else None
        log.warning("request_id=%s status=%d %s", request_id, shown.status, shown.message, exc_info=bug)
    return shown
