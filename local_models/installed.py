"""The launch of an engine on this machine: with the environment that Tandem installed for it, where the configuration names no Python.

Looked up at each start, so that an engine that has just been installed is used by a gateway that runs already.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from config.environments import environment_for, find_environments
from local_models.engine_plan import launch_planned
from local_models.launch import EngineSpec, Launch


def launch_here(data_dir: Path, spec: EngineSpec, port: int, key: str) -> Launch:
    """As `launch_planned`. data_dir: where the environments lie. Raises StartFailed."""
    if spec.kind == "vllm" and spec.python is None:
        environment = environment_for(spec.device, find_environments(data_dir))
        if environment is not None:
            spec = replace(spec, python=environment.python)
    return launch_planned(spec, port, key)
