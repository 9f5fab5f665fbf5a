"""A client's request body made the upstream's: the model's name and the few fields that must change, as bytes where possible.

A body may hold ten megabytes of pictures, so it is spliced, not serialised again, wherever that is certain to be right.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import orjson

from adapters.errors import UpstreamError

LARGE = 1 << 20  # bytes. With ten times as many, to parse, to rewrite and to send take 10 ms each: each gets a turn of the loop of its own
_KEY = b'"model"'
_MODEL = re.compile(rb'"model"\s*:\s*"(?:[^"\\]|\\.)*"')
_ESCAPED_LETTER = re.compile(rb"\\u00(?:6[4-5cCdDfF])")  # of the word "model"
_OPENING = re.compile(rb"\s*\{")


def rewrite(body: bytes, fields: Mapping[str, Any], model: str, changed: Mapping[str, Any]) -> bytes:
    """`body` with `model` as its model and `changed` over its top-level fields; None there leaves a field out.

    body: a JSON object that parses to `fields` and has a `model`. Raises UpstreamError (400) for one nested too deeply to be written.
    """
    touches_given = any(name in fields for name in changed)
    at = -1 if touches_given else body.find(_KEY)
    # `"model"` exactly once, and none with escaped letters: it is the top-level key, for there is one, and anything else would be a second.
    if at < 0 or body.find(_KEY, at + 1) >= 0 or _ESCAPED_LETTER.search(body):
        merged = {**fields, "model": model, **changed}
        return _dumps({name: value for name, value in merged.items() if not (value is None and name in changed)})
    added = {name: value for name, value in changed.items() if value is not None}
    if fields["model"] == model and not added:
        return body
    opening, given = _OPENING.match(body), _MODEL.match(body, at)
    assert opening, "the body is a JSON object"
    assert given, "its `model` is a string"
    beginning = b"{" + orjson.dumps(added)[1:-1] + b"," if added else b"{"
    whole = memoryview(body)  # each part is copied once, into its place
    if fields["model"] == model:
        return b"".join((beginning, whole[opening.end() :]))
    return b"".join((beginning, whole[opening.end() : at], b'"model":', orjson.dumps(model), whole[given.end() :]))


def _dumps(document: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(document)
    except orjson.JSONEncodeError as error:  # orjson reads 1024 levels and writes 254
        message = "the request body is nested too deeply; more than 250 levels cannot be passed on"
        raise UpstreamError(400, message, "invalid_value", "invalid_request_error", fallback=False) from error
