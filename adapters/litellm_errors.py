"""litellm's exceptions as ours. Pure, and by the names of their classes, so that nothing here imports litellm.

What litellm knows of the provider's reply goes through `adapters.errors` like every other reply: the same status rules, the same
Retry-After, the same silence about credentials. Source: litellm/exceptions.py (a test compares its classes with `MEANINGS`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from adapters import errors
from adapters.errors import UpstreamError


@dataclass(frozen=True, slots=True)
class Meaning:
    """status: None takes the exception's own. code: None takes the provider's. fallback: None leaves it to the status."""

    status: int | None
    code: str | None = None
    fallback: bool | None = None


_BAD_REPLY = Meaning(502, "upstream_bad_reply")
MEANINGS: Mapping[str, Meaning] = {
    "AuthenticationError": Meaning(401),
    "CallerCredentialAuthenticationError": Meaning(401),
    "PermissionDeniedError": Meaning(403),
    "PaymentRequiredError": Meaning(402),
    "NotFoundError": Meaning(404),
    "BadRequestError": Meaning(None),  # also litellm's class for a 413
    "InvalidRequestError": Meaning(400),
    "MalformedRequestFieldError": Meaning(400),
    "VectorStoreSearchError": Meaning(400),
    "RejectedRequestError": Meaning(400),
    "UnprocessableEntityError": Meaning(422),
    "ContextWindowExceededError": Meaning(400, "context_length_exceeded"),
    "ContentPolicyViolationError": Meaning(400, "content_policy_violation"),
    "GuardrailRaisedException": Meaning(400, "content_policy_violation"),
    "BlockedPiiEntityError": Meaning(400, "content_policy_violation"),
    # What this provider does not take, another deployment may.
    "UnsupportedParamsError": Meaning(400, "unsupported_parameter", fallback=True),
    "UnsupportedEndpointError": Meaning(400, "unsupported_parameter", fallback=True),
    "EndpointNotSupportedByModelError": Meaning(400, "unsupported_parameter", fallback=True),
    "ImageFetchError": Meaning(400, "invalid_image_url", fallback=True),
    "RateLimitError": Meaning(429),
    "CallerCredentialRateLimitError": Meaning(429),
    "Timeout": Meaning(504, "upstream_timeout"),
    "InternalServerError": Meaning(None),
    "ServiceUnavailableError": Meaning(None),
    "BadGatewayError": Meaning(None),
    "APIError": Meaning(None),
    "MidStreamFallbackError": Meaning(None),
    "APIConnectionError": _BAD_REPLY,  # litellm's name for everything it did not expect; what was a connection is told by its cause
    "APIResponseValidationError": _BAD_REPLY,
    "JSONSchemaValidationError": _BAD_REPLY,
    "OpenAIError": _BAD_REPLY,
    "LiteLLMUnknownProvider": Meaning(502, "upstream_misconfigured"),
    # Of features of litellm that Tandem leaves off: they would be a mistake of ours.
    "ModelNotMappedError": _BAD_REPLY,
    "BudgetExceededError": _BAD_REPLY,
    "MockException": _BAD_REPLY,
    "ModifyResponseException": _BAD_REPLY,
    "SensitiveDataRouteException": _BAD_REPLY,
}
# httpx's, wherever litellm wrapped them
_NOT_REACHED = frozenset({"ConnectError", "ProxyError", "UnsupportedProtocol"})
_CUT = frozenset({"ReadError", "WriteError", "CloseError", "RemoteProtocolError", "LocalProtocolError"})
_ENDED = "StopAsyncIteration"  # what litellm was looking at when it missed the end of an answer
# litellm writes its own class and the provider's before a message, and advice for its users after it.
_BEFORE = re.compile(r"^(?:litellm\.)?\w*(?:Error|Exception|Timeout|Params)\s*(?:-|:)\s*")
_AFTER = re.compile(r"(?:\. Handle with `litellm\.\w+`\.?|[. ]*To drop these, set .*|[. ]*If you want to use these params .*)$", re.DOTALL)
_JSON = re.compile(r"\{.*\}", re.DOTALL)
_HEADER_PREFIX = "llm_provider-"


def from_litellm(upstream: str, error: Exception, hide: Callable[[str], str], connect_s: float, *, began: bool) -> UpstreamError:
    """hide: takes our secrets out of a text. connect_s: the limit to name where it was exceeded. began: content had come before."""
    chain = list(_chain(error))
    names = {kind.__name__ for cause in chain for kind in type(cause).__mro__}
    if "ConnectTimeout" in names:
        return errors.timed_out(upstream, "no connection", connect_s)
    if names & _NOT_REACHED:
        return errors.unreachable(upstream, "its provider's address", hide(_text(chain[-1])))
    if names & _CUT or _ENDED in names:
        return errors.disconnected(upstream, "in the middle of the answer" if began else "before it answered")
    # The two classes that say only where an exception came from give way to one that says what it was.
    told = (cause for cause in chain if type(cause).__name__ not in ("MidStreamFallbackError", "APIConnectionError"))
    named = next((cause for cause in told if _meaning(cause) is not None), None)
    if named is None:  # a fault inside litellm: what it adds of its own insides is not for a client
        first_line = _text(error).partition("\n")[0]
        return errors.bad_reply(upstream, f"what litellm could not handle: {hide(first_line)[: errors.MESSAGE_LIMIT]}")
    return _build(upstream, named, chain, _meaning(named) or _BAD_REPLY, hide)


def _meaning(error: BaseException) -> Meaning | None:
    return next((MEANINGS[kind.__name__] for kind in type(error).__mro__ if kind.__name__ in MEANINGS), None)


def _build(upstream: str, error: BaseException, chain: list[BaseException], meaning: Meaning, hide: Callable[[str], str]) -> UpstreamError:
    status = meaning.status or _status(chain)
    document = _document(chain, error, hide)
    if meaning.code is not None:
        document = {**document, "code": meaning.code, "metadata": None}
    built = errors.from_reply(upstream, status, _headers(chain), orjson.dumps({"error": document}), None)
    if meaning.fallback is not None:
        built.fallback = meaning.fallback
    if meaning.code == "unsupported_parameter":
        built.message += f"; leave it out, or set drop_params: true for upstream '{upstream}'"
    elif meaning.code == "invalid_image_url":
        built.message = f"upstream '{upstream}' does not take this picture by its address; send it as a data: URL"
    elif status >= 500:
        built.message = f"upstream '{upstream}' failed (HTTP {status}): {built.message}"
    return built


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The exception and all that it was raised for, nearest first."""
    waiting, seen = [error], set[int]()
    while waiting:
        current = waiting.pop(0)
        if id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        causes = (getattr(current, "original_exception", None), current.__cause__, current.__context__)
        waiting.extend(cause for cause in causes if isinstance(cause, BaseException))


