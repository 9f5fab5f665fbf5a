"""Chat models of every provider that litellm knows. The only file that touches litellm, which is imported at the first request.

litellm translates and nothing else: it tries nothing twice, logs nothing, counts nothing, and reaches no address but the provider's.
Its keep-alive connections are its own, kept by event loop and shared by all its upstreams.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import orjson

from adapters import errors, sse
from adapters.answer import StreamedAnswer, WholeAnswer
from adapters.base import ChatCall, Client, Timeouts
from adapters.errors import UpstreamError
from adapters.litellm_errors import from_litellm
from adapters.litellm_request import arguments
from adapters.sampling import NOTHING, Recommended

# Read by litellm, most of them while it is imported. Offline: no price map, no tokenizer, no list of betas from elsewhere.
# A picture is named by an address that only the provider may follow: this process must not fetch what a client names.
_ENVIRONMENT = {"LITELLM_OFFLINE_MODE": "true", "LITELLM_LOCAL_MODEL_COST_MAP": "true", "MAX_IMAGE_URL_DOWNLOAD_SIZE_MB": "0"}
_LOGGERS = ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy")  # they log prompts
_HTTP_LOGGERS = ("httpx", "httpcore", "openai")  # they log addresses and headers
_SECRET_NAME = re.compile("key|secret|token|password|credential", re.IGNORECASE)
_ANYTHING_OPENAI = frozenset({"openai", "azure", "custom_openai", "text-completion-openai"})
_MIN_SECRET = 6  # characters; a shorter one is no secret, and hiding it would blacken words

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class LitellmSpec:
    """name: the upstream's. base_url, key: None leaves them to litellm. params: more of litellm's arguments. drops: as drop_params."""

    name: str
    timeouts: Timeouts
    key: str | None = None
    base_url: str | None = None
    params: Mapping[str, str] | None = None
    drops: bool = False

    def hide(self, text: str) -> str:
        """`text` without what only the gateway may know."""
        secrets = [self.key, *(value for name, value in (self.params or {}).items() if _SECRET_NAME.search(name))]
        for secret in secrets:
            if secret and len(secret) >= _MIN_SECRET:
                text = text.replace(secret, "***")
        return text


class LitellmChat:
    """A ChatUpstream. model: litellm's id, such as anthropic/claude-sonnet-4-5, a "*" in it for the rest of the client's; thinks: what it

    does where the client does not say; sampling: what is added there.
    """

    def __init__(self, spec: LitellmSpec, model: str, thinks: bool | None = None, sampling: Recommended = NOTHING) -> None:
        self._spec, self._model, self._thinks, self._sampling = spec, model, thinks, sampling
        self._library: _Library | None = None
        self._running: set[asyncio.Task[Any]] = set()

    async def stream(self, call: ChatCall, client: Client) -> None:
        await self._run(self._stream(call, client))

    async def complete(self, call: ChatCall) -> bytes:
        return await self._run(self._complete(call))

    def close(self) -> None:
        """End what runs; its callers get an UpstreamError."""
        for task in self._running:
            task.cancel()

    async def _run(self, exchange: Coroutine[Any, Any, Result]) -> Result:
        """`exchange` as a task that `close` can end. Being cancelled cancels it, and returns when it has let go of its connection."""
        task = asyncio.create_task(exchange)
        self._running.add(task)
        try:
            return await task
        except asyncio.CancelledError:
            caller = asyncio.current_task()
            if caller is not None and caller.cancelling():
                raise
            raise errors.disconnected(self._spec.name, "from this side: it is no longer in use") from None
        finally:
            self._running.discard(task)

    async def _stream(self, call: ChatCall, client: Client) -> None:
        library, model = await self._loaded(call)
        asked = self._arguments(library, model, call)
        gate = _Gate()
        answer = StreamedAnswer(self._spec.name, self._spec.key, call.meter, call.wants_usage)
        clock = _Clock(self._spec.name, self._spec.timeouts, streams=True)
        async with self._translated(library, lambda: answer.began):
            chunks = await clock.limit(library.module.acompletion(**asked), began=False)
            try:
                while (chunk := await clock.limit(anext(chunks, None), began=answer.began)) is not None:
                    if frames := self._frames(chunk, chunks, answer):
                        call.meter.note_content()
                        client.write(frames, gate)
                    if answer.failure is not None:
                        raise answer.failure
                    await clock.limit_total(gate.opened.wait())
            finally:
                await chunks.aclose()
        if frames := answer.end():
            client.write(frames, gate)

    async def _complete(self, call: ChatCall) -> bytes:
        library, model = await self._loaded(call)
        asked = self._arguments(library, model, call)
        clock = _Clock(self._spec.name, self._spec.timeouts, streams=False)
        async with self._translated(library, lambda: False):
            completion = await clock.limit(library.module.acompletion(**asked), began=False)
        answer = WholeAnswer(self._spec.name, self._spec.key, call.meter)
        answer.feed(orjson.dumps(completion_document(completion.model_dump(exclude_none=True, warnings=False))))
        return answer.end()

    # -- asking -----------------------------------------------------------------------------------------------------
    async def _loaded(self, call: ChatCall) -> tuple[_Library, str]:
        """litellm, ready for the call's model, and that model's id."""
        if "*" in self._model:
            model = self._model.replace("*", call.rest)
            return await asyncio.to_thread(_load, self._spec, model), model
        if self._library is None:
            self._library = await asyncio.to_thread(_load, self._spec, self._model)
        return self._library, self._model

    def _arguments(self, library: _Library, model: str, call: ChatCall) -> dict[str, Any]:
        spec, limits = self._spec, self._spec.timeouts
        fields = {**call.fields, **self._sampling.added_to(call.fields)}
        asked = arguments(fields, spec.name, takes_any=library.speaks_openai, drops=spec.drops, thinks=self._thinks)
        own = {"model": model, "api_key": spec.key, "api_base": spec.base_url, "drop_params": spec.drops}
        # The limits of an answer are kept here; litellm's only says how long a connection may take.
        timeout = library.timeout(limits.total_s, connect=limits.connect_s)
        return asked | own | {"timeout": timeout, "num_retries": 0, "max_retries": 0} | dict(spec.params or {})

    @asynccontextmanager
    async def _translated(self, library: _Library, began: Callable[[], bool]) -> AsyncIterator[None]:
        try:
            yield
        except UpstreamError:
            raise
        except Exception as error:
            raise from_litellm(
                self._spec.name, error, lambda text: library.redact(self._spec.hide(text)), self._spec.timeouts.connect_s, began=began()
            ) from error

    # -- answering --------------------------------------------------------------------------------------------------
    def _frames(self, chunk: Any, chunks: Any, answer: StreamedAnswer) -> bytes:
        """What is to be passed on of one of litellm's chunks."""
        document = chunk_document(chunk.model_dump(exclude_none=True, warnings=False), _provider_cost(chunk))
        if document is None:
            return b""
        if _ends(document) and not _provider_ended(chunks):
            raise errors.disconnected(self._spec.name, "in the middle of the answer" if answer.began else "before the first token")
        return answer.feed(sse.event(document))


