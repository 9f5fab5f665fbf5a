"""Deployments that run on this machine: lease the engine, then talk HTTP to it like to any other upstream.

The lease is held for exactly as long as the request: it starts the engine where it must and keeps it from being unloaded.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, asynccontextmanager
from typing import Any

import orjson

from adapters.base import ChatCall, Client, Timeouts
from adapters.endpoint import Endpoint
from adapters.errors import ABORTED, DISCONNECTED, UNREACHABLE, UpstreamError
from adapters.history import without_reasoning
from adapters.media_parts import inlined
from adapters.openai_compatible import PATH as CHAT_PATH
from adapters.openai_compatible import usage_option
from adapters.remote_media import RemoteMedia
from adapters.rewrite import rewrite
from adapters.sampling import NOTHING, Recommended
from adapters.thinking import changes
from adapters.worker_limits import refusal
from local_models.errors import EngineLost
from local_models.probe import DEAD_ENGINE
from local_models.runtime import Lease, Runtime

IMAGES_PATH = "/images/generations"


# A broken answer may be the first sign of a crash. Its error waits this long for the second one, so that whoever asks next
# gets an engine that is started anew and not the dead one.
NOTICE_S = 1.0
# vLLM says of itself that its engine is dead: its health says the same in a moment.
CERTAIN_NOTICE_S = 3.0


class _Engine:
    """The endpoint of one engine; a new one each time the engine has started anew, at another port and with another key."""

    def __init__(self, runtime: Runtime, engine_id: str, timeouts: Timeouts) -> None:
        self._runtime, self._engine_id = runtime, engine_id
        self._timeouts = timeouts
        self._endpoint: Endpoint | None = None
        self._at: tuple[str, int, str | None] | None = None

    def _endpoint_of(self, lease: Lease) -> Endpoint:
        at = (lease.host, lease.port, lease.key)
        if self._endpoint is None or self._at != at:
            self.close()
            self._endpoint = Endpoint(self._engine_id, f"http://{lease.host}:{lease.port}/v1", lease.key, self._timeouts, ours=True)
            self._at = at
        return self._endpoint

    @asynccontextmanager
    async def leased(self) -> AsyncGenerator[Endpoint, None]:
        """The running engine's endpoint, for the length of the block. Raises EngineError: EngineLost where it ends within the block."""
        async with self._runtime.lease(self._engine_id) as lease:
            try:
                yield self._endpoint_of(lease)
            except UpstreamError as error:
                is_dead = DEAD_ENGINE in error.message
                if is_dead or error.code in (UNREACHABLE, DISCONNECTED, ABORTED):
                    lost = await self._runtime.notice_end(lease, CERTAIN_NOTICE_S if is_dead else NOTICE_S)
                    if lost is None and is_dead:
                        lost = EngineLost(self._engine_id, "its engine core died", retry_after_s=CERTAIN_NOTICE_S)
                    if lost is not None:
                        raise lost from error
                raise

    def close(self) -> None:
        if self._endpoint is not None:
            self._endpoint.close()
            self._endpoint = None


class LocalChat:
    """A ChatUpstream on an engine of ours. thinking, sampling: as in OpenAICompatible. media: who fetches what messages name by URL."""

    def __init__(
        self,
        runtime: Runtime,
        engine_id: str,
        timeouts: Timeouts,
        thinking: bool | None = None,
        sampling: Recommended = NOTHING,
        media: RemoteMedia | None = None,
    ) -> None:
        self._engine = _Engine(runtime, engine_id, timeouts)
        spec = runtime.engines()[engine_id]
        self._served_name, self._is_worker = spec.served_model_name, spec.kind == "transformers"
        self._thinking, self._sampling, self._media = thinking, sampling, media or RemoteMedia()

    async def stream(self, call: ChatCall, client: Client) -> None:
        body = await self._body(call)
        async with self._engine.leased() as endpoint:
            await endpoint.stream(CHAT_PATH, body, call, client)

    async def complete(self, call: ChatCall) -> bytes:
        body = await self._body(call)
        async with self._engine.leased() as endpoint:
            return await endpoint.complete(CHAT_PATH, body, call)

    def close(self) -> None:
        self._engine.close()

    async def _body(self, call: ChatCall) -> bytes:
        refused = refusal(call.fields) if self._is_worker else None
        if refused is not None:
            raise refused
        changed = changes(call.fields, "chat_template_kwargs", self._thinking) | usage_option(call)
        changed |= self._sampling.added_to(call.fields)
        given = call.fields["messages"]
        messages = await inlined(without_reasoning(given), self._media, call.fetched)
        if messages is not given:
            changed["messages"] = messages
        return rewrite(call.body, call.fields, self._served_name, changed)


class LocalImages:
    """An ImageUpstream on an engine of ours."""

    def __init__(self, runtime: Runtime, engine_id: str, timeouts: Timeouts) -> None:
        self._engine = _Engine(runtime, engine_id, timeouts)

    async def generate(self, request: Mapping[str, Any], request_id: str) -> AsyncGenerator[dict[str, Any], None]:
        body = orjson.dumps(request)
        async with (
            self._engine.leased() as endpoint,
            aclosing(endpoint.events(IMAGES_PATH, body, request_id)) as events,
        ):
            async for event in events:
                yield event

    def close(self) -> None:
        self._engine.close()
