"""What an answer cost in US dollars: the upstream's own figure first, else the deployment's price list, else unknown. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

from adapters.litellm_prices import Price as ListedPrice
from adapters.litellm_prices import installed_prices
from adapters.usage import Usage
from config.schema import Deployment, LitellmUpstream, Price, UpstreamSpec

Pricing: TypeAlias = Callable[[Usage, str], float | None]
"""US dollars for a usage of the upstream's model of this id, or None where nobody knows."""

_MILLION = 1_000_000


def cost_usd(usage: Usage, price: Price | ListedPrice | None) -> float | None:
    """US dollars, or None where nobody knows. Reasoning tokens are part of the completion's; cached ones part of the prompt's."""
    if usage.cost_usd is not None and math.isfinite(usage.cost_usd):
        return usage.cost_usd
    if price is None:
        return None
    cached = min(usage.cached_tokens, usage.prompt_tokens)
    per_input, per_cached, per_output = _rates(price)
    prompt = (usage.prompt_tokens - cached) * per_input + cached * per_cached
    return (prompt + usage.completion_tokens * per_output) / _MILLION


def _rates(price: Price | ListedPrice) -> tuple[float, float, float]:
    """For a million tokens: of the prompt, of the prompt from a cache, of the answer."""
    if isinstance(price, ListedPrice):
        return price
    cached = price.cached_input_usd_per_million
    return price.input_usd_per_million, price.input_usd_per_million if cached is None else cached, price.output_usd_per_million


def pricing_of(deployment: Deployment, upstream: UpstreamSpec) -> Pricing:
    """How this deployment's answers are priced: by the upstream, by its own list, or by litellm's where litellm serves it.

    The first deployment that needs litellm's list reads it from the disk: some megabytes.
    """
    if deployment.price is None and isinstance(upstream, LitellmUpstream):
        prices = installed_prices()

        def by_litellm(usage: Usage, model: str) -> float | None:
            return cost_usd(usage, prices.price_of(model))

        return by_litellm
    return lambda usage, _: cost_usd(usage, deployment.price)
