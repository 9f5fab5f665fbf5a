"""POST /v1/chat/completions: the hot path, a plain ASGI callable.

authenticate -> read -> check -> route -> one deployment after the other until one has begun to answer -> bytes back.
Once content is out no other deployment is tried: a failure then is one error event and the end. However it ends, its record goes to
every sink, once.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Sequence

from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from adapters.base import ChatCall, ChatUpstream
from gateway.admission import Admission
from gateway.attempts import Attempts, resting
from gateway.auth import KeyRing
from gateway.body import read_body
from gateway.chat_request import check_for_model, parse
from gateway.client_stream import ClientStream
from gateway.departure import Departure
from gateway.errors import GatewayError, shutting_down, to_gateway_error
from gateway.record import RequestRecord, Sink
from gateway.respond import RawHeaders, send_error, send_json
from gateway.routing import Route, Router, Target
from gateway.strategies import affinity_key

PATH = "/v1/chat/completions"
UPSTREAM_HEADER = b"x-tandem-upstream"  # which deployment answered

log = logging.getLogger("tandem.chat")


class ChatCompletions:
    """See the module."""

    def __init__(self, router: Router, keys: KeyRing, admission: Admission, max_body_bytes: int, sinks: Sequence[Sink] = ()) -> None:
        self._router, self._keys, self._admission, self._max_body_bytes, self._sinks = router, keys, admission, max_body_bytes, sinks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.monotonic()
        record = RequestRecord(scope["state"]["request_id"], PATH, time.time())
        try:
            await self._handle(scope, receive, send, record, started)
        finally:
            record.duration_s = time.monotonic() - started
            for sink in self._sinks:
                sink(record)

    async def _handle(self, scope: Scope, receive: Receive, send: Send, record: RequestRecord, started: float) -> None:
        headers: RawHeaders = [(b"x-request-id", record.request_id.encode())]
        try:
            self._keys.check(scope["headers"])
            body = await read_body(scope, receive, self._max_body_bytes)
            fields = parse(body)
            route, rest = self._router.chat(fields["model"])
            record.model, record.stream = route.model.name, bool(fields.get("stream"))
            check_for_model(fields, route.model)
            attempts = _attempts(route, scope, fields, record)
        except GatewayError as error:
            _note_failure(record, error)
            await send_error(send, error, headers)
            return
        except ClientDisconnect:
            record.outcome = "client_left"
            return
        call = ChatCall(body, fields, _upstream_request_id(record.request_id), rest)
        with Departure(receive) as departure:
            if record.stream:
                await _stream(attempts, call, ClientStream(send, headers), record)
            else:
                await _complete(attempts, call, send, headers, record)
        if departure.gone:
            record.outcome = "client_left"
        _note_answer(record, call, started)


def _attempts(route: Route[ChatUpstream], scope: Scope, fields: dict[str, object], record: RequestRecord) -> Attempts:
    """Raises GatewayError (503) where every deployment is left alone."""
    now = time.monotonic()
    targets = route.in_turn(affinity_key(route.model.routing.strategy, scope["headers"], fields), now)
    if not targets:
        raise resting(route, now)
    return Attempts(route, targets, record, _sdk_retries(scope))


def _sdk_retries(scope: Scope) -> int:
    """How often an SDK of OpenAI's family has tried this request before."""
    for name, value in scope["headers"]:
        if name == b"x-stainless-retry-count":
            return int(value) if value.isdigit() else 0
    return 0


def _upstream_request_id(request_id: str) -> str:
    """An id that no other request has, for vLLM keys its engine by it and a client may send one id twice. Begins with the client's."""
    return f"{request_id}-{secrets.token_hex(4)}"


async def _stream(attempts: Attempts, call: ChatCall, client: ClientStream, record: RequestRecord) -> None:
    async def ask(target: Target[ChatUpstream]) -> None:
        client.answer_headers = [(UPSTREAM_HEADER, target.deployment.upstream.encode())]
        await target.upstream.stream(call, client)

    try:
        try:
            await attempts.first_answer(ask, lambda: client.began)
            await client.finish()
            record.status = 200
        except asyncio.CancelledError:  # the gateway stops; or the client has left, and this goes nowhere
            await _fail(client, shutting_down(), record)
        except Exception as error:  # noqa: BLE001 - every failure becomes one error of ours
            await _fail(client, _explain(error, call.request_id), record)
    finally:
        client.close()


async def _fail(client: ClientStream, failure: GatewayError, record: RequestRecord) -> None:
    _note_failure(record, failure)
    if client.started:
        record.status = 200  # that is what it began with
        await client.finish(failure)
    else:
        await send_error(client.send, failure, client.headers)


async def _complete(attempts: Attempts, call: ChatCall, send: Send, headers: RawHeaders, record: RequestRecord) -> None:
    async def ask(target: Target[ChatUpstream]) -> tuple[bytes, Target[ChatUpstream]]:
        return await target.upstream.complete(call), target

    try:
        document, target = await attempts.first_answer(ask, lambda: False)
    except asyncio.CancelledError:  # as in _stream
        _note_failure(record, shutting_down())
        await send_error(send, shutting_down(), headers)
    except Exception as error:  # noqa: BLE001 - every failure becomes one error of ours
        failure = _explain(error, call.request_id)
        _note_failure(record, failure)
        await send_error(send, failure, headers)
    else:
        record.status = 200
        await send_json(send, 200, document, [*headers, (UPSTREAM_HEADER, target.deployment.upstream.encode())])


def _note_failure(record: RequestRecord, failure: GatewayError) -> None:
    record.outcome, record.status, record.error_code = "failed", failure.status, failure.code


def _note_answer(record: RequestRecord, call: ChatCall, started: float) -> None:
    meter = call.meter
    record.usage, record.chunks = meter.usage, meter.chunks
    if meter.first_content_at is not None:
        record.first_token_s = meter.first_content_at - started
    if record.attempts:
        last = record.attempts[-1]
        record.upstream, record.upstream_model = last.upstream, last.model.replace("*", call.rest)


def _explain(error: Exception, request_id: str) -> GatewayError:
    shown = to_gateway_error(error)
    if shown.status >= 500:
        bug = error if shown.code == "internal_error" else None
        log.warning("request_id=%s status=%d %s", request_id, shown.status, shown.message, exc_info=bug)
    return shown
