"""GET /v1/models: OpenAI's model objects, with everything more that Tandem knows under one extra key."""

from __future__ import annotations

from typing import Any

from config.schema import LOCAL_KINDS, Deployment, ModelSpec, Settings
from local_models.runtime import Runtime


def model_list(settings: Settings, runtime: Runtime, created: int) -> dict[str, Any]:
    return {"object": "list", "data": [model_object(model, settings, runtime, created) for model in settings.models]}


def model_object(model: ModelSpec, settings: Settings, runtime: Runtime, created: int) -> dict[str, Any]:
    """created: seconds since 1970; when this configuration was loaded."""
    more = {
        "kind": model.kind,
        "description": model.description,
        "demo": model.demo,
        "input_modalities": model.input_modalities,
        "tools": model.tools,
        "reasoning": model.reasoning,
        "context_length": model.context_length,
        "deployments": [_deployment(deployment, settings, runtime) for deployment in model.deployments],
        "image": model.image.model_dump() if model.image else None,
    }
    return {"id": model.name, "object": "model", "created": created, "owned_by": "tandem", "tandem": more}


def _deployment(deployment: Deployment, settings: Settings, runtime: Runtime) -> dict[str, Any]:
    upstream = settings.upstreams[deployment.upstream]
    local = upstream.kind in LOCAL_KINDS
    known = {"upstream": deployment.upstream, "kind": upstream.kind, "model": deployment.model, "local": local}
    problem = settings.key_problem(deployment.upstream)
    if problem is not None:
        return known | {"state": "unavailable", "progress": None, "stage": None, "reason": problem}
    if not local:
        return known | {"state": "hosted", "progress": None, "stage": None, "reason": None}
    status = runtime.status(deployment.engine_id)
    return known | {"state": status.state, "progress": status.progress, "stage": status.stage, "reason": status.reason}
