"""Admission: all limits of key and model or none, refusals that a client can act on, and nothing left when everything has ended."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from typing import Any

import pytest

from config.schema import Limits
from gateway.admission import Admission, Admitted, limits_of_models
from gateway.api_key import ApiKey
from gateway.errors import GatewayError
from tests.gateway.clock import Clock
from tests.gateway.live import chat_settings

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC).timestamp()


def limits(**values: float) -> Limits:
    return Limits.model_validate(values)


def key(name: str = "k", models: tuple[str, ...] | None = None, **values: float) -> ApiKey:
    return ApiKey(name, f"name of {name}", name.encode(), NOON, models=models, limits=limits(**values))


def admission(clock: Clock | None = None, **models: Limits) -> Admission:
    return Admission(models, clock or Clock(NOON))


def refused(gate: Admission, by: ApiKey, model: str = "m", tokens: int = 0, **more: Any) -> GatewayError:
    with pytest.raises(GatewayError) as caught:
        gate.admit(by, model, tokens, **more)
    return caught.value


def state(gate: Admission) -> object:
    """Everything that is counted, with the buckets as they will be in the end."""
    return [
        (
            name,
            tally.in_flight,
            tally.usd_today,
            tally.usd_this_month,
            tally.requests and tally.requests.level,
            tally.tokens and tally.tokens.level,
        )
        for tallies in (gate._keys, gate._models)
        for name, tally in tallies.items()
    ]


def test_without_limits_everything_is_admitted_and_no_header_is_added() -> None:
    gate = admission()
    held = [gate.admit(key(), "m", 10**9) for _ in range(100)]
    assert all(one.headers == [] for one in held)
    assert gate.in_flight() == ({"k": 100}, {"m": 100})
    for one in held:
        one.release(None, None)
    assert gate.in_flight() == ({"k": 0}, {"m": 0})


def test_a_place_is_given_back_once() -> None:
    gate, by = admission(), key(concurrent_requests=1)
    first = gate.admit(by, "m", 0)
    first.release(0, None)
    second = gate.admit(by, "m", 0)
    first.release(0, 5.0)
    assert gate.in_flight().by_key == {"k": 1}
    assert refused(gate, by).code == "rate_limit_exceeded"
    second.release(0, None)
    assert gate.in_flight().by_key == {"k": 0}


def test_a_refusal_of_the_model_takes_nothing_of_the_key_and_the_other_way_round() -> None:
    by = key(requests_per_minute=2, tokens_per_minute=100)
    gate = admission(m=limits(concurrent_requests=1))
    held = gate.admit(by, "m", 10)
    before = state(gate)
    for _ in range(50):
        assert refused(gate, by, tokens=10).code == "rate_limit_exceeded"
    assert state(gate) == before
    held.release(10, None)
    gate.admit(by, "m", 10).release(10, None)
    before = state(gate)
    other = refused(gate, by)
    assert "the API key 'name of k' (k) is limited to 2 requests a minute" in other.message
    assert state(gate) == before


def test_a_full_rate_is_429_with_everything_a_client_needs_to_come_back() -> None:
    clock = Clock(NOON)
    gate, by = admission(clock), key(requests_per_minute=2, tokens_per_minute=1000)
    gate.admit(by, "m", 400)
    gate.admit(by, "m", 350)
    clock.now += 10
    error = refused(gate, by)
    assert (error.status, error.type, error.code) == (429, "rate_limit_error", "rate_limit_exceeded")
    assert error.headers == {
        b"retry-after": b"20",
        b"retry-after-ms": b"20000",
        b"x-ratelimit-limit-requests": b"2",
        b"x-ratelimit-remaining-requests": b"0",
        b"x-ratelimit-reset-requests": b"50s",
        b"x-ratelimit-limit-tokens": b"1000",
        b"x-ratelimit-remaining-tokens": b"416",
        b"x-ratelimit-reset-tokens": b"35s",
    }
    assert "try again in 20s" in error.message


def test_a_good_reply_tells_the_tighter_of_two_rates() -> None:
    gate = admission(m=limits(requests_per_minute=5))
    gate.admit(key("other"), "m", 0)
    held = gate.admit(key(requests_per_minute=100), "m", 0)
    assert held.headers == [
        (b"x-ratelimit-limit-requests", b"5"),
        (b"x-ratelimit-remaining-requests", b"3"),
        (b"x-ratelimit-reset-requests", b"24s"),
    ]


def test_limits_without_a_rate_add_no_header() -> None:
    assert admission().admit(key(concurrent_requests=5, budget_usd_per_day=1), "m", 5).headers == []


def test_a_limit_of_a_model_is_shared_by_all_keys_and_one_of_a_key_by_all_models() -> None:
    gate = admission(m=limits(concurrent_requests=2))
    gate.admit(key("a"), "m", 0)
    gate.admit(key("b"), "m", 0)
    assert "the model 'm', all keys together, is limited to 2 requests at the same time" in refused(gate, key("c")).message
    alone = key("d", concurrent_requests=1)
    gate.admit(alone, "x", 0)
    assert "the API key 'name of d' (d) is limited to 1" in refused(gate, alone, "y").message


def test_a_used_budget_is_insufficient_quota_that_the_sdk_does_not_retry() -> None:
    clock = Clock(NOON)
    gate, by = admission(clock), key(budget_usd_per_day=1)
    gate.admit(by, "m", 0).release(0, 1.5)
    error = refused(gate, by)
    assert (error.status, error.code, error.headers[b"x-should-retry"]) == (429, "insufficient_quota", b"false")
    assert error.headers[b"retry-after"] == b"%d" % (12 * 3600)
    assert "has spent $1.5 of its budget of $1 a day; it resets at 2026-11-25 00:00 UTC" in error.message
    clock.now += 12 * 3600
    gate.admit(by, "m", 0)


def test_of_several_refusals_the_one_that_waiting_helps_least_is_told_and_the_longest_wait() -> None:
    gate = admission(m=limits(budget_usd_per_month=1))
    by = key(requests_per_minute=1)
    gate.admit(by, "m", 0).release(0, 2)
    error = refused(gate, by)
    assert error.code == "insufficient_quota"
    assert int(error.headers[b"retry-after"]) > 6 * 86_400


def test_money_is_booked_on_the_day_on_which_a_request_ends() -> None:
    clock = Clock(NOON)
    gate, by = admission(clock), key(budget_usd_per_day=1)
    late = gate.admit(by, "m", 0)
    clock.now += 86_400
    late.release(0, 2)
    assert refused(gate, by).code == "insufficient_quota"


def test_what_was_spent_before_a_restart_counts() -> None:
    by, other = key(budget_usd_per_day=3), key("other", budget_usd_per_month=52)
    gate = admission(m=limits(budget_usd_per_month=100), n=limits(budget_usd_per_day=2))
    gate.restore({"k": {"m": 2.5, "n": 1}}, {"k": {"m": 30, "n": 1}, "other": {"m": 45, "n": 4}})
    assert "$3.5 of its budget of $3 a day" in refused(gate, by).message
    gate.admit(other, "n", 0).release(0, 0.5)
    gate.admit(other, "n", 0).release(0, 0.5)
    assert "the model 'n', all keys together, has spent $2 of its budget of $2 a day" in refused(gate, other, "n").message
    gate.admit(other, "m", 0).release(0, 25)
    assert "$75 of its budget of $52 a month" in refused(gate, other, "x").message
    assert "the model 'm', all keys together, has spent $100 of" in refused(gate, key("third"), "m").message


@pytest.mark.parametrize("cost", [None, 0.0, -5.0, float("nan")])
def test_no_cost_books_nothing(cost: float | None) -> None:
    gate, by = admission(), key(budget_usd_per_day=1)
    gate.admit(by, "m", 0).release(None, 0.9)
    gate.admit(by, "m", 0).release(None, cost)
    gate.admit(by, "m", 0).release(None, 0.1)
    assert refused(gate, by).code == "insufficient_quota"


def test_a_model_that_the_key_may_not_use_is_403() -> None:
    by = key(models=("demo", "openrouter/*"))
    gate = admission()
    error = refused(gate, by, "qwen")
    assert (error.status, error.type, error.code, error.param) == (403, "permission_error", "model_not_allowed", "model")
    assert "may not use the model 'qwen'; it may use 'demo', 'openrouter/*'" in error.message
    assert gate.in_flight() == ({}, {})
    gate.admit(by, "demo", 0)
    gate.admit(by, "openrouter/*", 0, asked="openrouter/some/model")
    assert refused(gate, by, "openrouter/*", asked="else/model").code == "model_not_allowed"


def test_a_request_larger_than_its_limit_is_not_to_be_tried_again() -> None:
    error = refused(admission(), key(tokens_per_minute=100), tokens=500)
    assert (error.status, error.code, error.headers[b"x-should-retry"]) == (429, "rate_limit_exceeded", b"false")
    assert b"retry-after" not in error.headers


def test_an_estimate_stands_until_the_real_number_is_known() -> None:
    gate, by = admission(), key(tokens_per_minute=100)
    unknown, cheap = gate.admit(by, "m", 40), gate.admit(by, "m", 50)
    assert refused(gate, by, tokens=20).headers[b"x-ratelimit-remaining-tokens"] == b"10"
    unknown.release(None, None)
    cheap.release(5, None)
    assert dict(gate.admit(by, "m", 0).headers)[b"x-ratelimit-remaining-tokens"] == b"55"


def test_another_limit_of_a_key_or_model_holds_from_the_next_request_and_forgets_nothing() -> None:
    gate = admission(m=limits(requests_per_minute=10))
    for _ in range(4):
        gate.admit(key(requests_per_minute=5), "m", 0)
    gate.admit(key(requests_per_minute=5), "m", 0)
    assert refused(gate, key(requests_per_minute=3)).status == 429
    assert dict(gate.admit(key(requests_per_minute=7), "m", 0).headers)[b"x-ratelimit-remaining-requests"] == b"1"
    gate.configure({"m": limits(concurrent_requests=6)})
    assert "requests at the same time, and 6 are running" in refused(gate, key()).message
    gate.configure({})
    gate.admit(key(), "m", 0)


def test_the_limits_of_a_configuration() -> None:
    settings = chat_settings("http://127.0.0.1:9/v1", model={"limits": {"requests_per_minute": 5}})
    assert limits_of_models(settings) == {"m": Limits(requests_per_minute=5)}


@pytest.mark.parametrize("seed", range(30))
def test_whatever_happens_nothing_is_in_flight_at_the_end_and_no_refusal_takes_anything(seed: int) -> None:
    source = random.Random(seed)

    def some_limits() -> Limits:
        return limits(
            **{
                name: value
                for name, value in {
                    "requests_per_minute": source.randint(1, 40),
                    "tokens_per_minute": source.randint(50, 3000),
                    "concurrent_requests": source.randint(1, 6),
                    "budget_usd_per_day": source.random() * 5,
                    "budget_usd_per_month": source.random() * 50,
                }.items()
                if source.random() < 0.5
            }
        )

    clock = Clock(NOON)
    models = {name: some_limits() for name in "mno"}
    keys = {name: ApiKey(name, name, name.encode(), NOON, limits=some_limits()) for name in "abc"}
    gate = Admission(models, clock)
    held: list[Admitted] = []
    expected: list[tuple[str, str]] = []
    refusals: list[int] = []
    for _ in range(1500):
        clock.now += source.choice([0, 0.001, 0.5, 5, 20_000 * (source.random() < 0.02), -3])
        if held and source.random() < 0.45:
            at = source.randrange(len(held))
            held.pop(at).release(source.choice([None, source.randint(0, 500)]), source.choice([None, source.random()]))
            expected.pop(at)
        elif source.random() < 0.02:
            name = source.choice("abc")
            keys[name] = ApiKey(name, name, name.encode(), NOON, limits=some_limits())
        else:
            by, model, tokens = keys[source.choice("abc")], source.choice("mno"), source.randint(0, 400)
            counts = gate.in_flight()
            try:
                held.append(gate.admit(by, model, tokens))
                expected.append((by.id, model))
            except GatewayError as error:
                refusals.append(error.status)
                for now, before in zip(gate.in_flight(), counts, strict=True):
                    assert {name: count for name, count in now.items() if count} == {name: count for name, count in before.items() if count}
                filled = state(gate)
                with pytest.raises(GatewayError):
                    gate.admit(by, model, tokens)
                assert state(gate) == filled
        running = gate.in_flight()
        assert sum(running.by_key.values()) == sum(running.by_model.values()) == len(held)
        for name in keys:
            assert running.by_key.get(name, 0) == sum(1 for by_id, _ in expected if by_id == name)
    assert set(refusals) == {429}
    for one in held:
        one.release(None, None)
        one.release(3, 1.0)
    assert set(gate.in_flight().by_key.values()) == set(gate.in_flight().by_model.values()) == {0}
