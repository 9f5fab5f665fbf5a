"""The plan of an engine at the moment it starts: looks at its checkpoint and at the memory that is free, and launches by what comes out.

Where there is nothing to plan by (an unknown architecture, no NVIDIA GPU, a flag that divides memory otherwise), vLLM decides as ever.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from config.hardware import Gpu, available_memory, find_gpus, visible_gpus
from config.weights import find_folder
from local_models.checkpoints import Checkpoint, checkpoint_in, published_checkpoint
from local_models.cpu_plan import SPACE, plan_for_cpu
from local_models.errors import StartFailed
from local_models.launch import BUILTIN_MODELS, NOT_PLANNED, EngineSpec, Launch, Planned, launch_engine
from local_models.plan import Asked, Card, Plan, unplanned
from local_models.planner import NoPlan, make_plan
from local_models.vllm_args import given_flags

LINE = "Tandem's plan: "
LOOKS, PAUSE_S = 4, 1.0


@dataclass(frozen=True)
class Machine:
    """What was measured. memory: bytes of it that are available; None: not known."""

    gpus: tuple[Gpu, ...] = ()
    memory: int | None = None


Look = Callable[[EngineSpec, Mapping[str, str]], Machine]


def look_at_machine(spec: EngineSpec, environ: Mapping[str, str]) -> Machine:
    """What this engine's plan depends on. Takes a moment: nvidia-smi is run for anything but the CPU."""
    return Machine(memory=available_memory()) if spec.device == "cpu" else Machine(gpus=find_gpus(environ))


def launch_planned(
    spec: EngineSpec,
    port: int,
    key: str,
    environ: Mapping[str, str] | None = None,
    *,
    look: Look = look_at_machine,
    pause: Callable[[float], None] = time.sleep,
) -> Launch:
    """How to run this engine, with a plan where it is vLLM. Blocks while it looks. Raises StartFailed, also where nothing fits."""
    surroundings = os.environ if environ is None else environ
    planned = _planned(spec, {**surroundings, **spec.env}, look, pause) if spec.kind == "vllm" and spec.plan else NOT_PLANNED
    return launch_engine(spec, port, key, surroundings, planned)


def asked_by(spec: EngineSpec) -> Asked:
    """What the configuration of this engine decides already."""
    return Asked(given_flags(spec.args), spec.text_only, spec.speculative == "mtp", spec.dtype)


def find_checkpoint(model: str, environ: Mapping[str, str]) -> Checkpoint | None:
    """From the files on this disk, or else from what was published; None when neither says enough."""
    folder = find_folder(model, BUILTIN_MODELS, environ)
    return (checkpoint_in(folder, model) if folder is not None else None) or published_checkpoint(model)


def cards_for(gpus: tuple[Gpu, ...], device: str, environ: Mapping[str, str]) -> list[Card]:
    """The GPUs that an engine on this device would use, in its order."""
    visible = visible_gpus(gpus, environ)
    _, _, number = device.partition(":")
    chosen = visible[int(number) : int(number) + 1] if number else visible
    return [Card(gpu.total_bytes, gpu.free_bytes, gpu.capability) for gpu in chosen]


def _planned(spec: EngineSpec, environ: Mapping[str, str], look: Look, pause: Callable[[float], None]) -> Planned:
    asked, checkpoint = asked_by(spec), find_checkpoint(spec.model, environ)
    flag = unplanned(asked)
    if checkpoint is None or flag is not None:
        return Planned(line=f"{LINE}none, {f'{flag} is not planned for' if flag else 'the shape of this model is not known'}")
    if spec.device == "cpu":
        return _planned_for_cpu(spec, checkpoint, asked, look(spec, environ), environ)
    for number in range(1, LOOKS + 1):
        cards = cards_for(look(spec, environ).gpus, spec.device, environ)
        if not cards:
            return Planned(line=f"{LINE}none, there is no NVIDIA GPU to measure")
        plan = make_plan(checkpoint, cards, asked)
        if isinstance(plan, Plan):
            return Planned(plan.flags, line=f"{LINE}{plan}")
        # the memory of an engine that has just been stopped comes back within a second or two
        if number == LOOKS or isinstance(make_plan(checkpoint, [Card(card.total, card.total) for card in cards], asked), NoPlan):
            break
        pause(PAUSE_S)
    raise StartFailed(
        spec.engine_id, f"{checkpoint.name} does not fit: {plan}; `tandem plan` shows the sum, `plan: false` leaves it to vLLM"
    )


def _planned_for_cpu(spec: EngineSpec, checkpoint: Checkpoint, asked: Asked, machine: Machine, environ: Mapping[str, str]) -> Planned:
    if machine.memory is None:
        return Planned(line=f"{LINE}none, this system does not tell how much memory is available")
    space = environ.get(SPACE, "")
    plan = plan_for_cpu(checkpoint, machine.memory, asked, int(space) if space.isdigit() else None)
    if isinstance(plan, str):
        raise StartFailed(spec.engine_id, f"{checkpoint.name} does not fit: {plan}; `plan: false` leaves it to vLLM")
    return Planned(plan.flags, {SPACE: str(plan.space)}, f"{LINE}{plan}")
