"""From the configuration to the upstreams: one object for each deployment, and the engine specification behind a local one."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adapters import openrouter
from adapters.base import ChatUpstream, ImageUpstream, Timeouts
from adapters.endpoint import Endpoint
from adapters.litellm_bridge import LitellmChat, LitellmSpec
from adapters.local import LocalChat, LocalImages
from adapters.network import Network
from adapters.openai_compatible import OpenAICompatible
from adapters.proxies import proxy_for
from adapters.remote_media import RemoteMedia
from adapters.sampling import OPENAI_NAMES, Recommended
from config.schema import (
    LOCAL_KINDS,
    Deployment,
    DiffusersUpstream,
    HostedUpstream,
    LitellmUpstream,
    ModelSpec,
    OpenAIUpstream,
    OpenRouterUpstream,
    Settings,
    TransformersUpstream,
    VllmUpstream,
)
from local_models.launch import EngineSpec
from local_models.need import MemoryRules
from local_models.runtime import Runtime

# An engine of ours may have a queue before it and take long over a token or a step; whether it lives is `Runtime`'s business.
LOCAL = Timeouts(first_token_s=1800.0, idle_s=600.0)


def engine_specs(settings: Settings) -> dict[str, EngineSpec]:
    """Every engine that the configuration can start, by engine id."""
    specs: dict[str, EngineSpec] = {}
    for model in settings.models:
        for deployment in model.deployments:
            upstream = settings.upstreams[deployment.upstream]
            if upstream.kind in LOCAL_KINDS and deployment.engine_id not in specs:
                assert isinstance(upstream, VllmUpstream | TransformersUpstream | DiffusersUpstream)
                specs[deployment.engine_id] = _engine_spec(model, deployment, upstream)
    return specs


def memory_rules(settings: Settings) -> MemoryRules:
    """How the engines of the configuration share memory."""
    return MemoryRules(dict(settings.memory.budgets), settings.memory.wait_s)


def chat_upstream(
    settings: Settings, model: ModelSpec, deployment: Deployment, runtime: Runtime, environ: Mapping[str, str] = os.environ
) -> ChatUpstream:
    """Who answers for `deployment`. A local engine is always told whether to think: its template and its parser must agree.

    environ: read now, for proxies.
    """
    spec = settings.upstreams[deployment.upstream]
    sampling = Recommended(model.sampling.thinking.given(), model.sampling.no_thinking.given(), bool(model.thinks))
    if not isinstance(spec, HostedUpstream):
        return LocalChat(runtime, deployment.engine_id, LOCAL, model.thinks, sampling, remote_media(settings))
    timeouts = Timeouts(spec.connect_timeout_s, spec.first_token_timeout_s, spec.idle_timeout_s, spec.total_timeout_s)
    key = spec.api_key.get_secret_value() if spec.api_key else None
    if isinstance(spec, LitellmUpstream):
        litellm = LitellmSpec(deployment.upstream, timeouts, key, spec.base_url, spec.params, spec.drop_params)
        return LitellmChat(litellm, deployment.model, model.thinking, sampling.named(OPENAI_NAMES))
    headers = spec.headers if isinstance(spec, OpenAIUpstream) else openrouter.headers(spec.referer, spec.title)
    endpoint = Endpoint(deployment.upstream, spec.base_url, key, timeouts, headers, _network(spec, environ))
    if isinstance(spec, OpenRouterUpstream):
        return openrouter.openrouter(endpoint, deployment.model, model.thinking, sampling)
    if spec.thinking in ("as_given", "reasoning_effort"):  # it may be OpenAI's own, which refuses a field that it does not know
        sampling = sampling.named(OPENAI_NAMES)
    return OpenAICompatible(endpoint, deployment.model, spec.thinking, model.thinking, spec.usage_in_streams, sampling)


def remote_media(settings: Settings) -> RemoteMedia:
    spec = settings.remote_images
    private = frozenset(host.lower() for host in spec.private_hosts)
    return RemoteMedia(spec.fetch, spec.max_bytes, spec.max_per_request, spec.timeout_s, private)


def _network(spec: OpenAIUpstream | OpenRouterUpstream, environ: Mapping[str, str]) -> Network:
    try:
        return Network(proxy_for(spec.base_url, environ, spec.proxy), spec.ca_file, spec.client_cert, spec.client_key)
    except ValueError as error:  # a variable for all programs of this machine: it must not keep the other upstreams from working
        return Network(problem=str(error))


def image_upstream(deployment: Deployment, runtime: Runtime) -> ImageUpstream:
    return LocalImages(runtime, deployment.engine_id, LOCAL)


def _engine_spec(model: ModelSpec, deployment: Deployment, upstream: VllmUpstream | TransformersUpstream | DiffusersUpstream) -> EngineSpec:
    python = upstream.python if isinstance(upstream, VllmUpstream) else Path(sys.executable)
    return EngineSpec(
        engine_id=deployment.engine_id,
        kind=upstream.kind,
        model=deployment.model,
        python=python,
        device=upstream.device,
        dtype=upstream.dtype,
        served_model_name=model.name,  # what its answers call it: of several public names, the first
        start_timeout_s=upstream.start_timeout_s,
        idle_unload_s=upstream.idle_unload_s,
        max_restarts=upstream.max_restarts,
        args=tuple(upstream.args),
        env=upstream.env,
        memory=upstream.memory,
        pinned=upstream.pinned,
        **_kind_keys(upstream),
    )


def _kind_keys(upstream: VllmUpstream | TransformersUpstream | DiffusersUpstream) -> dict[str, Any]:
    """What only some kinds of engine have."""
    if isinstance(upstream, VllmUpstream):
        return {"plan": upstream.plan, "text_only": upstream.text_only, "speculative": upstream.speculative}
    return {"max_queue": upstream.max_queue}
