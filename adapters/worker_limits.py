"""What Tandem's own chat worker cannot do, said before its engine is started, so that another deployment may be asked. Pure.

The worker refuses the same by itself; here it only costs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adapters.errors import UpstreamError

# vLLM's field, and the names that it had before
CONSTRAINTS = ("structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar")


def refusal(fields: Mapping[str, Any]) -> UpstreamError | None:
    """Why the worker will not do this, or None."""
    response_format = fields.get("response_format")
    kind = response_format.get("type") if isinstance(response_format, dict) else None
    if kind not in (None, "text"):
        return _refusal("response_format", "writes plain text only; ask for JSON in the prompt, or use a vLLM deployment")
    for name in CONSTRAINTS:
        if fields.get(name) is not None:
            return _refusal(name, "writes plain text only; leave the field out, or use a vLLM deployment")
    if fields.get("logprobs"):
        return _refusal("logprobs", "does not return them; leave the field out, or use a vLLM deployment")
    return None


def _refusal(param: str, problem: str) -> UpstreamError:
    return UpstreamError(400, f"'{param}': the transformers worker {problem}", "unsupported_value", "invalid_request_error", param)
