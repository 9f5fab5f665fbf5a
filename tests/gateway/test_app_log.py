"""The application's log: constant text and harmless values; nothing that came with a request or from an upstream."""

from __future__ import annotations

import ast
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from adapters import errors
from gateway.app_log import FIELDS, LogFormatter, LogHandler, at, reason
from gateway.errors import GatewayError
from local_models.errors import StartFailed

ROOT = Path(__file__).parents[2]
SECRET = "sk-secret"


def logged(name: str, text: object, *values: Any, error: BaseException | None = None, **extra: Any) -> dict[str, Any]:
    record = logging.LogRecord(
        name, logging.WARNING, "file.py", 1, text, values, (type(error), error, error.__traceback__) if error else None
    )
    record.created = 1_700_000_000.25
    vars(record).update(extra)
    line: dict[str, Any] = json.loads(LogFormatter("json").format(record))
    assert list(line) == [name for name in FIELDS if name in line]
    return line


def raised() -> ValueError:
    try:
        try:
            raise KeyError(SECRET)
        except KeyError as cause:
            raise ValueError(SECRET) from cause
    except ValueError as error:
        return error


def test_a_line_has_the_allowed_fields_only() -> None:
    assert logged("tandem.chat", "it is late", secret=SECRET, prompt=SECRET) == {
        "time": "2023-11-14T22:13:20.250Z",
        "level": "warning",
        "logger": "tandem.chat",
        "message": "it is late",
    }


@pytest.mark.parametrize(
    ("unix_s", "said"),
    [(0, "1970-01-01T00:00:00.000Z"), (1_700_000_000.0004, "2023-11-14T22:13:20.000Z"), (1_700_000_000.9996, "2023-11-14T22:13:21.000Z")],
)
def test_times_are_utc_to_the_millisecond(unix_s: float, said: str) -> None:
    assert at(unix_s) == said


def test_words_that_the_text_names_and_numbers_are_filled_in() -> None:
    line = logged("tandem.chat", "request_id=%s model=%s took %.1f s of %d%%: %r", "req_1", "vendor/m:free", 1.25, 7, True)
    assert line["message"] == "request_id=req_1 model=vendor/m:free took 1.2 s of 7%: True"
    assert line["request_id"] == "req_1"


@pytest.mark.parametrize("value", [SECRET, b"bytes", {"prompt": SECRET}, [SECRET], object()])
def test_other_values_are_left_out(value: Any) -> None:
    assert logged("tandem.chat", "got %s", value)["message"] == "got (left out)"


@pytest.mark.parametrize("value", ["two words sk-secret", "new\nline", "", "x" * 201])
def test_a_named_value_that_is_no_word_is_left_out(value: str) -> None:
    assert logged("tandem.chat", "model=%s", value)["message"] == "model=(left out)"
    assert "request_id" in logged("tandem.chat", "hello", request_id="req_9")
    assert "request_id" not in logged("tandem.chat", "hello", request_id=value)


def test_a_mapping_or_missing_values_do_no_harm() -> None:
    assert logged("tandem.chat", "got %(prompt)s", {"prompt": SECRET})["message"].count(SECRET) == 0
    assert logged("tandem.chat", "got %s and %s", 1)["message"] == "got 1 and (left out)"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            errors.unreachable("up", "127.0.0.1:9", "connection refused"),
            "upstream 'up' cannot be reached at 127.0.0.1:9: connection refused",
        ),
        (errors.timed_out("up", "no first token", 5), "upstream 'up': no first token within 5 s"),
        (errors.from_reply("up", 500, {}, SECRET.encode(), None), "upstream_http_500 (HTTP 500)"),
        (errors.from_reply("up", 429, {}, b'{"error": {"message": "x", "code": "sk-secret"}}', None), "other (HTTP 429)"),
        (errors.bad_reply("up", SECRET), "upstream_bad_reply (HTTP 502)"),
        (GatewayError(400, SECRET, "invalid_value"), "invalid_value (HTTP 400)"),
        (StartFailed("e", "it ended with exit code 1"), "it ended with exit code 1"),
        (ConnectionResetError(104, "Connection reset by peer"), "ConnectionResetError: Connection reset by peer"),
        (ValueError(SECRET), "ValueError"),
    ],
)
def test_an_error_is_told_by_what_nobody_else_wrote(error: Exception, said: str) -> None:
    assert said in reason(error)
    assert SECRET not in reason(error)
    assert logged("tandem.chat", "upstream=%s failed: %s", "up", error)["message"] == f"upstream=up failed: {reason(error)}"


def test_an_exception_is_told_by_kind_and_place() -> None:
    line = logged("tandem.chat", "it failed", error=raised())
    assert line["exception"]["type"] == "ValueError after KeyError"
    assert line["exception"]["frames"][-1].startswith("tests/gateway/test_app_log.py:")
    assert SECRET not in json.dumps(line)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("asyncio", f"Task exception was never retrieved\nfuture: <Task ValueError('{SECRET}')>", "Task exception was never retrieved"),
        ("uvicorn.error", "Exception in ASGI application\n", "Exception in ASGI application"),
        ("LiteLLM", f"request failed for {SECRET}", "(left out)"),
        ("tandemonium", f"{SECRET}", "(left out)"),
    ],
)
def test_other_libraries_say_constant_text_only(name: str, text: str, said: str) -> None:
    assert logged(name, text)["message"] == said


def test_lines_for_people_are_short() -> None:
    record = logging.LogRecord("tandem.chat", logging.ERROR, "file.py", 1, "request_id=%s failed", ("req_1",), None)
    line = LogFormatter("text").format(record)
    assert line[8:] == " error: request_id=req_1 failed"
    error = raised()
    record.exc_info = (type(error), error, error.__traceback__)
    first, kind, *frames = LogFormatter("text").format(record).split("\n")
    assert (first[8:], kind) == (" error: request_id=req_1 failed", "  ValueError after KeyError")
    assert frames[-1].startswith("    tests/gateway/test_app_log.py:")


def test_what_the_trace_exporter_repeats_gets_no_line() -> None:
    lines: list[str] = []
    handler = LogHandler(lines.append, "json")
    for name in ("opentelemetry.exporter.otlp.proto.http.trace_exporter", "tandem.chat"):
        handler.handle(logging.LogRecord(name, logging.ERROR, "file.py", 1, "no collector", (), None))
    assert [json.loads(line)["logger"] for line in lines] == ["tandem.chat"]


def test_every_log_call_begins_with_constant_text() -> None:
    """An f-string would put its values past the allow-list."""
    levels = {f"log.{level}" for level in ("debug", "info", "warning", "error", "exception", "critical")}
    paths = [path for folder in ("gateway", "adapters", "local_models", "config") for path in (ROOT / folder).rglob("*.py")]
    calls = [(path, node) for path in paths for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    found = [(path, node) for path, node in calls if ast.unparse(node.func) in levels]
    assert found
    assert [f"{path}:{node.lineno}" for path, node in found if not isinstance(node.args[0], ast.Constant)] == []
