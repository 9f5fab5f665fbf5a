"""The launch of an engine on this machine: with the environment that Tandem installed for it, where the configuration names no Python.

Looked up at each start, so that an engine that has just been installed is used by a gateway that runs already.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from config.environments import environment_for, find_environments
from local_models.engine_plan import launch_planned
from local_models.launch import EngineSpec, Launch, launch_engine


def launch_here(data_dir: Path, spec: EngineSpec, port: int, key: str) -> Launch:
    """As `launch_planned`. data_dir: where the environments lie. Raises StartFailed."""
    return launch_planned(_in_its_environment(data_dir, spec), port, key)


def preflight_here(data_dir: Path, spec: EngineSpec, port: int, key: str) -> Launch:
    """The same without a plan, at once: the memory that a plan would look at may still be another engine's. Raises StartFailed."""
    return launch_engine(_in_its_environment(data_dir, spec), port, key)


def _in_its_environment(data_dir: Path, spec: EngineSpec) -> EngineSpec:
    if spec.kind != "vllm" or spec.python is not None:
        return spec
    environment = environment_for(spec.device, find_environments(data_dir))
    return spec if environment is None else replace(spec, python=environment.python)
