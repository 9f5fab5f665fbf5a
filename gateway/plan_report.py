"""`tandem plan`: what a model takes of a GPU's memory under vLLM and what that leaves, as a table or as JSON."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from adapters.build import engine_specs
from config.hardware import available_memory, find_gpus
from config.schema import Settings
from gateway.startup import CannotStart
from local_models.checkpoints import PUBLISHED, Checkpoint
from local_models.cpu_plan import CpuPlan, plan_for_cpu
from local_models.engine_plan import asked_by, cards_for, find_checkpoint
from local_models.launch import EngineSpec, feature_flags
from local_models.plan import GIB, Card, Plan, gib, unplanned
from local_models.planner import NoPlan, make_plan
from local_models.vllm_args import given_flags

DEFAULT_MODEL = "Qwen/Qwen3.5-9B"
USUAL_GB = (24, 48, 80)
EXIT_NOTHING_FITS = 1


@dataclass(frozen=True)
class Wanted:
    """What the command line asked for. memory: of each GPU, in GB as its maker and nvidia-smi count (2**30); empty: this machine's."""

    model: str | None = None
    memory: tuple[float, ...] = ()
    gpus: int | None = None
    text_only: bool = False
    as_json: bool = False


def report(settings: Settings, wanted: Wanted, environ: Mapping[str, str]) -> int:
    """Print the plan. Returns 1 if the model fits nowhere of what was asked. Raises CannotStart."""
    spec = _spec(settings, wanted)
    checkpoint = find_checkpoint(spec.model, {**environ, **spec.env})
    if checkpoint is None:
        known = ", ".join(entry.name for entry in PUBLISHED)
        raise CannotStart(
            f"nothing is known of the memory that {spec.model!r} takes: it is not on this disk, or its architecture is not understood;"
            f" download it, name its folder, or take one of {known}"
        )
    flag = unplanned(asked_by(spec))
    if flag is not None:
        raise CannotStart(f"there is no plan with {flag}, which is in the args of {spec.engine_id!r}: vLLM divides memory otherwise then")
    if spec.device == "cpu" and not wanted.memory:
        return _report_cpu(spec, checkpoint, wanted, environ)
    said, machines = _machines(spec, wanted, environ)
    plans = [make_plan(checkpoint, cards, asked_by(spec)) for cards in machines]
    if wanted.as_json:
        print(json.dumps({"model": spec.model, "source": checkpoint.source, "plans": [_object(spec, plan) for plan in plans]}, indent=2))
    else:
        for line in _lines(spec, checkpoint, said, plans):
            print(line)
    return 0 if any(isinstance(plan, Plan) for plan in plans) else EXIT_NOTHING_FITS


def _spec(settings: Settings, wanted: Wanted) -> EngineSpec:
    """The engine to plan for: of a public name with what its upstream sets, or one for a checkpoint with nothing set."""
    specs = engine_specs(settings)
    vllm = {model.name: [deployment.engine_id for deployment in model.deployments] for model in settings.models}
    engines = {
        name: next((specs[engine] for engine in ids if engine in specs and specs[engine].kind == "vllm"), None)
        for name, ids in vllm.items()
    }
    model = wanted.model or next((name for name, spec in engines.items() if spec is not None), DEFAULT_MODEL)
    spec = engines.get(model)
    if spec is None:
        if model in engines:
            raise CannotStart(f"model {model!r} has no deployment on a vllm upstream; name a checkpoint, such as {DEFAULT_MODEL}")
        folder = Path(model).expanduser()
        model = str(folder.absolute()) if folder.is_dir() else model
        spec = EngineSpec(engine_id=model, kind="vllm", model=model, served_model_name=model)
    return replace(spec, text_only=spec.text_only or wanted.text_only)


def _machines(spec: EngineSpec, wanted: Wanted, environ: Mapping[str, str]) -> tuple[str | None, list[list[Card]]]:
    """The GPUs to plan for, and what to say about where they are from. More than one set of them only where this machine has none."""
    if wanted.memory:
        if wanted.gpus is not None and len(wanted.memory) not in (1, wanted.gpus):
            raise CannotStart(f"--memory names {len(wanted.memory)} GPUs and --gpus {wanted.gpus}; leave --gpus out, or name one size")
        sizes = wanted.memory * (wanted.gpus or 1) if len(wanted.memory) == 1 else wanted.memory
        return None, [[_empty(size) for size in sizes]]
    cards = cards_for(find_gpus(environ), spec.device, {**environ, **spec.env})
    if not cards:
        return "this machine has no NVIDIA GPU; this is how it would be on usual ones:", [
            [_empty(size)] * (wanted.gpus or 1) for size in USUAL_GB
        ]
    if wanted.gpus is not None and wanted.gpus > len(cards):
        raise CannotStart(f"--gpus {wanted.gpus} is more than the {len(cards)} of this machine; name their memory too, with --memory")
    return None, [cards[: wanted.gpus]]


def _empty(size_gb: float) -> Card:
    return Card(int(size_gb * GIB), int(size_gb * GIB))


