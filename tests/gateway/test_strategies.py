"""In which order deployments are asked."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest

from gateway.strategies import Choice, Strategy, affinity_key, order

AFFINE: tuple[Strategy, ...] = ("session", "prompt_prefix")


def choices(*in_flight: int, weights: tuple[float, ...] = ()) -> list[Choice]:
    return [Choice(f"up{place}", weights[place] if weights else 1.0, load) for place, load in enumerate(in_flight)]


def key(number: int) -> bytes:
    return number.to_bytes(32, "big")


def test_ordered_is_as_listed_whatever_the_load() -> None:
    assert order("ordered", choices(9, 0, 0), None, random.Random(0)) == [0, 1, 2]


def test_weighted_asks_first_in_proportion_and_leaves_nobody_out() -> None:
    chance = random.Random(1)
    drawn = [order("weighted", choices(0, 0, 0, weights=(6, 3, 1)), None, chance) for _ in range(4000)]
    assert all(sorted(places) == [0, 1, 2] for places in drawn)
    first = Counter(places[0] for places in drawn)
    assert [round(first[place] / 4000, 1) for place in range(3)] == [0.6, 0.3, 0.1]


def test_least_in_flight_counts_by_weight_and_draws_among_equals() -> None:
    assert order("least_in_flight", choices(4, 1, 3), None, random.Random(0)) == [1, 2, 0]
    assert order("least_in_flight", choices(4, 3, weights=(4, 1)), None, random.Random(0)) == [0, 1]
    firsts = {order("least_in_flight", choices(0, 0, 0), None, random.Random(seed))[0] for seed in range(30)}
    assert firsts == {0, 1, 2}


@pytest.mark.parametrize("strategy", AFFINE)
def test_a_key_meets_the_same_deployment_and_keys_are_spread(strategy: Strategy) -> None:
    first = [order(strategy, choices(0, 0, 0), key(number), random.Random(number))[0] for number in range(900)]
    again = [order(strategy, choices(0, 0, 0), key(number), random.Random(0))[0] for number in range(900)]
    assert first == again
    assert all(250 < count < 350 for count in Counter(first).values())


def test_a_deployment_that_goes_moves_only_its_own_keys() -> None:
    for number in range(200):
        before = order("session", choices(0, 0, 0), key(number), random.Random(0))
        after = order("session", choices(0, 0), key(number), random.Random(0))
        assert after == [place for place in before if place != 2]


def test_an_affine_deployment_far_above_its_share_is_passed_over() -> None:
    favourite = order("session", choices(0, 0, 0), key(1), random.Random(0))[0]
    loads = [0, 0, 0]
    loads[favourite] = 2
    assert order("session", choices(*loads), key(1), random.Random(0))[0] == favourite
    loads[favourite] = 30
    assert order("session", choices(*loads), key(1), random.Random(0))[-1] == favourite


def test_without_a_key_the_least_loaded_is_first() -> None:
    assert order("session", choices(3, 0, 2), None, random.Random(0)) == [1, 2, 0]


def said(*messages: tuple[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in messages]}


def test_a_session_is_known_by_header_cache_key_or_user() -> None:
    header = [(b"x-session-id", b"abc")]
    by_header = affinity_key("session", header, said())
    assert by_header == affinity_key("session", header, said() | {"user": "u"}) != None  # noqa: E711
    by_cache_key = affinity_key("session", [], {"prompt_cache_key": "k", "user": "u"})
    assert by_cache_key == affinity_key("session", [], {"prompt_cache_key": "k", "user": "v"})
    assert affinity_key("session", [], {"user": "u"}) == affinity_key("session", [], {"user": "u", "prompt_cache_key": ""})
    assert len({by_header, by_cache_key, affinity_key("session", [], {"user": "u"})}) == 3
    assert affinity_key("session", [(b"x-session-id", b"")], {"user": 7}) is None


def test_a_prefix_is_what_every_turn_of_a_conversation_begins_with() -> None:
    first = [("system", "You are kind."), ("user", [{"type": "text", "text": "Hello"}, {"type": "image_url", "image_url": {}}])]
    later = [*first, ("assistant", "Hi"), ("user", "More")]
    other = [("system", "You are kind."), ("user", "Bye")]
    assert affinity_key("prompt_prefix", [], said(*first)) == affinity_key("prompt_prefix", [], said(*later))
    assert affinity_key("prompt_prefix", [], said(*first)) != affinity_key("prompt_prefix", [], said(*other))


@pytest.mark.parametrize("strategy", ["ordered", "weighted", "least_in_flight"])
def test_nobody_computes_a_key_that_is_not_used(strategy: Strategy) -> None:
    assert affinity_key(strategy, [(b"x-session-id", b"abc")], {}) is None
