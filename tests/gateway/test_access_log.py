"""Access lines: exactly the fields that are allowed, and short sentences."""

from __future__ import annotations

import dataclasses
import json

import pytest

from adapters.usage import Usage
from gateway.access_log import access_line, duration
from gateway.known_names import KnownNames
from gateway.record import Attempt, RequestRecord
from tests.gateway.live import chat_settings
from tests.gateway.records import IMAGES, answered, failed

NAMES = KnownNames(chat_settings("http://127.0.0.1:9/v1", "http://127.0.0.1:9/v1"))


def test_a_json_line_holds_what_is_known_of_an_answer() -> None:
    line = access_line(answered(traceparent=f"00-{'a' * 32}-{'b' * 16}-01"), NAMES, "json")
    assert "\n" not in line
    assert json.loads(line) == {
        "time": "2023-11-14T22:13:20.250Z",
        "level": "info",
        "logger": "tandem.access",
        "message": "200 /v1/chat/completions",
        "request_id": "req_1",
        "trace_id": "a" * 32,
        "key_id": "key_ab12",
        "route": "/v1/chat/completions",
        "model": "m",
        "upstream": "up0",
        "upstream_model": "vendor/up0",
        "stream": True,
        "status": 200,
        "outcome": "ok",
        "attempts": ["up0"],
        "duration_s": 1.25,
        "first_token_s": 0.25,
        "upstream_s": 1.248,
        "overhead_s": 0.002,
        "chunks": 20,
        "prompt_tokens": 100,
        "completion_tokens": 20,
        "cached_tokens": 64,
        "reasoning_tokens": 5,
        "tokens_estimated": False,
        "cost_usd": 0.5,
    }


def test_a_json_line_leaves_out_what_is_not_known() -> None:
    line = json.loads(
        access_line(RequestRecord("req_3", "/v1/chat/completions", 0.0, status=401, error_code="invalid_api_key"), NAMES, "json")
    )
    assert set(line) == {
        "time", "level", "logger", "message", "request_id", "route", "stream", "status", "outcome", "error_code",
        "attempts", "duration_s", "upstream_s", "overhead_s",
    }  # fmt: skip


def test_a_failure_names_every_attempt_and_is_a_warning() -> None:
    line = json.loads(access_line(failed(), NAMES, "json"))
    assert line["attempts"] == ["up0: upstream_timeout", "up1: upstream_http_500"]
    assert (line["level"], line["error_code"]) == ("warning", "upstream_http_500")


@pytest.mark.parametrize("layout", ["json", "text"])
def test_no_text_field_brings_in_text_that_nobody_configured(layout: str) -> None:
    secret = "sk-secret and more"
    texts = {field.name: secret for field in dataclasses.fields(RequestRecord) if field.type in ("str", "str | None")}
    record = answered(**texts, attempts=[Attempt(secret, secret, 1, secret)])
    assert {"request_id", "route", "traceparent", "key_id", "model", "upstream", "upstream_model", "error_code"} == set(texts)
    assert "secret" not in access_line(record, NAMES, "json" if layout == "json" else "text")


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (answered(), "200  /v1/chat/completions  m (up0)  1.25 s  first token 250 ms  100+20 tokens"),
        (answered(usage=Usage(3, 4, estimated=True), outcome="client_left"), "first token 250 ms  about 3+4 tokens  the client left"),
        (failed(), "502  /v1/chat/completions  m  1 s  2 attempts  upstream_http_500"),
        (answered(route=IMAGES, images=1, usage=None, first_token_s=None), "200  /v1/images/generations  m (up0)  1.25 s  1 picture"),
        (RequestRecord("r", "/v1/chat/completions", 0.0, outcome="client_left"), "---  /v1/chat/completions  0 ms  the client left"),
    ],
)
def test_a_sentence_for_people(record: RequestRecord, said: str) -> None:
    clock, _, rest = access_line(record, NAMES, "text").partition("  ")
    assert rest == said or rest.endswith(said)
    assert len(clock) == len("12:34:56")


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.0000512, "0.0512 ms"), (0.25, "250 ms"), (0.9994, "999 ms"), (0.9996, "1 s"), (12.345, "12.3 s"), (3600.4, "3600 s")],
)
def test_durations_have_three_digits(seconds: float, said: str) -> None:
    assert duration(seconds) == said
