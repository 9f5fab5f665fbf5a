from __future__ import annotations

import pytest

from local_models.backoff import NO_CRASHES, Crashes, RestartPolicy, delay_s, is_given_up

POLICY = RestartPolicy(max_restarts=6, first_delay_s=0.5, longest_delay_s=8.0, given_up_s=300.0)


def test_without_a_crash_a_start_is_allowed_at_once() -> None:
    assert delay_s(POLICY, NO_CRASHES, 1000.0) == 0.0


@pytest.mark.parametrize(("count", "pause_s"), [(1, 0.5), (2, 1.0), (3, 2.0), (4, 4.0), (5, 8.0), (6, 8.0)])
def test_the_pause_doubles_up_to_the_longest(count: int, pause_s: float) -> None:
    assert delay_s(POLICY, Crashes(count, 1000.0), 1000.0) == pause_s


def test_time_that_passed_counts() -> None:
    assert delay_s(POLICY, Crashes(3, 1000.0), 1001.5) == 0.5
    assert delay_s(POLICY, Crashes(3, 1000.0), 1002.0) == 0.0
    assert delay_s(POLICY, Crashes(3, 1000.0), 9999.0) == 0.0


def test_more_crashes_than_restarts_are_given_up_for_a_while() -> None:
    crashes = Crashes(6, 1000.0)
    assert not is_given_up(POLICY, crashes)
    crashes = crashes.and_one(1010.0)
    assert is_given_up(POLICY, crashes)
    assert delay_s(POLICY, crashes, 1010.0) == 300.0
    assert delay_s(POLICY, crashes, 1310.0) == 0.0


def test_no_restarts_means_that_the_first_crash_counts() -> None:
    assert is_given_up(RestartPolicy(max_restarts=0), Crashes(1, 0.0))


def test_a_policy_without_limits_does_not_overflow() -> None:
    assert delay_s(RestartPolicy(max_restarts=10**6), Crashes(10**5, 0.0), 0.0) == 30.0


def test_a_cause_that_lasts_gives_up_at_the_first_crash_and_is_tried_again_later() -> None:
    crashes = NO_CRASHES.and_one(1000.0, lasting=True)
    assert is_given_up(POLICY, crashes)
    assert delay_s(POLICY, crashes, 1010.0) == 290.0
    assert not is_given_up(POLICY, NO_CRASHES.and_one(1000.0))
