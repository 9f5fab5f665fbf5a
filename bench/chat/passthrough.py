"""An entrant: what a bare ASGI application with aiohttp costs, as one writes it in ten minutes. BENCH_UPSTREAM names the upstream.

It does what the bare hot path does and nothing more, so that the two differ in their technique only.
"""

from __future__ import annotations

import os

import aiohttp
import orjson
from starlette.types import Receive, Scope, Send

from bench.chat.asgi import answer_lifespan, read_whole

_PASSED_ON = ("content-type", "content-length", "retry-after")


class Passthrough:
    """See the module."""

    def __init__(self, base_url: str) -> None:
        self._base_url = base_url
        self._session: aiohttp.ClientSession | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await answer_lifespan(receive, send)
            return
        body = await read_whole(receive)
        orjson.loads(body)  # a gateway reads `model` here
        async with self._client().post(self._base_url + scope["path"], data=body, headers={"content-type": "application/json"}) as reply:
            headers = [(name.lower().encode(), value.encode()) for name, value in reply.headers.items() if name.lower() in _PASSED_ON]
            await send({"type": "http.response.start", "status": reply.status, "headers": headers})
            async for piece in reply.content.iter_any():
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:  # it needs the running loop
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=None), auto_decompress=False
            )
        return self._session


def make_app() -> Passthrough:
    """For `uvicorn --factory`."""
    return Passthrough(os.environ["BENCH_UPSTREAM"].removesuffix("/v1"))
