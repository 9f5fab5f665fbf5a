"""What a model costs by the price map that comes with litellm: read from its file, so that litellm itself is not imported.

The map is as old as the installed litellm and is never fetched anew; `Prices.version` says so beside every figure.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

_FILE = "model_prices_and_context_window_backup.json"
_PER_MILLION = 1_000_000


class Price(NamedTuple):
    """In US dollars for a million tokens. cached: for prompt tokens that were read from the provider's cache."""

    input: float
    cached: float
    output: float


@dataclass(frozen=True, slots=True)
class Prices:
    """Prices by litellm's model id. version: which release of litellm they are from."""

    version: str
    known: Mapping[str, Price]
    providers: Mapping[str, str]

    def price_of(self, model: str) -> Price | None:
        """The price of litellm's id, with its provider before it or without; None where the map has none."""
        if model in self.known:
            return self.known[model]
        provider, _, bare = model.partition("/")
        # Some providers' models stand there without their prefix, under a provider such as vertex_ai-language-models.
        return self.known.get(bare) if bare and self.providers.get(bare, "").startswith(provider) else None


def price_of(model: str) -> Price | None:
    """As `Prices.price_of`, by the installed litellm. The first call reads a file of some megabytes: not for an event loop."""
    return installed_prices().price_of(model)


@lru_cache(maxsize=1)
def installed_prices() -> Prices:
    """Raises OSError where litellm is not installed as it should be."""
    spec = find_spec("litellm")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError("litellm is not installed; pip install litellm")
    table = json.loads((Path(spec.submodule_search_locations[0]) / _FILE).read_bytes())
    return prices_in(table, f"litellm {metadata.version('litellm')}")


def prices_in(table: Mapping[str, Any], version: str) -> Prices:
    """The chat prices of litellm's table; entries of an alias (`alias_of`) have those of the model they name."""
    known: dict[str, Price] = {}
    providers: dict[str, str] = {}
    for model, entry in table.items():
        entry = table.get(entry["alias_of"], {}) if isinstance(entry, dict) and "alias_of" in entry else entry
        price = _price(entry) if isinstance(entry, dict) else None
        if price is not None:
            known[model] = price
            providers[model] = str(entry.get("litellm_provider") or "")
    return Prices(version, known, providers)


def _price(entry: Mapping[str, Any]) -> Price | None:
    names = ("input_cost_per_token", "cache_read_input_token_cost", "output_cost_per_token")
    prompt, cached, answer = (_per_million(entry.get(name)) for name in names)
    if entry.get("mode") not in ("chat", "completion", "responses") or prompt is None or answer is None:
        return None
    return Price(prompt, prompt if cached is None else cached, answer)


def _per_million(per_token: object) -> float | None:
    if not isinstance(per_token, int | float) or isinstance(per_token, bool) or per_token < 0:
        return None
    return round(per_token * _PER_MILLION, 6)
