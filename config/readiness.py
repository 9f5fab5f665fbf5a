"""What each public model name resolves to on this machine, in order, and what is missing.

`gather` looks at the machine once; `check` is pure. Whether a hosted provider answers is not asked here: that needs the network.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import assert_never

from config.environments import Environment, environment_for, find_environments, install_command
from config.hardware import Gpu, find_gpus, has_vllm
from config.schema import (
    BUILTIN_PREFIX,
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
from config.weights import Weights, find_weights


@dataclass(frozen=True)
class Facts:
    """What was found. engines: vLLM where `python` or the PATH names it, by upstream name. weights: by the deployment's model.

    absent: files that are named but not there. environments: of engines, those that Tandem installed.
    """

    gpus: tuple[Gpu, ...] = ()
    engines: Mapping[str, bool] = field(default_factory=dict)
    weights: Mapping[str, Weights] = field(default_factory=dict)
    absent: frozenset[Path] = frozenset()
    environments: tuple[Environment, ...] = ()


@dataclass(frozen=True)
class Missing:
    """One thing a deployment lacks, and how to get it."""

    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.what}: {self.remedy}"


@dataclass(frozen=True)
class DeploymentReport:
    """One deployment. Usable when nothing is missing."""

    upstream: str
    kind: str
    model: str
    missing: tuple[Missing, ...]

    @property
    def usable(self) -> bool:
        return not self.missing


@dataclass(frozen=True)
class ModelReport:
    """One public name and its deployments, in the order in which they are tried."""

    name: str
    kind: str
    deployments: tuple[DeploymentReport, ...]

    @property
    def usable(self) -> bool:
        return any(deployment.usable for deployment in self.deployments)


@dataclass(frozen=True)
class Report:
    """Every public name of a configuration."""

    models: tuple[ModelReport, ...]

    @property
    def unusable(self) -> tuple[ModelReport, ...]:
        return tuple(model for model in self.models if not model.usable)


def gather(settings: Settings, builtin: Mapping[str, Path], environ: Mapping[str, str], data_dir: Path) -> Facts:
    """Look at this machine, as far as these settings ask for it. builtin: directory of each builtin: name. data_dir: of Tandem."""
    used = [deployment for model in settings.models for deployment in model.deployments]
    local = [deployment for deployment in used if _is_local(settings, deployment)]
    engines: dict[str, bool] = {}
    for deployment in local:
        spec = settings.upstreams[deployment.upstream]
        if isinstance(spec, VllmUpstream):
            engines[deployment.upstream] = has_vllm(spec.python, environ)
    wants_gpu = any(_wants_gpu(settings, deployment) for deployment in local)
    return Facts(
        gpus=find_gpus(environ) if wants_gpu else (),
        engines=engines,
        weights={deployment.model: find_weights(deployment.model, builtin, environ) for deployment in local},
        absent=frozenset(path for deployment in used for _, path in _tls_files(settings, deployment) if not path.is_file()),
        environments=find_environments(data_dir) if engines else (),
    )


def check(settings: Settings, facts: Facts) -> Report:
    """For each public name its deployments in order, each usable or with what is missing."""
    return Report(tuple(_check_model(settings, model, facts) for model in settings.models))


def _check_model(settings: Settings, model: ModelSpec, facts: Facts) -> ModelReport:
    reports = [
        DeploymentReport(
            deployment.upstream,
            settings.upstreams[deployment.upstream].kind,
            deployment.model,
            tuple(_missing(settings, model, deployment, facts)),
        )
        for deployment in model.deployments
    ]
    return ModelReport(model.name, model.kind, tuple(reports))


def _missing(settings: Settings, model: ModelSpec, deployment: Deployment, facts: Facts) -> list[Missing]:
    spec = settings.upstreams[deployment.upstream]
    match spec:
        case OpenAIUpstream() | OpenRouterUpstream() | LitellmUpstream():
            variable = settings.unset_keys.get(deployment.upstream, "OPENROUTER_API_KEY")
            problem = settings.key_problem(deployment.upstream)
            key = [] if problem is None else [Missing("no API key", f"export {variable}=...")]
            return [*key, *_missing_files(settings, deployment, facts)]
        case VllmUpstream():
            installed = environment_for(spec.device, facts.environments) if spec.python is None else None
            has_engine = installed is not None or facts.engines.get(deployment.upstream)
            engine = [] if has_engine else [_missing_vllm(deployment.upstream, spec)]
            gpu = [] if _needs_no_nvidia_gpu(installed) else _missing_gpu(settings, deployment, facts)
            return [*gpu, *engine, *_missing_weights(model, deployment, facts)]
        case TransformersUpstream() | DiffusersUpstream():
            return [*_missing_gpu(settings, deployment, facts), *_missing_weights(model, deployment, facts)]
    assert_never(spec)


def _missing_files(settings: Settings, deployment: Deployment, facts: Facts) -> list[Missing]:
    files = _tls_files(settings, deployment)
    remedy = f"put it there, or correct '{{}}' of '{deployment.upstream}'"
    return [Missing(f"no file {path}", remedy.format(key)) for key, path in files if path in facts.absent]


def _tls_files(settings: Settings, deployment: Deployment) -> list[tuple[str, Path]]:
    """The files by which a hosted upstream is trusted and told who asks, by their keys."""
    spec = settings.upstreams[deployment.upstream]
    if not isinstance(spec, OpenAIUpstream | OpenRouterUpstream):
        return []
    named = {"ca_file": spec.ca_file, "client_cert": spec.client_cert, "client_key": spec.client_key}
    return [(key, path) for key, path in named.items() if path is not None]


def _missing_gpu(settings: Settings, deployment: Deployment, facts: Facts) -> list[Missing]:
    if not _wants_gpu(settings, deployment):
        return []
    device = _device(settings, deployment)
    _, _, number = device.partition(":")
    needed = int(number or 0) + 1
    if len(facts.gpus) >= needed:
        return []
    if facts.gpus:
        return [Missing(f"no GPU {number}", f"this machine has {len(facts.gpus)}; set 'device' of '{deployment.upstream}' to another one")]
    return [Missing("no NVIDIA GPU", "use a machine that has one with its driver (nvidia-smi must work), or another profile")]


def _needs_no_nvidia_gpu(installed: Environment | None) -> bool:
    """Whether the engine in this environment runs on something else."""
    return installed is not None and installed.manifest is not None and installed.manifest.device != "cuda"


def _missing_vllm(name: str, spec: VllmUpstream) -> Missing:
    command = install_command(spec.device)
    if spec.python is not None:
        remedy = f"correct 'python' of '{name}', or leave it out and run {command}"
        return Missing(f"no vLLM at {spec.python}", remedy)
    return Missing("vLLM is not installed", f"{command}, or set 'python' of '{name}' to that of an environment which has it")


def _missing_weights(model: ModelSpec, deployment: Deployment, facts: Facts) -> list[Missing]:
    state = facts.weights.get(deployment.model, "absent")
    if state == "present":
        return []
    if deployment.model.startswith(BUILTIN_PREFIX):
        return [Missing(f"the weights of {deployment.model} are not in this checkout", "clone Tandem anew")]
    if os.path.isabs(deployment.model):
        return [Missing(f"no model in {deployment.model}", "put config.json or model_index.json and the .safetensors files there")]
    what = "weights not downloaded" if state == "absent" else "weights only partly downloaded"
    return [Missing(what, f"tandem models download {model.name}")]


def _is_local(settings: Settings, deployment: Deployment) -> bool:
    return not isinstance(settings.upstreams[deployment.upstream], HostedUpstream)


def _device(settings: Settings, deployment: Deployment) -> str:
    spec = settings.upstreams[deployment.upstream]
    return spec.device if isinstance(spec, VllmUpstream | TransformersUpstream | DiffusersUpstream) else "auto"


def _wants_gpu(settings: Settings, deployment: Deployment) -> bool:
    """Whether it cannot run without an NVIDIA GPU: vLLM unless told otherwise, our own workers only if told so."""
    device = _device(settings, deployment)
    is_vllm = isinstance(settings.upstreams[deployment.upstream], VllmUpstream)
    return device.startswith("cuda") or (is_vllm and device == "auto")
