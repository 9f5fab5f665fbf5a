"""The way to the gateway: the openai SDK, a line that can be cut, and errors in plain sentences.

A run's request has a connection of its own. Cutting it means shutting the socket down: closing a
response from another thread does not wake the thread that reads it, and the gateway would not hear
of it until that read returned.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import openai
from openai import OpenAI

from chat_app.catalog import ModelCard, card_of
from chat_app.records import Failure
from chat_app.settings import Settings

CONNECT_TIMEOUT_S = 5.0
LIST_TIMEOUT_S = 3.0
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})  # never asked for through a proxy of the environment
READ_TIMEOUT_S = 600.0  # the gateway sends a comment long before, so only a dead one is silent for this long


class Line:
    """The socket of one request, which another thread may cut at any time, even before it is connected."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._cut = False

    def cut(self) -> None:
        with self._lock:
            self._cut = True
            _shut(self._socket)

    def trace(self, event: str, info: Mapping[str, Any]) -> None:
        """A `trace` extension of the HTTP client: it is told of every new connection."""
        if event.endswith(("connect_tcp.complete", "start_tls.complete")):
            with self._lock:
                self._socket = info["return_value"].get_extra_info("socket")
                if self._cut:
                    _shut(self._socket)

    def attach(self, request: Any) -> None:
        request.extensions["trace"] = self.trace


def _shut(connection: socket.socket | None) -> None:
    if connection is not None:
        try:
            connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # closed already, which is what was wanted


class Gateway:
    def __init__(self, settings: Settings) -> None:
        self.base_url = settings.base_url
        self._api_key = settings.api_key
        self._trust_env = urlsplit(self.base_url).hostname not in LOOPBACK
        http_client = openai.DefaultHttpxClient(base_url=self.base_url, trust_env=self._trust_env)
        self._control = OpenAI(
            base_url=self.base_url, api_key=self._api_key, timeout=LIST_TIMEOUT_S, max_retries=0, http_client=http_client
        )
        _ = self._control.chat.completions, self._control.images  # the SDK imports these late; the first answer should not wait for it

    def close(self) -> None:
        self._control.close()

    def models(self) -> list[ModelCard]:
        """Every model, as the gateway lists them. Raises openai.OpenAIError."""
        return [_card(model) for model in self._control.models.list().data]

    def model(self, name: str) -> ModelCard:
        return _card(self._control.models.retrieve(name))

    def session(self, line: Line) -> OpenAI:
        """A client for one run, on a connection of its own. Never retries: a repeat is the person's decision."""
        http_client = openai.DefaultHttpxClient(
            base_url=self.base_url,
            trust_env=self._trust_env,
            timeout=openai.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
            event_hooks={"request": [line.attach]},
        )
        return OpenAI(base_url=self.base_url, api_key=self._api_key, max_retries=0, http_client=http_client)


def _card(model: openai.types.Model) -> ModelCard:
    facts = (model.model_extra or {}).get("tandem")
    return card_of(model.id, facts if isinstance(facts, dict) else {})


def failure_of(error: BaseException, request_id: str | None = None) -> Failure:
    """What to tell the person about an error of the SDK, or of anything below it."""
    match error:
        case openai.APITimeoutError():
            return Failure("The gateway took too long to answer.", "timeout")
        case openai.APIConnectionError():
            return Failure("The gateway cannot be reached, or hung up. Is it running?", "connection_error", request_id)
        case openai.APIStatusError():
            return Failure(_server_message(error), error.code, error.request_id, error.status_code)
        case openai.APIError():
            return Failure(error.message, error.code or error.type, request_id)
        case openai.OpenAIError():
            return Failure(str(error), "client_error", request_id)
    return Failure(f"The answer broke off: {error or type(error).__name__}", type(error).__name__, request_id)


def _server_message(error: openai.APIStatusError) -> str:
    """The server's own words, without the SDK's `Error code: 429 - {...}` around them."""
    message = error.body.get("message") if isinstance(error.body, dict) else None
    return message if isinstance(message, str) else error.message
