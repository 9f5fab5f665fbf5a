"""What can go wrong with an upstream, as one type, and the one place where a foreign error becomes it.

The rule: status class, message and Retry-After of the upstream survive; its credentials never do. Only a refusal of *our*
credentials changes class (502), since the client cannot mend it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson

UNREACHABLE, DISCONNECTED, TIMED_OUT = "upstream_unreachable", "upstream_disconnected", "upstream_timeout"
ABORTED = "upstream_aborted"
MESSAGE_LIMIT = 2000  # characters of a foreign message that are passed on
NAME_LIMIT = 128  # of its code, type and param
RATE_HEADERS = b"x-ratelimit-"  # how their names begin
# Headers of an error that a client's back-off depends on (openai-python reads the first three), by their beginnings.
BACKOFF_HEADERS = (b"retry-after", b"retry-after-ms", b"x-should-retry", RATE_HEADERS)
# The type names OpenAI uses for a status; everything else is "api_error".
_TYPES = {
    400: "invalid_request_error", 404: "invalid_request_error", 413: "invalid_request_error", 422: "invalid_request_error",
    401: "authentication_error", 403: "permission_error", 408: "timeout_error", 429: "rate_limit_error", 504: "timeout_error",
}  # fmt: skip
# OpenRouter's `metadata.error_type` for errors that arrive inside a 200. Source: OpenRouter docs, errors page.
_STATUS_OF_TYPE = {
    "context_length_exceeded": 400, "max_tokens_exceeded": 400, "token_limit_exceeded": 400, "string_too_long": 400, "invalid_request": 400,
    "authentication": 401, "payment_required": 402, "permission_denied": 403, "content_policy_violation": 403, "not_found": 404,
    "rate_limit_exceeded": 429, "provider_overloaded": 503, "provider_unavailable": 502, "timeout": 504, "server": 500,
}  # fmt: skip
# The `type` of an error inside a 200 that gives neither. Source: Anthropic's and OpenAI's documents of errors.
_STATUS_OF_KIND = {
    "invalid_request_error": 400, "authentication_error": 401, "billing_error": 402, "permission_error": 403, "not_found_error": 404,
    "conflict_error": 409, "request_too_large": 413, "rate_limit_error": 429, "timeout_error": 504, "overloaded_error": 529,
}  # fmt: skip
# A 429 that waiting does not mend: what the account may spend is spent.
_SPENT = frozenset({"insufficient_quota", "billing_hard_limit_reached", "enforced_spend_limit_reached"})
_TOO_LONG = frozenset({"context_length_exceeded", "max_tokens_exceeded", "token_limit_exceeded", "string_too_long"})
_MODERATED = frozenset({"content_filter", "content_policy_violation"})
_SAYS_TOO_LONG = "maximum context length"  # vLLM and many others give no code. Source: vLLM, serving errors
# A client's own mistake: another deployment would refuse it too.
_CLIENT_FAULTS = frozenset({400, 405, 406, 409, 411, 413, 414, 415, 422})


@dataclass(slots=True)
class UpstreamError(Exception):
    """An answer that did not come. `status` is what our client should see; `fallback` says whether another deployment may help."""

    status: int
    message: str
    code: str
    type: str = "api_error"
    param: str | None = None
    fallback: bool = True
    headers: dict[bytes, bytes] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.message

    @property
    def refusal(self) -> Literal["context_length_exceeded", "content_filter"] | None:
        """Why this deployment will not answer this request though another might, or None."""
        if self.code in _TOO_LONG:
            return "context_length_exceeded"
        return "content_filter" if self.code in _MODERATED else None


def unreachable(upstream: str, where: str, reason: str) -> UpstreamError:
    return UpstreamError(502, f"upstream '{upstream}' cannot be reached at {where}: {reason}", UNREACHABLE)


def disconnected(upstream: str, when: str) -> UpstreamError:
    return UpstreamError(502, f"upstream '{upstream}' closed the connection {when}", DISCONNECTED)


def timed_out(upstream: str, what: str, limit_s: float) -> UpstreamError:
    return UpstreamError(504, f"upstream '{upstream}': {what} within {limit_s:g} s", TIMED_OUT, "timeout_error")


def bad_reply(upstream: str, what: str) -> UpstreamError:
    return UpstreamError(502, f"upstream '{upstream}' sent {what}", "upstream_bad_reply")


def from_reply(upstream: str, status: int, headers: Mapping[bytes, bytes], body: bytes, secret: str | None) -> UpstreamError:
    """The error of a reply whose HTTP status is 400 or more (or a redirect, which no chat API should send)."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        document = body.decode("utf-8", "replace").strip() or f"HTTP {status} without a readable body"
    backoff = {name: value for name, value in headers.items() if name.startswith(BACKOFF_HEADERS)}
    return _build(upstream, status if 400 <= status <= 599 else 502, document, backoff, secret)


def excerpt(data: bytes, secret: str | None) -> str:
    """The beginning of what an upstream sent, for a message."""
    return repr((data.replace(secret.encode(), b"***") if secret else data)[:80])


def from_document(upstream: str, document: Mapping[str, Any], secret: str | None) -> UpstreamError | None:
    """The error inside a reply or a frame that came under HTTP 200, or None where there is none."""
    error = document.get("error") or (document if document.get("object") == "error" else None)  # vLLM's older form has no `error`
    if not error:
        error = _choice_error(document)
    if not error:
        return None
    return _build(upstream, _status_of(error), {"error": error}, {}, secret)