# --- documents -----------------------------------------------------------------------------------------------------------------------


def chunk_document(dumped: dict[str, Any], cost: float | None) -> dict[str, Any] | None:
    """One chat.completion.chunk from litellm's, dumped without its Nones; None for one that says nothing. cost: the provider's."""
    usage = _usage(dumped, cost)
    choices = [
        {**_without_empty(choice), "delta": _without_empty(choice.get("delta") or {}), "finish_reason": choice.get("finish_reason")}
        for choice in dumped.get("choices") or []
    ]
    if not choices and usage is None:
        return None
    return _without_empty(dumped) | {"choices": choices} | ({"usage": usage} if usage else {})


def completion_document(dumped: dict[str, Any]) -> dict[str, Any]:
    """One chat.completion from litellm's, dumped without its Nones."""
    choices = [
        {**_without_empty(choice), "message": {"content": None, **_without_empty(choice.get("message") or {})}}
        for choice in dumped.get("choices") or []
    ]
    given = dumped.get("usage")
    usage = _usage(dumped, given.get("cost") if isinstance(given, dict) else None)
    return _without_empty(dumped) | {"choices": choices} | ({"usage": usage} if usage else {})


def _without_empty(document: Mapping[str, Any]) -> dict[str, Any]:
    """Without litellm's own empty extras; `usage` is put back by those who know whether it was counted."""
    return {key: value for key, value in document.items() if key != "usage" and not (key == "provider_specific_fields" and not value)}


def _usage(dumped: Mapping[str, Any], cost: float | None) -> dict[str, Any] | None:
    """The provider's usage. litellm writes zeros where there was none, and its own estimate of the cost beside it."""
    usage = dumped.get("usage")
    if not isinstance(usage, dict) or not (usage.get("prompt_tokens") or usage.get("completion_tokens")):
        return None
    stated = {key: value for key, value in usage.items() if key != "cost"}
    return stated | ({"cost": cost} if cost is not None else {})


