"""A chat model behind any server that speaks OpenAI's API: one `Endpoint`, one model id, one way to spell thinking."""

from __future__ import annotations

from adapters.base import ChatCall, Client
from adapters.endpoint import Endpoint
from adapters.rewrite import rewrite
from adapters.thinking import Dialect, changes

PATH = "/chat/completions"


class OpenAICompatible:
    """A ChatUpstream. model: the upstream's own id; thinking: what the model does where the client does not say."""

    def __init__(self, endpoint: Endpoint, model: str, dialect: Dialect = "as_given", thinking: bool | None = None) -> None:
        self._endpoint, self._model, self._dialect, self._thinking = endpoint, model, dialect, thinking

    async def stream(self, call: ChatCall, client: Client) -> None:
        await self._endpoint.stream(PATH, self._body(call), call.request_id, client)

    async def complete(self, call: ChatCall) -> bytes:
        return await self._endpoint.complete(PATH, self._body(call), call.request_id)

    def close(self) -> None:
        self._endpoint.close()

    def _body(self, call: ChatCall) -> bytes:
        return rewrite(call.body, call.fields, self._model, changes(call.fields, self._dialect, self._thinking))