def from_text(upstream: str, body: bytes, secret: str | None) -> UpstreamError | None:
    """The error in a body of unknown form (JSON, or events), or None."""
    text = body.strip().removeprefix(b"data:").partition(b"\n\n")[0]
    try:
        document = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    return from_document(upstream, document, secret) if isinstance(document, dict) else None


def _choice_error(document: Mapping[str, Any]) -> Any:
    """An answer that failed late: OpenRouter's `choices[0].error` beside finish_reason "error", vLLM's finish_reason "abort", which OpenAI

    does not know: the engine was stopped, and the answer is no more than a beginning.
    """
    choices = document.get("choices")
    choices = [choice for choice in choices if isinstance(choice, dict)] if isinstance(choices, list) else []
    if any(choice.get("finish_reason") == "abort" for choice in choices):
        return {"message": "the engine was stopped before the answer was complete", "code": ABORTED, "http_status": 502}
    if not choices or choices[0].get("finish_reason") != "error":
        return None
    return choices[0].get("error") or {"message": "the provider ended the answer with finish_reason 'error'"}


def _status_of(error: Any) -> int:
    if not isinstance(error, dict):
        return 502
    code = error.get("code")
    for kind in (_part(error, "metadata").get("error_type"), error.get("error_type"), code):
        if isinstance(kind, str) and kind in _STATUS_OF_TYPE:
            return _STATUS_OF_TYPE[kind]
    for number in (code, error.get("http_status")):
        if isinstance(number, str) and re.fullmatch("[45][0-9]{2}", number):
            return int(number)
        if isinstance(number, int) and 400 <= number <= 599:
            return number
    kind = error.get("type")
    return _STATUS_OF_KIND.get(kind, 502) if isinstance(kind, str) else 502


def _part(error: Mapping[str, Any], name: str) -> dict[str, Any]:
    """An object inside an error, empty where it is missing or something else."""
    part = error.get(name)
    return part if isinstance(part, dict) else {}


def _build(upstream: str, status: int, document: Any, headers: dict[bytes, bytes], secret: str | None) -> UpstreamError:
    message, kind, code, param, moderated = _read(document, status)
    error = _part(document, "error") if isinstance(document, dict) else {}
    availability = _part(error, "availability")
    headers = _advised(error, availability, code, status, headers)
    message = _without(secret, message)[:MESSAGE_LIMIT]
    kind, code, param = (text and _without(secret, text)[:NAME_LIMIT] for text in (kind, code, param))
    if status in (401, 402, 407) or (status == 403 and not moderated):
        reason = "has no credits left" if status == 402 else "refused the gateway's credentials"
        code = "upstream_payment_required" if status == 402 else "upstream_auth_failed"
        text = f"upstream '{upstream}' {reason} (HTTP {status}): {message}"
        return UpstreamError(502, text, code, headers=headers | {b"x-should-retry": b"false"})
    # What an upstream says of a model's availability holds for that upstream, whatever the status.
    fallback = (status not in _CLIENT_FAULTS or bool(availability)) and not moderated
    if code is None and status in (400, 413, 422) and _SAYS_TOO_LONG in message:
        code = "context_length_exceeded"
    if moderated and code not in _MODERATED:
        code = "content_policy_violation"
    kind = kind or _TYPES.get(status, "api_error")
    return UpstreamError(status, message, code or f"upstream_http_{status}", kind, param, fallback, headers)


def _without(secret: str | None, text: str) -> str:
    return text.replace(secret, "***") if secret else text


def _advised(
    error: Mapping[str, Any], availability: Mapping[str, Any], code: str | None, status: int, headers: dict[bytes, bytes]
) -> dict[bytes, bytes]:
    """`headers` with what only the body says of trying again."""
    wait_s = availability.get("retry_after")
    if isinstance(wait_s, int | float) and not headers.keys() & {b"retry-after", b"retry-after-ms"}:
        headers = headers | {b"retry-after": b"%d" % max(0, math.ceil(wait_s))}
    spent = code in _SPENT or _part(error, "details").get("error_code") in _SPENT
    return headers | {b"x-should-retry": b"false"} if spent and status == 429 else headers


def _read(document: Any, status: int) -> tuple[str, str | None, str | None, str | None, bool]:
    """(message, type, code, param, moderated) of any shape: OpenAI's, vLLM's (integer code, string error), FastAPI's `detail`, text."""
    error = (document.get("error") or document) if isinstance(document, dict) else document
    if not isinstance(error, dict):
        return str(error or f"HTTP {status}"), None, None, None, False
    message = error.get("message") or error.get("detail") or error.get("msg") or f"HTTP {status}"
    if not isinstance(message, str):
        message = orjson.dumps(message).decode()
    metadata = _part(error, "metadata")
    raw = metadata.get("raw")
    if isinstance(raw, str) and raw and raw not in message:
        message = f"{message}: {raw}"
    code = metadata.get("error_type") or error.get("code") or _part(error, "availability").get("code") or error.get("error_type")
    code = code if isinstance(code, str) and not code.isdigit() else None
    kind = error.get("type")
    param = error.get("param")
    moderated = "reasons" in metadata or "flagged_input" in metadata or code in ("content_policy_violation", "content_filter")
    return message, _known_type(kind), code, param if isinstance(param, str) else None, moderated


def _known_type(kind: Any) -> str | None:
    """Types in OpenAI's spelling only; vLLM's `NotFoundError` and HTTP phrases are replaced by the type of the status."""
    return kind if isinstance(kind, str) and kind.endswith("_error") else None
