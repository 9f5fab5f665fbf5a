"""The application's log: what the gateway's loggers say, as JSON or as short lines, by an allow-list of fields.

A log line is made from the constant text of the call and from values that are known to be harmless: numbers, words that the text itself
names (`model=%s`), and errors by their code. Free text that came with a request, from an upstream or in an exception's message is
left out, because it may hold a prompt or a key.
"""

from __future__ import annotations

import logging
import re
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import orjson

from adapters.errors import DISCONNECTED, UNREACHABLE, UpstreamError
from gateway.errors import GatewayError
from gateway.known_names import known_code
from local_models.errors import EngineError

Layout = Literal["json", "text"]

OWN = "tandem"  # the loggers whose texts are ours
FIELDS = ("time", "level", "logger", "message", "request_id", "exception")
# Words that a log call may name in its text; the value must look like one word.
NAMED = frozenset({"request_id", "model", "upstream", "engine", "route", "key_id", "status", "code", "host"})
TRUSTED = ("uvicorn", "asyncio")  # the first line of what these say is constant text of theirs
LEFT_OUT = "(left out)"
MAX_FRAMES = 12
_OWN_TEXTS = frozenset({UNREACHABLE, DISCONNECTED, "upstream_timeout"})  # errors whose message holds nothing that an upstream said
_SLOT = re.compile(r"(?:\b(\w+)=)?(%[-#0 +]*\d*(?:\.\d+)?[a-zA-Z%])")
_WORD = re.compile(r"[A-Za-z0-9_.:/@+=-]{1,200}")
_PROJECT = Path(__file__).resolve().parents[1]


class LogFormatter(logging.Formatter):
    """A log record as one JSON object, or as a short line (with the frames of an exception below it)."""

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self._layout = layout

    def format(self, record: logging.LogRecord) -> str:
        fields = told(record)
        if self._layout == "json":
            return orjson.dumps({name: fields[name] for name in FIELDS if fields.get(name) is not None}).decode()
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        lines = [f"{clock} {record.levelname.lower()}: {fields['message']}"]
        if (exception := fields["exception"]) is not None:
            lines += [f"  {exception['type']}", *(f"    {frame}" for frame in exception["frames"])]
        return "\n".join(lines)


class LogHandler(logging.Handler):
    """Formats what is logged and hands the line on. put: returns at once."""

    def __init__(self, put: Callable[[str], None], layout: Layout) -> None:
        super().__init__()
        self._put = put
        self.setFormatter(LogFormatter(layout))
        self.addFilter(_is_worth_a_line)

    def emit(self, record: logging.LogRecord) -> None:
        self._put(self.format(record))


def _is_worth_a_line(record: logging.LogRecord) -> bool:
    """Not what the exporter of traces says at each failure: `gateway.tracing` says it once."""
    return not record.name.startswith("opentelemetry")


def told(record: logging.LogRecord) -> dict[str, Any]:
    """The fields of a log record that may be shown."""
    own = record.name == OWN or record.name.startswith(f"{OWN}.")
    message, named = _filled(str(record.msg), record.args) if own else (_foreign(record), {})
    request_id = named.get("request_id") or getattr(record, "request_id", None)
    return {
        "time": at(record.created),
        "level": record.levelname.lower(),
        "logger": record.name,
        "message": message,
        "request_id": request_id if isinstance(request_id, str) and _WORD.fullmatch(request_id) else None,
        "exception": _exception(record.exc_info[1]) if record.exc_info and record.exc_info[1] else None,
    }


def at(unix_s: float) -> str:
    """A time in UTC, RFC 3339, to the millisecond."""
    milliseconds = round(unix_s * 1000)
    return f"{_second(milliseconds // 1000)}.{milliseconds % 1000:03d}Z"


@lru_cache(maxsize=8)  # a busy gateway writes thousands of lines in one second, and this is a fifth of a line's cost
def _second(unix_s: int) -> str:
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def reason(error: BaseException) -> str:
    """What a log may say of an error: its text where nobody else had a hand in it, else its code and status, else its type."""
    match error:
        case UpstreamError() if error.code in _OWN_TEXTS:
            return error.message
        case UpstreamError() | GatewayError():
            return f"{known_code(error.code)} (HTTP {error.status})"
        case EngineError():
            return str(error)  # about a process of ours; the terminal and /v1/models say it too
        case OSError() if error.strerror:
            return f"{type(error).__name__}: {error.strerror}"
        case _:
            return type(error).__name__


def _filled(text: str, given: object) -> tuple[str, dict[str, str]]:
    """The text with the values that may stand in it, and the words by their names."""
    values = list(given) if isinstance(given, tuple) else []
    named: dict[str, str] = {}

    def fill(slot: re.Match[str]) -> str:
        name, spec = slot[1], slot[2]
        if spec == "%%":
            return slot[0].replace("%%", "%")
        shown = _shown(name, spec, values.pop(0)) if values else LEFT_OUT
        if name is None:
            return shown
        named[name] = shown
        return f"{name}={shown}"

    return _SLOT.sub(fill, text), named


def _shown(name: str | None, spec: str, value: object) -> str:
    match value:
        case bool() | int() | float():
            return spec % value
        case BaseException():
            return reason(value)
        case str() if name in NAMED and _WORD.fullmatch(value):
            return value
        case _:
            return LEFT_OUT


def _foreign(record: logging.LogRecord) -> str:
    if record.name.partition(".")[0] not in TRUSTED:
        return LEFT_OUT
    return str(record.msg).strip().partition("\n")[0][:200]


def _exception(error: BaseException) -> dict[str, Any]:
    """Where it was raised, innermost last, and of which kind; not what it says."""
    frames = [f"{_short(frame.filename)}:{frame.lineno} in {frame.name}" for frame in traceback.extract_tb(error.__traceback__)]
    kinds = [type(error).__name__]
    cause = error.__cause__ or error.__context__
    while cause is not None and len(kinds) < MAX_FRAMES:
        kinds.append(type(cause).__name__)
        cause = cause.__cause__ or cause.__context__
    return {"type": " after ".join(kinds), "frames": frames[-MAX_FRAMES:]}


def _short(filename: str) -> str:
    path = Path(filename)
    return str(path.relative_to(_PROJECT)) if path.is_relative_to(_PROJECT) else "/".join(path.parts[-2:])
