"""One subject and its limits: rates, places and money, in times that the test makes up."""

from __future__ import annotations

import random
from datetime import UTC, datetime

import pytest

from config.schema import Limits
from gateway.limits import Bucket, Refusal, Tally, calendar, duration, milliseconds

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC).timestamp()
TODAY = calendar(NOON)


def tally(**limits: float) -> Tally:
    made = Tally("the key")
    made.adopt(Limits.model_validate(limits), NOON)
    return made


def refused(subject: Tally, tokens: int = 0, now: float = NOON) -> Refusal:
    refusal = subject.refusal(tokens, now, calendar(now))
    assert refusal is not None
    return refusal


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("moment", "begins", "ends", "month_ends"),
    [
        ("2026-11-24T12:00", "2026-11-24", "2026-11-25", "2026-12-01"),
        ("2026-12-31T23:59:59.9", "2026-12-31", "2027-01-01", "2027-01-01"),
        ("2028-02-29T00:00", "2028-02-29", "2028-03-01", "2028-03-01"),
    ],
)
def test_a_day_and_its_month_end_at_midnight_utc(moment: str, begins: str, ends: str, month_ends: str) -> None:
    found = calendar(at(moment))
    assert (found.begins, found.ends, found.month_ends) == (at(begins), at(ends), at(month_ends))


def test_days_and_months_grow_by_one() -> None:
    december, january = calendar(at("2026-12-31")), calendar(at("2027-01-01"))
    assert (january.day - december.day, january.month - december.month) == (1, 1)


def test_a_full_minute_may_be_used_at_once_and_comes_back_evenly() -> None:
    bucket = Bucket.full(60, NOON)
    bucket.add(-60)
    assert (bucket.level, bucket.wait_s(1), bucket.wait_s(60)) == (0, 1, 60)
    bucket.fill(NOON + 2.5)
    assert (bucket.level, bucket.wait_s(1)) == (2.5, 0)
    bucket.fill(NOON + 1000)
    assert bucket.level == 60


def test_a_clock_that_is_set_back_gives_nothing_and_stops_nothing() -> None:
    bucket = Bucket.full(60, NOON)
    bucket.add(-60)
    bucket.fill(NOON - 3600)
    assert bucket.level == 0
    bucket.fill(NOON - 3590)
    assert bucket.level == 10


@pytest.mark.parametrize(("capacity", "level"), [(100, 60), (10, -30), (50, 10)])
def test_another_limit_keeps_what_is_used(capacity: int, level: float) -> None:
    bucket = Bucket.full(50, NOON)
    bucket.add(-40)
    bucket.resize(capacity, NOON)
    assert (bucket.capacity, bucket.level) == (capacity, level)


def test_whoever_waits_as_long_as_told_is_admitted_at_any_rate() -> None:
    source = random.Random(4)
    for _ in range(2000):
        subject = tally(requests_per_minute=source.randint(1, 5000), tokens_per_minute=source.randint(50, 10**7))
        now = NOON + source.random() * 1e6
        while (refusal := subject.refusal(50, now, TODAY)) is None:
            subject.take(50)
        assert refusal.kind == "rate"
        if refusal.wait_s > 0.001:
            assert subject.refusal(50, now + refusal.wait_s * 0.99, TODAY) is not None
        assert subject.refusal(50, now + milliseconds(refusal.wait_s) / 1000, TODAY) is None


def test_no_minute_admits_more_than_twice_the_rate() -> None:
    source = random.Random(5)
    subject, admitted, now = tally(requests_per_minute=10), [], NOON
    for _ in range(5000):
        now += source.random() * 3
        if subject.refusal(0, now, TODAY) is None:
            subject.take(0)
            admitted.append(now)
    assert max(sum(1 for one in admitted if start <= one < start + 60) for start in admitted) <= 20
    assert len(admitted) == pytest.approx((now - NOON) / 6 + 10, abs=2)


def test_of_two_rates_the_longer_wait_is_told() -> None:
    subject = tally(requests_per_minute=60, tokens_per_minute=60)
    for _ in range(60):
        subject.take(1)
    assert refused(subject, 1).message == "the key is limited to 60 requests a minute; try again in 1s"
    slow = refused(subject, 30)
    assert slow.message == "the key is limited to 60 tokens a minute, and this request is estimated at 30; try again in 30s"
    assert slow.wait_s == 30


def test_a_request_larger_than_a_minute_is_told_that_waiting_cannot_help() -> None:
    refusal = refused(tally(tokens_per_minute=100), 101)
    assert refusal.kind == "too_large"
    assert "estimated at 101 tokens, the key is limited to 100 tokens a minute" in refusal.message


def test_tokens_are_corrected_by_what_was_really_used() -> None:
    subject = tally(tokens_per_minute=100)
    subject.take(80)
    subject.correct(70, NOON)
    assert subject.refusal(90, NOON, TODAY) is None
    subject.take(90)
    subject.correct(-200, NOON)  # it used far more than was thought: a debt, to be waited off
    assert refused(subject, 0).wait_s == pytest.approx(120)


def test_places_are_taken_until_there_are_none() -> None:
    subject = tally(concurrent_requests=2)
    subject.take(0)
    subject.take(0)
    refusal = refused(subject)
    assert refusal.kind == "concurrency"
    assert "limited to 2 requests at the same time, and 2 are running" in refusal.message
    subject.in_flight -= 1
    assert subject.refusal(0, NOON, TODAY) is None


@pytest.mark.parametrize(
    ("span", "last", "first", "resets"),
    [
        ("day", "2026-11-24T23:59:59", "2026-11-25T00:00", "2026-11-25 00:00 UTC"),
        ("month", "2026-11-30T23:59:59", "2026-12-01T00:00", "2026-12-01 00:00 UTC"),
    ],
)
def test_a_budget_ends_at_its_amount_and_comes_back_with_the_next_day_or_month(span: str, last: str, first: str, resets: str) -> None:
    subject = tally(**{f"budget_usd_per_{span}": 5})
    subject.spend(4.99, TODAY)
    assert subject.refusal(0, NOON, TODAY) is None
    subject.spend(0.02, TODAY)
    refusal = refused(subject)
    assert refusal.kind == "budget"
    assert f"the key has spent $5.01 of its budget of $5 a {span}; it resets at {resets}" in refusal.message
    assert NOON + refusal.wait_s == at(first)
    assert subject.refusal(0, at(last), calendar(at(last))) is not None
    assert subject.refusal(0, at(first), calendar(at(first))) is None


def test_a_clock_set_back_over_midnight_does_not_give_the_money_twice() -> None:
    subject = tally(budget_usd_per_day=1)
    subject.spend(2, TODAY)
    subject.spend(0, calendar(NOON - 86_400))
    assert refused(subject).kind == "budget"


def test_a_day_of_the_next_month_ends_both() -> None:
    subject = tally(budget_usd_per_day=1)
    subject.spend(2, TODAY)
    subject.spend(3, calendar(at("2026-12-01")))
    assert (subject.usd_today, subject.usd_this_month) == (3, 3)
    subject.spend(1, calendar(at("2026-12-02")))
    assert (subject.usd_today, subject.usd_this_month) == (1, 4)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0ms"), (0.0001, "1ms"), (0.02, "20ms"), (1, "1s"), (1.5, "1.5s"), (59.9999, "1m0s"), (72.25, "1m12.25s"), (3600, "60m0s")],
)
def test_durations_are_written_as_openai_does(seconds: float, text: str) -> None:
    assert duration(seconds) == text