def _lines(spec: EngineSpec, checkpoint: Checkpoint, said: str | None, plans: Sequence[Plan | NoPlan]) -> Iterator[str]:
    yield f"{checkpoint.name} (figures: {checkpoint.source})"
    if said is not None:
        yield said
    for plan in plans:
        yield ""
        yield _headline(plan)
        for name, value, remark in _rows(plan) if isinstance(plan, Plan) else ():
            yield f"  {name:<22}{value:>12}  {remark}".rstrip()
        yield from _plan_tail(spec, plan) if isinstance(plan, Plan) else _no_plan_tail(plan)


def _headline(plan: Plan | NoPlan) -> str:
    sizes = [f"{card.total / GIB:.0f}" for card in plan.cards]
    gpus = f"{len(sizes)} x {sizes[0]} GB" if len(set(sizes)) == 1 else f"{', '.join(sizes)} GB"
    if isinstance(plan, NoPlan):
        return f"{gpus}: does not fit"
    return f"{gpus}, {'text only' if plan.text_only else 'with pictures'}{', figures of each GPU' if len(sizes) > 1 else ''}"


def _rows(plan: Plan) -> Iterator[tuple[str, str, str]]:
    layout, free = plan.layout, min(card.free for card in plan.cards)
    yield "free", gib(free), f"of {gib(min(card.total for card in plan.cards))}"
    yield "vLLM may use", gib(plan.budget), f"{plan.utilisation:g} of what CUDA sees"
    yield "weights", gib(plan.weights), plan.form
    yield "activations, graphs", gib(plan.reserve), "an estimate, on the safe side"
    yield "left", gib(plan.left), f"{plan.blocks} blocks of {layout.block_tokens} tokens"
    yield "KV cache", f"{layout.kv_bytes / 2**10:.1f} KiB", "a token"
    if layout.state_bytes:
        yield "state", f"{layout.state_bytes / 2**20:.1f} MiB", f"a sequence, whatever its length; it holds {layout.state_blocks} blocks"
    yield "context", f"{plan.context:,}", f"tokens, of {plan.checkpoint.shape.max_context:,}"
    yield "concurrency", f"{plan.concurrency:.1f}", f"sequences of {plan.reference:,} tokens at the same time; {plan.sequences} are let in"


def _plan_tail(spec: EngineSpec, plan: Plan) -> Iterator[str]:
    yield f"  flags  {shlex.join(_flags(spec, plan)) or 'none: the configuration sets them all'}"
    for note in plan.notes:
        yield f"  {note}"


def _no_plan_tail(plan: NoPlan) -> Iterator[str]:
    yield f"  {plan.reason}"
    for remedy in plan.remedies:
        yield f"  -> {remedy}"


def _flags(spec: EngineSpec, plan: Plan) -> list[str]:
    return [*feature_flags(spec, given_flags(spec.args)), *plan.flags]


def _object(spec: EngineSpec, plan: Plan | NoPlan) -> dict[str, Any]:
    gpus = [{"total_bytes": card.total, "free_bytes": card.free} for card in plan.cards]
    if isinstance(plan, NoPlan):
        return {"fits": False, "gpus": gpus, "reason": plan.reason, "remedies": list(plan.remedies)}
    return {
        "fits": True,
        "gpus": gpus,
        "text_only": plan.text_only,
        "weights_form": plan.form,
        "budget_bytes": plan.budget,
        "weights_bytes": plan.weights,
        "reserve_bytes": plan.reserve,
        "left_bytes": plan.left,
        "kv_bytes_per_token": plan.layout.kv_bytes,
        "state_bytes_per_sequence": plan.layout.state_bytes,
        "blocks": plan.blocks,
        "block_tokens": plan.layout.block_tokens,
        "context": plan.context,
        "sequences": plan.sequences,
        "concurrency": round(plan.concurrency, 2),
        "concurrency_tokens": plan.reference,
        "flags": _flags(spec, plan),
        "notes": list(plan.notes),
    }


def _report_cpu(spec: EngineSpec, checkpoint: Checkpoint, wanted: Wanted, environ: Mapping[str, str]) -> int:
    memory = available_memory()
    if memory is None:
        raise CannotStart("this system does not tell how much memory is available")
    plan = plan_for_cpu(checkpoint, memory, asked_by(spec))
    if wanted.as_json:
        print(json.dumps({"model": spec.model, "source": checkpoint.source, "plans": [_cpu_object(plan)]}, indent=2))
    else:
        print(plan)
    return 0 if isinstance(plan, CpuPlan) else EXIT_NOTHING_FITS


def _cpu_object(plan: CpuPlan | str) -> dict[str, Any]:
    if isinstance(plan, str):
        return {"fits": False, "gpus": [], "reason": plan, "remedies": []}
    return {
        "fits": True,
        "gpus": [],
        "available_bytes": plan.available,
        "weights_bytes": plan.weights,
        "left_bytes": plan.space * GIB,
        "context": plan.context,
        "flags": list(plan.flags),
    }
