"""POST /v1/chat/completions: the hot path, a plain ASGI callable.

authenticate -> read -> check -> route -> one deployment after the other until one has begun to answer -> bytes back.
Once content is out no other deployment is tried: a failure then is one error event and the end. However it ends, its record goes to
every sink, once.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import re
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from adapters.base import ChatCall, ChatUpstream
from adapters.rewrite import LARGE
from adapters.usage import estimated
from gateway.admission import Admission
from gateway.attempts import Attempts, resting
from gateway.auth import KeyRing
from gateway.body import read_body
from gateway.chat_request import check_for_model, expected_tokens, parse, prompt_characters
from gateway.client_stream import ClientStream
from gateway.departure import Departure
from gateway.errors import GatewayError, client_gave_up, shutting_down, to_gateway_error
from gateway.http_protocol import cycle_of
from gateway.record import RequestRecord, Sink, note_departure, note_failure
from gateway.respond import RawHeaders, rates_of, send_error, send_json
from gateway.retries import PATIENCE_HEADERS, seconds
from gateway.routing import Route, Router, Target
from gateway.server_timing import HEADER as TIMING_HEADER
from gateway.server_timing import server_timing
from gateway.strategies import affinity_key

PATH = "/v1/chat/completions"
UPSTREAM_HEADER = b"x-tandem-upstream"  # which deployment answered
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")  # W3C trace context, version 00

log = logging.getLogger("tandem.chat")


class ChatCompletions:
    """See the module. sinks: each gets the record of every request that has ended. wait_for: what keeps an engine, by its id, from

    answering; None: nothing that is known.
    """

    def __init__(
        self,
        router: Router,
        keys: KeyRing,
        admission: Admission,
        max_body_bytes: int,
        sinks: Sequence[Sink],
        wait_for: Callable[[str], str | None],
    ) -> None:
        self._router, self._keys, self._admission, self._max_body_bytes, self._sinks = router, keys, admission, max_body_bytes, sinks
        self._wait_for = wait_for

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
            key = self._keys.check(scope["headers"])
            record.key_id = key.id
            body = await read_body(scope, receive, self._max_body_bytes)
            fields = parse(body)
            if len(body) > LARGE:
                await asyncio.sleep(0)
            name = fields["model"]
            route, rest = self._router.chat(name)
            record.model, record.stream = route.model.name, bool(fields.get("stream"))
            check_for_model(fields, route.model)
            attempts = _attempts(route, scope, fields, record)
            tokens = expected_tokens(fields) if self._admission.counts_tokens(key, record.model) else 0
            admitted = self._admission.admit(key, record.model, tokens, name)
        except GatewayError as error:
            note_failure(record, error)
            await send_error(send, error, headers)
            return
        except ClientDisconnect:
            note_departure(record)
            return
        headers += admitted.headers
        call = ChatCall(body, fields, _upstream_request_id(record.request_id), rest, _traceparent(record))
        exchange = _Exchange(attempts, call, record, started, headers, self._wait_for)
        try:
            with Departure(scope) as departure:
                if record.stream:
                    await exchange.stream(ClientStream(send, cycle_of(scope).push, headers, exchange.answer_headers, exchange.waits_for))
                else:
                    await exchange.complete(send)
            if departure.gone:
                note_departure(record)
            exchange.note_answer()
        finally:
            admitted.release(record.usage.total_tokens if record.usage else 0, record.cost_usd)


def _attempts(route: Route[ChatUpstream], scope: Scope, fields: dict[str, object], record: RequestRecord) -> Attempts:
    """Raises GatewayError (503) where every deployment is left alone."""
    now = time.monotonic()
    targets = route.in_turn(affinity_key(route.model.routing.strategy, scope["headers"], fields), now)
    if not targets:
        raise resting(route, now)
    headers = dict(scope["headers"])
    traceparent = headers.get(b"traceparent")
    if traceparent is not None:
        record.traceparent = traceparent.decode("latin-1")
    retries = headers.get(b"x-stainless-retry-count", b"")  # how often the SDK has tried this request before
    patience_s = [] if record.stream else [seconds(headers[name]) for name in PATIENCE_HEADERS if name in headers]
    return Attempts(route, targets, record, int(retries) if retries.isdigit() else 0, min(patience_s, default=math.inf))


def _traceparent(record: RequestRecord) -> str | None:
    """The client's, where it is one."""
    return record.traceparent if record.traceparent and _TRACEPARENT.fullmatch(record.traceparent) else None


