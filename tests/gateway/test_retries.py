"""Which errors are worth another try, and after how long."""

from __future__ import annotations

import random
from email.utils import formatdate

import pytest

from adapters.errors import UpstreamError, disconnected, from_reply, timed_out, unreachable
from gateway.retries import FIRST_WAIT_S, LONGEST_WAIT_S, retry_after_s, wait_before_retry
from local_models.errors import StartFailed

NOW = 1_800_000_000.0


def wait(error: UpstreamError | StartFailed, retries: int = 0) -> float | None:
    return wait_before_retry(error, retries, random.Random(0), NOW)


def reply(status: int, **headers: str) -> UpstreamError:
    given = {name.replace("_", "-").encode(): value.encode() for name, value in headers.items()}
    return from_reply("up", status, given, b'{"error":{"message":"x"}}', None)


def test_the_wait_doubles_with_jitter_up_to_a_limit() -> None:
    waits = [wait_before_retry(reply(503), retries, random.Random(retries), NOW) for retries in range(8)]
    for retries, seconds in enumerate(waits):
        middle = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2**retries)
        assert seconds is not None
        assert 0.75 * middle <= seconds <= 1.25 * middle
    assert len({round(random.Random(seed).uniform(0.75, 1.25), 6) for seed in range(5)}) == 5


@pytest.mark.parametrize("status", range(400, 600))
def test_statuses_worth_another_try_are_those_the_sdk_tries_again(status: int) -> None:
    expected = status in (408, 409, 429, 500, 502, 503, 504, 529)
    assert (wait(reply(status)) is not None) is expected


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry_after": "7"}, 7),
        ({"retry_after": "0.5"}, 0.5),
        ({"retry_after_ms": "1500", "retry_after": "9"}, 1.5),
        ({"retry_after": formatdate(NOW + 4, usegmt=True)}, 4),
        ({"retry_after": formatdate(NOW - 4, usegmt=True)}, 0),
    ],
)
def test_what_an_upstream_asks_for_is_obeyed(headers: dict[str, str], seconds: float) -> None:
    assert wait(reply(429, **headers)) == seconds


def test_nonsense_in_retry_after_is_as_if_it_were_not_there() -> None:
    assert retry_after_s({b"retry-after": b"soon"}, NOW) is None
    assert wait(reply(503, retry_after="soon")) is not None


def test_x_should_retry_goes_over_the_status() -> None:
    assert wait(reply(503, x_should_retry="false")) is None
    assert wait(reply(418, x_should_retry="true")) is not None


def test_a_lost_connection_is_tried_again_and_a_time_out_is_not() -> None:
    assert wait(unreachable("up", "there", "refused")) is not None
    assert wait(disconnected("up", "early")) is not None
    assert wait(timed_out("up", "no first token", 5)) is None
    assert wait(reply(401)) is None  # our own key will not be better next time
    assert wait(StartFailed("e", "no", retry_after_s=1)) is None
