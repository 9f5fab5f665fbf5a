"""Every failure as one OpenAI-shaped error: `{"error": {"message", "type", "param", "code"}}` with the right status.

`GatewayError` is what the gateway itself raises; `to_gateway_error` is the one table that turns anything else into it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson
from starlette.exceptions import HTTPException

from adapters.errors import UpstreamError
from local_models.errors import EngineError

ROUTES = "/v1/models, /v1/chat/completions, /v1/images/generations, /v1/engines, /v1/usage and /v1/admin/keys"
MAX_NAME = 128  # characters of an unknown name that a message repeats; no known one is longer


@dataclass(slots=True)
class GatewayError(Exception):
    """What the client is told. headers: sent with it, lower-case names."""

    status: int
    message: str
    code: str | None
    type: str = "invalid_request_error"
    param: str | None = None
    headers: dict[bytes, bytes] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.message

    @property
    def document(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    @property
    def body(self) -> bytes:
        return orjson.dumps(self.document)


def invalid(message: str, param: str | None, code: str = "invalid_value") -> GatewayError:
    return GatewayError(400, message, code, param=param)


def unauthorized(message: str, code: str = "invalid_api_key") -> GatewayError:
    return GatewayError(401, message, code, "authentication_error", headers={b"www-authenticate": b"Bearer"})


def forbidden(message: str, code: str, param: str | None = None) -> GatewayError:
    return GatewayError(403, message, code, "permission_error", param)


def too_large(limit: int) -> GatewayError:
    message = f"the request body is larger than {limit} bytes; send fewer or smaller images, or raise server.max_body_bytes"
    return GatewayError(413, message, "request_too_large", headers={b"connection": b"close"})


def too_slow(limit_s: float) -> GatewayError:
    return _request_timeout(f"the request body stopped: nothing more of it came within {limit_s:g} s; send it again")


def body_too_slow(limit_s: float) -> GatewayError:
    return _request_timeout(f"the request body was not complete within {limit_s:g} s; send it again, or fewer and smaller images")


def head_too_slow(limit_s: float) -> GatewayError:
    return _request_timeout(f"the headers of the request were not complete within {limit_s:g} s; send it again")


def _request_timeout(message: str) -> GatewayError:
    return GatewayError(408, message, "request_timeout", "timeout_error", headers={b"connection": b"close"})


def client_gave_up(patience_s: float) -> GatewayError:
    """The client most likely does not hear this any more; whoever stands between it and us may."""
    message = f"no complete answer came within the {patience_s:g} s that the client waits for one; let it wait longer, or ask for a stream"
    return GatewayError(504, message, "request_timeout", "timeout_error")


def unknown_model(name: str, kind: str, known: list[str], other_kind: bool) -> GatewayError:
    if other_kind:
        other, route = ("an image", "/v1/images/generations") if kind == "chat" else ("a chat", "/v1/chat/completions")
        reason = f"the model '{name}' is {other} model: send it to {route}"
    else:
        reason = f"the model '{name[:MAX_NAME]}' does not exist"
    listed = ", ".join(f"'{model}'" for model in known) or "none is configured"
    return GatewayError(404, f"{reason}; {kind} models here: {listed}", "model_not_found", param="model")


def unavailable(message: str, code: str, retry_after_s: float | None) -> GatewayError:
    headers = {b"retry-after": b"%d" % max(1, math.ceil(retry_after_s))} if retry_after_s is not None else {b"x-should-retry": b"false"}
    return GatewayError(503, message, code, "service_unavailable_error", headers=headers)


def queue_full(model: str, limit: int, retry_after_s: float) -> GatewayError:
    message = f"the queue of model '{model}' holds {limit} requests already, its limit; try again in about {math.ceil(retry_after_s)} s"
    headers = {b"retry-after": b"%d" % max(1, math.ceil(retry_after_s))}
    return GatewayError(429, message, "queue_full", "rate_limit_error", headers=headers)


def shutting_down() -> GatewayError:
    return unavailable("the gateway is shutting down; ask again when it is back", "shutting_down", 5)


def to_gateway_error(error: BaseException) -> GatewayError:
    """The error to show for `error`. What is nobody's fault but ours is 500 without details."""
    match error:
        case GatewayError():
            return error
        case UpstreamError():
            return GatewayError(error.status, error.message, error.code, error.type, error.param, error.headers)
        case EngineError():
            return _engine_error(error)
        case HTTPException():
            return _http_error(error)
        case _:
            message = "the gateway failed on this request; its log says more under this x-request-id"
            return GatewayError(500, message, "internal_error", "api_error")


def _engine_error(error: EngineError) -> GatewayError:
    return unavailable(str(error), "engine_unavailable", error.retry_after_s)


def _http_error(error: HTTPException) -> GatewayError:
    codes = {404: "not_found", 405: "method_not_allowed"}
    headers = {name.lower().encode(): value.encode() for name, value in (error.headers or {}).items()}
    return GatewayError(error.status_code, str(error.detail), codes.get(error.status_code), headers=headers)


def no_route(method: str, path: str, allowed: list[str]) -> GatewayError:
    if allowed:
        headers = {b"allow": ", ".join(allowed).encode()}
        return GatewayError(405, f"{path} takes {' or '.join(allowed)}, not {method}", "method_not_allowed", headers=headers)
    message = f"there is nothing at {path}; the API is at {ROUTES}"
    return GatewayError(404, message, "not_found")


def from_validation(problems: list[Mapping[str, Any]], advice: str = "") -> GatewayError:
    """The first of pydantic's problems, as one sentence. advice: what the allowed fields are, for an unknown one."""
    problem = problems[0]
    param = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in problem["loc"]).lstrip(".") or None
    match problem["type"]:
        case "missing":
            return invalid(f"the field '{param}' is missing", param, "missing_required_parameter")
        case "extra_forbidden":
            return invalid(f"the field '{str(param)[:MAX_NAME]}' is not known{advice}", param, "unknown_parameter")
        case _:
            value = problem.get("input")
            shown = f" (got {str(value)[:80]!r})" if isinstance(value, str | int | float | bool) else ""
            message = str(problem["msg"]).removeprefix("Value error, ")
            return invalid(f"{param}: {message}{shown}", param)
