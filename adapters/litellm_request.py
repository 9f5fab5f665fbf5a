"""A client's request as litellm's arguments. Pure.

litellm takes its settings (address, key, headers, credentials) from the same arguments as a request's fields. So a field passes
only where it is known to be one of a request: a client must not be able to say where our key is sent.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from adapters import thinking
from adapters.errors import UpstreamError

# OpenAI's fields, which litellm translates for each provider
_TRANSLATED = frozenset({
    "audio", "frequency_penalty", "function_call", "functions", "logit_bias", "logprobs", "max_completion_tokens", "max_tokens",
    "messages", "modalities", "n", "parallel_tool_calls", "prediction", "presence_penalty", "prompt_cache_key",
    "prompt_cache_retention", "response_format", "safety_identifier", "seed", "service_tier", "stop", "store", "temperature",
    "tool_choice", "tools", "top_logprobs", "top_p", "user", "verbosity", "web_search_options",
})  # fmt: skip
# Fields of single providers, which litellm hands on under the same name
_PASSED = frozenset({"min_p", "repetition_penalty", "safety_settings", "safetySettings", "thinking", "top_a", "top_k", "typical_p"})
_OURS = frozenset({"model", "stream", "stream_options"})
_DEFAULT_EFFORT = "medium"  # where thinking is wanted and nobody said how much; litellm has no word for that


def arguments(fields: Mapping[str, Any], upstream: str, *, takes_any: bool, drops: bool, thinks: bool | None) -> dict[str, Any]:
    """litellm's arguments for these fields, without model, key and the like.

    takes_any: the provider speaks OpenAI's API, so unknown fields go into its request body as they are. Elsewhere they are
    dropped where `drops`, and refused where not (UpstreamError, 400: another deployment may take them). thinks: as in OpenAICompatible.
    """
    unknown = {name: value for name, value in fields.items() if name not in _TRANSLATED | _PASSED | _OURS | thinking.SPELLINGS}
    asked = {name: fields[name] for name in (_TRANSLATED | _PASSED) & fields.keys()}
    asked["messages"] = copy.deepcopy(fields["messages"])  # litellm writes into them, and another deployment may be asked next
    asked |= _thinking(fields, thinks)
    if fields.get("stream"):
        options = fields.get("stream_options")
        asked |= {"stream": True, "stream_options": {**(options if isinstance(options, Mapping) else {}), "include_usage": True}}
    if unknown and takes_any:
        asked["extra_body"] = unknown
    elif unknown and not drops:
        raise _refused(sorted(unknown), upstream)
    return asked


def _thinking(fields: Mapping[str, Any], default: bool | None) -> dict[str, Any]:
    """However it is said, as `reasoning_effort`; a budget as `thinking`, the one way litellm has for it."""
    wanted = thinking.asked_for(fields)
    enabled = default if wanted.enabled is None and "thinking" not in fields else wanted.enabled
    if enabled is None and not wanted.max_tokens:
        return {}
    if wanted.max_tokens and enabled is not False:
        return {"thinking": {"type": "enabled", "budget_tokens": wanted.max_tokens}}
    return {"reasoning_effort": (wanted.effort or _DEFAULT_EFFORT) if enabled else "none"}


def _refused(names: list[str], upstream: str) -> UpstreamError:
    listed = ", ".join(name[:64] for name in names[:5])
    message = f"upstream '{upstream}' does not take {listed}; leave it out, or set drop_params: true for this upstream"
    return UpstreamError(400, message, "unsupported_parameter", "invalid_request_error", names[0][:64])