def _ends(document: Mapping[str, Any]) -> bool:
    return any(choice["finish_reason"] for choice in document["choices"])


def _provider_ended(chunks: Any) -> bool:
    """Whether a finish_reason came from the provider: litellm invents one for a stream that just stops."""
    told = ("received_finish_reason", "intermittent_finish_reason", "received_any_finish_reason")
    return any(getattr(chunks, name, True) for name in told)


def _provider_cost(chunk: Any) -> float | None:
    hidden = getattr(chunk, "_hidden_params", None)
    cost = hidden.get("upstream_usage_cost") if isinstance(hidden, Mapping) else None
    return float(cost) if isinstance(cost, int | float) and not isinstance(cost, bool) else None


# --- time and pauses -----------------------------------------------------------------------------------------------------------------


class _Gate:
    """A Source. While it is shut, no chunk is taken, so that the provider's connection fills up and waits."""

    def __init__(self) -> None:
        self.opened = asyncio.Event()
        self.opened.set()

    def pause(self) -> None:
        self.opened.clear()

    def resume(self) -> None:
        self.opened.set()


class _Clock:
    """The limits of one exchange, which begins now."""

    def __init__(self, upstream: str, limits: Timeouts, *, streams: bool) -> None:
        self._upstream, self._limits, self._streams = upstream, limits, streams
        self._loop = asyncio.get_running_loop()
        self._started = self._loop.time()

    async def limit(self, work: Awaitable[Result], *, began: bool) -> Result:
        """The result of `work`, which is to bring the first content, or more of it. Raises UpstreamError."""
        limits = self._limits
        due = self._total()
        if self._streams and began:
            due = min(due, (self._loop.time() + limits.idle_s, "nothing more came", limits.idle_s))
        elif self._streams:
            due = min(due, (self._started + limits.first_token_s, "no first token", limits.first_token_s))
        return await self._until(work, *due)

    async def limit_total(self, work: Awaitable[Result]) -> Result:
        """The same for time in which the client holds the provider back."""
        return await self._until(work, *self._total())

    def _total(self) -> tuple[float, str, float]:
        return self._started + self._limits.total_s, "the answer was not complete", self._limits.total_s

    async def _until(self, work: Awaitable[Result], due: float, what: str, limit_s: float) -> Result:
        try:
            async with asyncio.timeout_at(due) as timer:
                return await work
        except TimeoutError as error:
            if timer.expired():
                raise errors.timed_out(self._upstream, what, limit_s) from error
            raise


# --- litellm -------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Library:
    """litellm, ready for one model. speaks_openai: whether its provider takes any field of a request body."""

    module: Any
    speaks_openai: bool
    timeout: Any
    redact: Callable[[str], str]


def _load(spec: LitellmSpec, model: str) -> _Library:
    """Takes seconds the first time. Raises UpstreamError for a model of no known provider, and where litellm cannot be imported."""
    os.environ.update(_ENVIRONMENT)
    try:
        # By name: import-linter and mypy then see no import, and neither may follow litellm's three thousand files.
        module: Any = importlib.import_module("litellm")
    except ImportError as error:
        raise _misconfigured(f"upstream '{spec.name}': litellm cannot be imported ({error}); pip install litellm") from error
    module.suppress_debug_info = True  # else it prints advice beside every error
    module.disable_aiohttp_transport = True  # one HTTP client for all providers, the one that closes at once when cancelled
    module.disable_token_counter = True  # a count of its own would pass for the provider's
    module.drop_params = False
    for name in _LOGGERS:
        logging.getLogger(name).disabled = True
    for name in _HTTP_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
    speaks_openai = _provider(module, spec, model) in _ANYTHING_OPENAI | set(module.openai_compatible_providers)
    redact = importlib.import_module("litellm._logging").redact_secrets
    return _Library(module, speaks_openai, importlib.import_module("httpx").Timeout, redact)


def _provider(module: Any, spec: LitellmSpec, model: str) -> str:
    try:
        return str(module.get_llm_provider(model=model, api_base=spec.base_url)[1])
    except module.BadRequestError as error:
        message = f"upstream '{spec.name}': litellm knows no provider for the model '{model}'; write it as provider/model"
        raise _misconfigured(message) from error


def _misconfigured(message: str) -> UpstreamError:
    return UpstreamError(502, message, "upstream_misconfigured", headers={b"x-should-retry": b"false"})
