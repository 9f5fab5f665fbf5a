"""The body that goes upstream."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest

from adapters.errors import UpstreamError
from adapters.rewrite import rewrite


@pytest.mark.parametrize(
    ("body", "changed"),
    [
        ('{"model":"public","messages":[]}', {}),
        ('  {"messages":[{"content":"the \\"model\\" is"}], "model" : "public", "x": 1.50}', {}),
        ('{"model":"public","messages":[{"content":"a","model":"public"}]}', {}),
        ('{"mod\\u0065l":"public","messages":[]}', {}),
        ('{"mod\\u0065l":"public","messages":[{"model":"public"}]}', {}),
        ('{"model":"pub\\u006cic","messages":[]}', {"reasoning": {"enabled": False}}),
        ('{"model":"public","reasoning_effort":"none","top_k":5}', {"reasoning_effort": None, "reasoning": {"enabled": False}}),
    ],
)
def test_only_the_model_and_the_changed_fields_differ(body: str, changed: dict[str, Any]) -> None:
    fields = json.loads(body)
    expected = {name: value for name, value in {**fields, "model": 'vendor/"x"', **changed}.items() if value is not None}
    assert json.loads(rewrite(body.encode(), fields, 'vendor/"x"', changed)) == expected


def test_nothing_else_is_touched_where_splicing_will_do() -> None:
    body = b'{ "temperature": 0.70, "model":\t"public" , "messages": [1e2, "caf\\u00e9"], "seed": 123456789012345678901 }'
    assert rewrite(body, json.loads(body), "up", {}) == body.replace(b'\t"public"', b'"up"')
    assert rewrite(body, json.loads(body), "public", {}) is body


def test_a_body_too_deep_to_be_written_again_is_the_client_s_fault() -> None:
    fields = {"model": "public", "tools": orjson.loads(b"[" * 900 + b"]" * 900)}
    body = b'{"model":"public","tools":%s,"x":"\\u0065"}' % (b"[" * 900 + b"]" * 900)
    with pytest.raises(UpstreamError, match="nested too deeply") as caught:
        rewrite(body, fields, "up", {})
    assert (caught.value.status, caught.value.fallback) == (400, False)
