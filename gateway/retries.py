"""Whether the same deployment may be asked again after an error, and after how long. Pure.

One request has one budget of attempts and of waiting (config.schema.RoutingSpec). Where it has been used, the reply says so, lest the
SDK multiplies it by its own. Source of the header rules: openai-python 3.3.1, `_base_client.py`.
"""

from __future__ import annotations

import math
import random
from email.utils import parsedate_to_datetime

from adapters.errors import TIMED_OUT, UpstreamError
from local_models.errors import EngineError

FIRST_WAIT_S, LONGEST_WAIT_S = 0.25, 8.0
# How long the SDK waits for an answer that does not stream, in seconds: openai-python's and openai-node's name for it.
PATIENCE_HEADERS = (b"x-stainless-read-timeout", b"x-stainless-timeout")
_WORTH_ANOTHER_TRY = frozenset({408, 409, 429, 500, 502, 503, 504, 529})


def wait_before_retry(error: UpstreamError | EngineError, retries: int, chance: random.Random, now: float) -> float | None:
    """Seconds until the deployment that gave `error` may be asked again, or None where that would not help.

    retries: how often this request has been tried again already. now: Unix time, for a Retry-After that is a date.
    A time-out is not tried again: the next answer would take as long. An engine of ours has its own rules for that.
    """
    if isinstance(error, EngineError) or error.code == TIMED_OUT:
        return None
    advised = error.headers.get(b"x-should-retry", b"").lower()
    if advised == b"false" or (error.status not in _WORTH_ANOTHER_TRY and advised != b"true"):
        return None
    asked = retry_after_s(error.headers, now)
    if asked is not None:
        return asked
    return float(min(LONGEST_WAIT_S, FIRST_WAIT_S * 2**retries) * chance.uniform(0.75, 1.25))


def seconds(value: bytes) -> float:
    """What a header says; infinite where that is nothing that could be waited for."""
    try:
        given = float(value)
    except ValueError:
        return math.inf
    return given if given > 0 else math.inf  # not a number is not greater


def retry_after_s(headers: dict[bytes, bytes], now: float) -> float | None:
    """What an upstream asks for in `retry-after-ms` or `retry-after` (seconds or a date), in seconds."""
    try:
        if given := headers.get(b"retry-after-ms"):
            return max(0.0, float(given) / 1000)
        if given := headers.get(b"retry-after"):
            return max(0.0, float(given))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(headers[b"retry-after"].decode("latin-1")).timestamp() - now)
    except (KeyError, ValueError):
        return None
