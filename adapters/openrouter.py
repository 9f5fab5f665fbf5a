"""OpenRouter: an OpenAI-compatible upstream with headers of its own, `reasoning` for thinking, and model ids that may carry a prefix.

Its `: OPENROUTER PROCESSING` comments, its usage with cost and its errors inside a 200 need nothing here: `adapters.answer` and
`adapters.errors` treat every upstream as if it did the same. Source: OpenRouter docs, API reference (headers, errors, streaming).
"""

from __future__ import annotations

from adapters.endpoint import Endpoint
from adapters.openai_compatible import OpenAICompatible
from adapters.sampling import NOTHING, Recommended

PREFIX = "openrouter/"  # how other tools write the same ids; `openrouter/auto` is an id of its own


def headers(referer: str | None, title: str | None) -> dict[str, str]:
    """By which OpenRouter names the application in its statistics; what is None is not sent."""
    given = {"HTTP-Referer": referer, "X-OpenRouter-Title": title}
    return {header: value for header, value in given.items() if value}


def model_id(model: str) -> str:
    """OpenRouter's id of `openrouter/qwen/qwen3.5-9b` or `qwen/qwen3.5-9b`."""
    bare = model.removeprefix(PREFIX)
    return bare if "/" in bare else model


def openrouter(endpoint: Endpoint, model: str, thinking: bool | None, sampling: Recommended = NOTHING) -> OpenAICompatible:
    """A ChatUpstream. Its streams end with their usage, asked for or not. It has names for all of vLLM's sampling, and the same ones."""
    return OpenAICompatible(endpoint, model_id(model), "reasoning", thinking, asks_usage=False, sampling=sampling)
