"""Recommended sampling: only where the client is silent, in the mode that it asks for."""

from __future__ import annotations

from typing import Any

import pytest

from adapters.sampling import NOTHING, OPENAI_NAMES, Recommended

MODEL = Recommended({"temperature": 1.0, "top_k": 20}, {"temperature": 0.7, "top_k": 20}, thinks=True)


@pytest.mark.parametrize(
    ("fields", "added"),
    [
        ({}, {"temperature": 1.0, "top_k": 20}),
        ({"enable_thinking": False}, {"temperature": 0.7, "top_k": 20}),
        ({"reasoning_effort": "none"}, {"temperature": 0.7, "top_k": 20}),
        ({"temperature": 0.2}, {"top_k": 20}),
        ({"temperature": None, "top_k": 5}, {"temperature": 1.0}),
        ({"temperature": 0}, {}),
        ({"temperature": 0.0, "enable_thinking": False}, {}),
    ],
)
def test_a_silent_client_gets_what_the_card_says_for_its_mode(fields: dict[str, Any], added: dict[str, float]) -> None:
    assert MODEL.added_to(fields) == added


def test_the_models_own_mode_counts_where_the_client_says_none() -> None:
    assert Recommended(MODEL.thinking, MODEL.no_thinking, thinks=False).added_to({})["temperature"] == 0.7


def test_an_upstream_gets_what_it_has_names_for() -> None:
    assert MODEL.named(OPENAI_NAMES).added_to({}) == {"temperature": 1.0}
    assert NOTHING.added_to({}) == {}
