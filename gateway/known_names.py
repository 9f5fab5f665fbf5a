"""The names that may stand in a label, a log line or a span: those that the configuration or this program knows.

A client and an upstream can send any text as a model's name or an error's code: what is not known becomes "unknown" or "other", so labels
stay few and nobody's text gets into a sink by way of a name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from config.schema import Settings

NONE, UNKNOWN, OTHER = "none", "unknown", "other"

# Route to method of everything that a request's record may name.
ROUTES: Mapping[str, str] = MappingProxyType({
    "/v1/chat/completions": "POST", "/v1/images/generations": "POST", "/v1/images/edits": "POST",
    "/v1/models": "GET", "/v1/models/{name}": "GET", "/v1/usage": "GET", "/v1/admin/keys": "POST", "/metrics": "GET",
    "/v1/engines": "GET", "/v1/engines/{engine_id}/load": "POST", "/v1/engines/{engine_id}/unload": "POST",
})  # fmt: skip

# The gateway's and the workers' own codes, and below them those of OpenAI's and OpenRouter's documents.
CODES = frozenset({
    "admin_required", "api_key_expired", "cancelled", "circuit_open", "client_left", "context_length_exceeded", "empty_array",
    "engine_not_found", "engine_unavailable", "image_too_large", "image_url_not_allowed", "image_url_timeout", "internal_error",
    "invalid_api_key", "invalid_image_url", "invalid_json", "invalid_type", "invalid_value", "key_file_unusable", "key_not_found",
    "method_not_allowed", "missing_required_parameter", "model_not_allowed", "model_not_found", "no_usable_deployment", "not_found",
    "queue_full", "request_timeout", "request_too_large", "shutting_down", "too_many_images", "unknown_parameter",
    "unsupported_image_url", "unsupported_modality", "unsupported_parameter", "unsupported_value", "upstream_aborted",
    "upstream_auth_failed", "upstream_bad_reply", "upstream_disconnected", "upstream_misconfigured", "upstream_payment_required",
    "upstream_timeout", "upstream_unreachable", "usage_unavailable",

    "authentication", "billing_hard_limit_reached", "capacity_exhausted", "constraint_filtered", "content_filter",
    "content_policy_violation", "free_variant_ended", "insufficient_quota", "invalid_image", "invalid_prompt", "invalid_request",
    "max_tokens_exceeded", "model_deprecated", "moderation_blocked", "no_endpoints", "payment_required", "permission_denied",
    "privacy_restricted", "provider_overloaded", "provider_unavailable", "rate_limit_exceeded", "region_restricted", "server",
    "server_error", "string_above_max_length", "string_too_long", "temporarily_unavailable", "timeout", "token_limit_exceeded",
})  # fmt: skip
_HTTP_CODE = re.compile(r"upstream_http_[3-5]\d\d")
_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,127}")


class KnownNames:
    """What one configuration knows. Several sinks share one object, so that a changed configuration reaches all of them."""

    def __init__(self, settings: Settings) -> None:
        self.know(settings)

    def know(self, settings: Settings) -> None:
        """From now on the names of `settings`."""
        deployments = [deployment for model in settings.models for deployment in model.deployments]
        self._models = _Names(model.name for model in settings.models)
        self._upstream_models = _Names(deployment.model for deployment in deployments)
        self._upstreams = frozenset(settings.upstreams)

    def model(self, name: str) -> str:
        """The public name, or the pattern (`openrouter/*`) that it falls under: a label."""
        return self._models.label(name)

    def upstream(self, name: str) -> str:
        """'none' where no deployment answered."""
        return name if name in self._upstreams else UNKNOWN if name else NONE

    def upstream_model(self, name: str) -> str:
        """The upstream's id of a model. Not a label: under a pattern it is the whole name that was asked for."""
        known = self._upstream_models.label(name)
        return name if known.endswith("*") and _MODEL.fullmatch(name) else known


class _Names:
    """Exact names, and beginnings: those that end in `*`."""

    def __init__(self, names: Iterable[str]) -> None:
        self._labels = {name: name for name in names}
        self._patterns = sorted((name for name in self._labels if name.endswith("*")), key=len, reverse=True)

    def label(self, name: str) -> str:
        label = self._labels.get(name)
        if label is None:
            label = next((pattern for pattern in self._patterns if name.startswith(pattern[:-1])), UNKNOWN)
        return label


def known_code(code: str | None) -> str:
    """'none' without an error."""
    if code is None:
        return NONE
    return code if code in CODES or _HTTP_CODE.fullmatch(code) else OTHER


def known_route(route: str) -> str:
    return route if route in ROUTES else OTHER
