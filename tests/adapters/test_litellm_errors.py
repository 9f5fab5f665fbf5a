"""litellm's exceptions become ours by what they say, and by nothing that only litellm's own people want to read."""

from __future__ import annotations

import httpx

from adapters.errors import UpstreamError
from adapters.litellm_errors import MEANINGS, from_litellm


def translated(error: Exception, *, began: bool = False) -> UpstreamError:
    return from_litellm("lab", error, lambda text: text.replace("secret", "***"), 5.0, began=began)


def test_every_exception_of_litellm_has_a_meaning() -> None:
    from litellm import exceptions

    classes = {
        name for name, value in vars(exceptions).items()
        if isinstance(value, type) and issubclass(value, Exception) and value.__module__ == exceptions.__name__
    }  # fmt: skip
    assert classes - MEANINGS.keys() == set(), "not mapped"
    assert MEANINGS.keys() - classes == set(), "no longer there"


def test_a_fault_inside_litellm_shows_neither_its_insides_nor_our_key() -> None:
    error = translated(RuntimeError("no secret field\nTraceback (most recent call last):\n  File /somewhere"))
    assert (error.status, error.code, error.fallback) == (502, "upstream_bad_reply", True)
    assert "no *** field" in error.message
    assert "Traceback" not in error.message


def test_what_broke_the_connection_is_told_by_the_cause() -> None:
    def wrapped(cause: Exception) -> Exception:
        error = RuntimeError("wrapped")
        error.__cause__ = cause
        return error

    assert translated(wrapped(httpx.ConnectError("refused"))).code == "upstream_unreachable"
    assert translated(wrapped(httpx.ConnectTimeout("slow"))).message == "upstream 'lab': no connection within 5 s"
    assert translated(wrapped(httpx.ReadError("cut")), began=True).message.endswith("in the middle of the answer")
    assert translated(wrapped(httpx.RemoteProtocolError("cut"))).message.endswith("before it answered")


def test_causes_that_go_in_a_circle_end() -> None:
    one, two = RuntimeError("one"), RuntimeError("two")
    one.__context__, two.__context__ = two, one
    assert translated(one).code == "upstream_bad_reply"