def _upstream_request_id(request_id: str) -> str:
    """An id that no other request has, for vLLM keys its engine by it and a client may send one id twice. Begins with the client's."""
    return f"{request_id}-{random.getrandbits(32):08x}"


@dataclass(slots=True)
class _Exchange:
    """An admitted request and its answer. started: of the request, time.monotonic(). headers: sent in any case."""

    attempts: Attempts
    call: ChatCall
    record: RequestRecord
    started: float
    headers: RawHeaders
    wait_for: Callable[[str], str | None]

    async def stream(self, client: ClientStream) -> None:
        async def ask(target: Target[ChatUpstream]) -> None:
            await target.upstream.stream(self.call, client)

        try:
            try:
                await self.attempts.first_answer(ask, lambda: client.began)
                await client.finish()
                self.record.status = 200
            except asyncio.CancelledError:  # the gateway stops; or the client has left, and this goes nowhere
                await self._fail(client, shutting_down())
            except Exception as error:  # noqa: BLE001 - every failure becomes one error of ours
                await self._fail(client, _explain(error, self.call.request_id))
        finally:
            client.close()

    async def complete(self, send: Send) -> None:
        async def ask(target: Target[ChatUpstream]) -> bytes:
            return await target.upstream.complete(self.call)

        try:
            document = await self._in_time(self.attempts.first_answer(ask, lambda: False))
        except asyncio.CancelledError:  # as in stream
            note_failure(self.record, shutting_down())
            await send_error(send, shutting_down(), self.headers)
        except Exception as error:  # noqa: BLE001 - every failure becomes one error of ours
            failure = _explain(error, self.call.request_id)
            note_failure(self.record, failure)
            await send_error(send, failure, self.headers)
        else:
            self.record.status = 200
            await send_json(send, 200, document, [*self.headers, *self._answered_by(self.record.upstream_s)])

    async def _in_time(self, asking: Coroutine[Any, Any, bytes]) -> bytes:
        """What `asking` returns, before its client has given up. A stream needs no such end: comments keep its client awake."""
        patience_s = self.attempts.patience_s
        if patience_s == math.inf:
            return await asking
        try:
            async with asyncio.timeout(patience_s):
                return await asking
        except TimeoutError:
            raise client_gave_up(patience_s) from None

    def answer_headers(self) -> RawHeaders:
        """Of a stream whose first content has come."""
        return self._answered_by(self.attempts.waited_s(time.monotonic()))

    def waits_for(self) -> str | None:
        """What keeps the deployment that is asked now from answering, as far as that is known."""
        last = self.attempts.last
        return None if last is None else self.wait_for(last.deployment.engine_id)

    def _answered_by(self, upstream_s: float) -> RawHeaders:
        last = self.attempts.last
        assert last is not None, "somebody has answered"
        timing = server_timing(time.monotonic() - self.started, upstream_s)
        rates = rates_of(self.call.meter.headers, self.headers)
        return [(UPSTREAM_HEADER, last.deployment.upstream.encode()), (TIMING_HEADER, timing), *rates]

    async def _fail(self, client: ClientStream, failure: GatewayError) -> None:
        note_failure(self.record, failure)
        if client.started:
            self.record.status = 200  # that is what it began with
            await client.finish(failure)
        else:
            await send_error(client.send, failure, client.headers)

    def note_answer(self) -> None:
        """What the answer was, or how far it had come. Whoever leaves does not hear the upstream's count: it is estimated."""
        record, meter, last = self.record, self.call.meter, self.attempts.last
        record.chunks = meter.chunks
        if meter.first_content_at is not None:
            record.first_token_s = meter.first_content_at - self.started
        if last is None:
            return
        record.upstream, record.upstream_model = last.deployment.upstream, last.deployment.model.replace("*", self.call.rest)
        record.usage = meter.usage
        if record.usage is None and (meter.answer_bytes or record.outcome == "client_left"):
            record.usage = estimated(prompt_characters(self.call.fields), meter.chunks, meter.answer_bytes)
        if record.usage is not None:
            record.cost_usd = last.cost(record.usage, record.upstream_model)


def _explain(error: Exception, request_id: str) -> GatewayError:
    shown = to_gateway_error(error)
    if shown.status >= 500:
        bug = error if shown.code == "internal_error" else None
        log.warning("request_id=%s status=%d %s", request_id, shown.status, error, exc_info=bug)
    return shown
