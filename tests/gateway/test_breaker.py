"""When a deployment is left alone, and when it is tried again."""

from __future__ import annotations

from gateway.breaker import LONGEST, Breaker


def failed(breaker: Breaker, now: float) -> None:
    breaker.begin(now)
    breaker.failed(now)


def opened(now: float = 0.0) -> Breaker:
    breaker = Breaker(failures_to_open=3, open_s=10)
    for _ in range(3):
        failed(breaker, now)
    return breaker


def test_it_opens_after_failures_in_a_row_and_a_success_between_starts_the_count_anew() -> None:
    breaker = Breaker(failures_to_open=3, open_s=10)
    for _ in range(5):
        failed(breaker, 0)
        failed(breaker, 0)
        breaker.begin(0)
        breaker.succeeded()
    assert breaker.state(0) == "closed"
    assert opened().state(0) == "open"
    assert not opened().allows(9.9)
    assert opened().wait_s(4) == 6


def test_one_request_tries_it_when_the_time_is_over() -> None:
    breaker = opened()
    assert breaker.state(10) == "half_open"
    assert breaker.allows(10)
    breaker.begin(10)
    assert not breaker.allows(10)
    breaker.succeeded()
    assert breaker.state(10) == "closed"


def test_each_trial_that_fails_doubles_the_time_up_to_a_limit() -> None:
    breaker, now, waits = opened(), 10.0, []
    for _ in range(7):
        failed(breaker, now)
        waits.append(breaker.wait_s(now))
        now += waits[-1]
    assert waits == [20, 40, 80, 160, 160, 160, 160]
    assert waits[-1] == 10 * LONGEST


def test_a_trial_whose_client_leaves_makes_way_for_another() -> None:
    breaker = opened()
    breaker.begin(10)
    breaker.abandoned()
    assert breaker.allows(10)


def test_a_request_from_before_that_fails_late_does_not_prolong_it() -> None:
    breaker = opened()
    breaker.failed(5)
    assert breaker.wait_s(5) == 5
