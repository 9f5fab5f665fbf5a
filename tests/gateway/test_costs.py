"""What an answer cost: whose figure counts, and how a price list is applied."""

from __future__ import annotations

from datetime import date

import pytest

from adapters.litellm_prices import Price as ListedPrice
from adapters.usage import Usage
from config.schema import Price
from gateway.costs import cost_usd

LIST = Price(input_usd_per_million=2, output_usd_per_million=10, as_of=date(2026, 11, 24))
CACHED = LIST.model_copy(update={"cached_input_usd_per_million": 0.5})


@pytest.mark.parametrize(
    ("usage", "price", "cost"),
    [
        (Usage(1_000_000, 0), LIST, 2.0),
        (Usage(0, 1_000_000), LIST, 10.0),
        (Usage(1_000_000, 100_000), LIST, 3.0),
        (Usage(1_000_000, 0, cached_tokens=400_000), LIST, 2.0),
        (Usage(1_000_000, 0, cached_tokens=400_000), CACHED, 1.4),
        (Usage(0, 100, reasoning_tokens=60), LIST, 0.001),
        (Usage(100, 0, cached_tokens=500), CACHED, 0.00005),
        (Usage(100, 0, estimated=True), LIST, 0.0002),
        (Usage(0, 0), LIST, 0.0),
        (Usage(1_000_000, 100_000, cached_tokens=400_000), ListedPrice(3.0, 0.3, 15.0), 1.8 + 0.12 + 1.5),
        (Usage(100, 0, cached_tokens=500), ListedPrice(3.0, 0.3, 15.0), 0.00003),
        (Usage(100, 100), None, None),
    ],
)
def test_a_price_list_counts_prompt_cache_and_answer(usage: Usage, price: Price | ListedPrice | None, cost: float | None) -> None:
    assert cost_usd(usage, price) == (None if cost is None else pytest.approx(cost))


def test_the_upstreams_own_figure_goes_before_the_list() -> None:
    assert cost_usd(Usage(1_000_000, 0, cost_usd=0.123), LIST) == 0.123
    assert cost_usd(Usage(1_000_000, 0, cost_usd=0.0), LIST) == 0.0
    assert cost_usd(Usage(1, 1, cost_usd=0.123), None) == 0.123


def test_a_figure_that_is_no_number_does_not_count() -> None:
    assert cost_usd(Usage(1_000_000, 0, cost_usd=float("inf")), LIST) == 2.0