def _status(chain: list[BaseException]) -> int:
    """The provider's own where it is told: litellm writes 500 for a 529."""
    found = [status for cause in chain if isinstance(status := getattr(cause, "status_code", None), int) and 400 <= status <= 599]
    return found[-1] if found else 502


def _headers(chain: list[BaseException]) -> dict[bytes, bytes]:
    """The provider's headers, from whichever exception kept them."""
    for cause in chain:
        holders = (getattr(cause, "response", None), cause)
        found = [getattr(holder, "headers", None) for holder in holders]
        for headers in (*found, getattr(cause, "litellm_response_headers", None)):
            if isinstance(headers, Mapping) and headers:
                return {
                    str(name).lower().removeprefix(_HEADER_PREFIX).encode(): str(value).encode("latin-1", "replace")
                    for name, value in headers.items()
                }
    return {}


def _document(chain: list[BaseException], named: BaseException, hide: Callable[[str], str]) -> dict[str, Any]:
    """The provider's error object, or one around litellm's message."""
    text = _text(named)
    given = getattr(named, "body", None)
    raw = [message.decode("utf-8", "replace") for cause in chain if isinstance(message := getattr(cause, "message", None), bytes)]
    candidates = [orjson.dumps(given, default=str).decode()] if isinstance(given, Mapping) else []
    for candidate in (*candidates, *raw, text):
        found = _object_in(candidate)
        inner = found.get("error") if found else None
        document = inner if isinstance(inner, dict) else found
        if document is not None and isinstance(document.get("message"), str):
            return {key: hide(value) if isinstance(value, str) else value for key, value in document.items()}
    return {"message": hide(text)}


def _object_in(text: str) -> dict[str, Any] | None:
    found = _JSON.search(text)
    if found is None:
        return None
    try:
        document = orjson.loads(found[0])
    except orjson.JSONDecodeError:
        return None
    return document if isinstance(document, dict) else None


def _text(error: BaseException) -> str:
    text = str(getattr(error, "message", None) or error) or type(error).__name__
    while (shorter := _BEFORE.sub("", text, count=1)) != text:
        text = shorter
    return _AFTER.sub("", text).strip() or type(error).__name__
