"""A chat model behind any server that speaks OpenAI's API: one `Endpoint`, one model id, one way to spell thinking."""

from __future__ import annotations

from typing import Any

from adapters.base import ChatCall, Client
from adapters.endpoint import Endpoint
from adapters.rewrite import rewrite
from adapters.sampling import NOTHING, Recommended
from adapters.thinking import Dialect, changes

PATH = "/chat/completions"


class OpenAICompatible:
    """A ChatUpstream. model: the upstream's own id, a "*" in it for the rest of the client's; thinking: what it does where the client

    does not say; asks_usage: whether a stream must be asked for its usage; sampling: what is added where the client does not say.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        model: str,
        dialect: Dialect = "as_given",
        thinking: bool | None = None,
        asks_usage: bool = True,
        sampling: Recommended = NOTHING,
    ) -> None:
        self._endpoint, self._model, self._dialect, self._thinking, self._asks_usage = endpoint, model, dialect, thinking, asks_usage
        self._sampling = sampling

    async def stream(self, call: ChatCall, client: Client) -> None:
        await self._endpoint.stream(PATH, self._body(call), call, client)

    async def complete(self, call: ChatCall) -> bytes:
        return await self._endpoint.complete(PATH, self._body(call), call)

    def close(self) -> None:
        self._endpoint.close()

    def _body(self, call: ChatCall) -> bytes:
        changed = changes(call.fields, self._dialect, self._thinking) | self._sampling.added_to(call.fields)
        if self._asks_usage:
            changed |= usage_option(call)
        return rewrite(call.body, call.fields, self._model.replace("*", call.rest), changed)


def usage_option(call: ChatCall) -> dict[str, Any]:
    """What makes a stream end with its usage, where the client has not asked for that itself."""
    if not call.fields.get("stream") or call.wants_usage:
        return {}
    given = call.fields.get("stream_options")
    return {"stream_options": {**(given if isinstance(given, dict) else {}), "include_usage": True}}
