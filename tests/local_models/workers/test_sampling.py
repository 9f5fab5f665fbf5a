"""From logits to a token: each setting on its own, by what can and cannot come out."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from local_models.workers.sampling import Sampler, SamplingParams, ThinkingBudget

LOGITS = torch.tensor([1.0, 3.0, 2.0, 0.0, -1.0])


def picks(
    count: int = 300, logits: torch.Tensor = LOGITS, prompt: frozenset[int] = frozenset(), seed: int = 0, **params: float
) -> list[int]:
    chosen = SamplingParams(**params)  # type: ignore[arg-type]  # top_k is the int among them
    generator = torch.Generator().manual_seed(seed)
    return [Sampler(chosen, generator, prompt).pick(logits) for _ in range(count)]


def test_plain_sampling_reaches_every_token() -> None:
    assert set(picks()) == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("temperature", [0, 1e-9])
def test_no_temperature_takes_the_likeliest(temperature: float) -> None:
    assert set(picks(5, temperature=temperature)) == {1}


@pytest.mark.parametrize(
    ("params", "possible"),
    [
        ({"top_k": 2}, {1, 2}),
        ({"top_k": 99}, {0, 1, 2, 3, 4}),
        ({"top_p": 0.6}, {1}),
        ({"top_p": 0.8}, {1, 2}),
        ({"top_p": 0.0}, {1}),
        ({"min_p": 0.3}, {1, 2}),
    ],
)
def test_the_tail_is_cut(params: dict[str, Any], possible: set[int]) -> None:
    assert set(picks(**params)) == possible


def test_the_same_seed_picks_the_same() -> None:
    assert picks(seed=1) == picks(seed=1) != picks(seed=2)


def test_penalties_push_what_was_written_away() -> None:
    sampler = Sampler(SamplingParams(temperature=0, presence_penalty=1.5), torch.Generator())
    assert [sampler.pick(LOGITS) for _ in range(2)] == [1, 2]
    sampler = Sampler(SamplingParams(temperature=0, frequency_penalty=0.6), torch.Generator())
    assert [sampler.pick(LOGITS) for _ in range(4)] == [1, 1, 2, 1]


def test_repetition_penalty_counts_the_prompt_too() -> None:
    assert picks(1, prompt=frozenset({1}), temperature=0, repetition_penalty=2.0) == [2]
    assert picks(1, logits=-LOGITS, prompt=frozenset({4}), temperature=0, repetition_penalty=1.5) == [4]


CLOSE = 4


def thought(logits: list[int], budget: int) -> list[int]:
    """What is written where the model would take these tokens one after the other."""
    sampler = Sampler(SamplingParams(temperature=0), torch.Generator(), budget=ThinkingBudget(budget, CLOSE, frozenset({CLOSE, 0})))
    return [sampler.pick(torch.nn.functional.one_hot(torch.tensor(token), 5)) for token in logits]


def test_a_thought_is_closed_when_its_budget_is_used_up_and_the_answer_goes_on() -> None:
    assert thought([1, 2, 3, 1, 2, 3], budget=2) == [1, 2, CLOSE, 1, 2, 3]
    assert thought([1, 2, 3], budget=0) == [CLOSE, 2, 3]


@pytest.mark.parametrize("end", [CLOSE, 0])
def test_a_thought_that_ends_by_itself_is_not_closed_again(end: int) -> None:
    assert thought([1, end, 2, 3, 1], budget=2) == [1, end, 2, 3, 1]
    assert thought([1, 2, end, 3], budget=3) == [1, 2, end, 3]
