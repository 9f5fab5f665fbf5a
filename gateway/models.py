"""GET /v1/models: OpenAI's model objects, with everything more that Tandem knows under one extra key."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from config.schema import LOCAL_KINDS, ModelSpec, Settings
from gateway.admission import not_allowed
from gateway.api_key import ApiKey
from gateway.errors import GatewayError
from gateway.jobs import JobQueue
from gateway.routing import Router
from local_models.runtime import Runtime


class ModelList:
    """The models of one configuration and what is known of them now. created: seconds since 1970, when the gateway started."""

    def __init__(self, settings: Settings, runtime: Runtime, queues: Mapping[str, JobQueue], router: Router, created: int) -> None:
        self._settings, self._runtime, self._queues, self._router, self._created = settings, runtime, queues, router, created

    def all(self, key: ApiKey) -> dict[str, Any]:
        """Those that the key may use. Names with a "*" are left out: they are no model that a client could send."""
        models = [model for model in self._settings.models if model.name[-1] != "*" and key.allows(model.name)]
        return {"object": "list", "data": [self._object(model, model.name) for model in models]}

    def one(self, name: str, key: ApiKey) -> dict[str, Any]:
        """Raises GatewayError (403, 404)."""
        if not key.allows(name):
            raise not_allowed(key, name)
        model = self._settings.model(name) if not name.endswith("*") else None
        model = model or self._router.wildcard(name)
        if model is None:
            known = ", ".join(f"'{model.name}'" for model in self._settings.models if key.allows(model.name))
            raise GatewayError(404, f"the model '{name}' does not exist; models here: {known}", "model_not_found", param="model")
        return self._object(model, name)

    def _object(self, model: ModelSpec, name: str) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": self._created,
            "owned_by": "tandem",
            "tandem": self._more(model),
        }

    def _more(self, model: ModelSpec) -> dict[str, Any]:
        return {
            "kind": model.kind,
            "description": model.description,
            "demo": model.demo,
            "input_modalities": model.input_modalities,
            "tools": model.tools,
            "reasoning": model.reasoning,
            "thinking": model.thinks,
            "sampling": {mode: spec.given() for mode, spec in model.sampling} if model.kind == "chat" else None,
            "context_length": model.context_length,
            "deployments": [self._deployment(model, place) for place in range(len(model.deployments))],
            "image": model.image.model_dump() if model.image else None,
        }

    def _deployment(self, model: ModelSpec, place: int) -> dict[str, Any]:
        deployment = model.deployments[place]
        upstream = self._settings.upstreams[deployment.upstream]
        local = upstream.kind in LOCAL_KINDS
        state: dict[str, Any] = {"state": "hosted", "progress": None, "stage": None, "reason": None, "jobs": None}
        problem = self._settings.key_problem(deployment.upstream)
        if problem is not None:
            state |= {"state": "unavailable", "reason": problem}
        elif local:
            status = self._runtime.status(deployment.engine_id)
            queue = self._queues.get(deployment.engine_id)
            jobs = queue.status() if queue else None
            state |= {"state": status.state, "progress": status.progress, "stage": status.stage, "reason": status.reason}
            state["jobs"] = asdict(jobs) if jobs else None
        breaker = self._router.breaker(model, place).state(time.monotonic())
        return {
            "upstream": deployment.upstream,
            "kind": upstream.kind,
            "model": deployment.model,
            "local": local,
            "breaker": breaker,
            **state,
        }
