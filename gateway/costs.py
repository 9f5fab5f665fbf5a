"""What an answer cost in US dollars: the upstream's own figure first, else the deployment's price list, else unknown. Pure."""

from __future__ import annotations

import math

from adapters.usage import Usage
from config.schema import Price

_MILLION = 1_000_000


def cost_usd(usage: Usage, price: Price | None) -> float | None:
    """US dollars, or None where nobody knows. Reasoning tokens are part of the completion's; cached ones part of the prompt's."""
    if usage.cost_usd is not None and math.isfinite(usage.cost_usd):
        return usage.cost_usd
    if price is None:
        return None
    cached = min(usage.cached_tokens, usage.prompt_tokens)
    per_cached = price.input_usd_per_million if price.cached_input_usd_per_million is None else price.cached_input_usd_per_million
    prompt = (usage.prompt_tokens - cached) * price.input_usd_per_million + cached * per_cached
    return (prompt + usage.completion_tokens * price.output_usd_per_million) / _MILLION
