"""Prices come from litellm's own file, without litellm and without the network."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from adapters.litellm_prices import Price, installed_prices, price_of, prices_in

TABLE = {
    "sample_spec": {"input_cost_per_token": 0.0, "output_cost_per_token": 0.0, "mode": "one of: chat, embedding"},
    "claude": {"mode": "chat", "litellm_provider": "anthropic", "input_cost_per_token": 3e-06, "output_cost_per_token": 1.5e-05,
               "cache_read_input_token_cost": 3e-07},
    "gemini/flash": {"mode": "chat", "litellm_provider": "gemini", "input_cost_per_token": 1e-06, "output_cost_per_token": 2e-06},
    "flash": {"mode": "chat", "litellm_provider": "vertex_ai-language-models",
              "input_cost_per_token": 4e-06, "output_cost_per_token": 5e-06},
    "latest": {"alias_of": "claude"},
    "embedder": {"mode": "embedding", "litellm_provider": "openai", "input_cost_per_token": 1e-06, "output_cost_per_token": 0.0},
    "unpriced": {"mode": "chat", "litellm_provider": "openai"},
}  # fmt: skip


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("claude", Price(3.0, 0.3, 15.0)),
        ("anthropic/claude", Price(3.0, 0.3, 15.0)),
        ("openai/claude", None),  # somebody else's model of that name
        ("gemini/flash", Price(1.0, 1.0, 2.0)),
        ("vertex_ai/flash", Price(4.0, 4.0, 5.0)),
        ("latest", Price(3.0, 0.3, 15.0)),
        ("anthropic/latest", Price(3.0, 0.3, 15.0)),
        ("embedder", None),
        ("unpriced", None),
        ("sample_spec", None),
        ("nobody/knows", None),
    ],
)
def test_a_model_is_found_with_its_provider_or_without(model: str, expected: Price | None) -> None:
    assert prices_in(TABLE, "litellm 1").price_of(model) == expected


def test_the_installed_map_knows_well_known_models_and_says_where_it_is_from() -> None:
    price = price_of("anthropic/claude-sonnet-4-5")
    assert price is not None
    assert 0 < price.cached < price.input < price.output < 1000
    assert installed_prices().version.startswith("litellm 1.")


def test_prices_need_no_litellm() -> None:
    code = "import sys; from adapters.litellm_prices import price_of; assert price_of('gpt-4o'); assert 'litellm' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=True)
