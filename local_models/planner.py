"""The plan for a model on the GPUs there are, or why there is none and what would run instead. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from local_models.checkpoints import Checkpoint, published_checkpoint, quantised_siblings, smaller_sizes
from local_models.plan import Asked, Card, Plan, divides, fit, gib, is_text_only
from local_models.shapes import Shape
from local_models.vllm_args import whole


@dataclass(frozen=True)
class NoPlan:
    """It does not fit. reason: the sum that does not come out. remedies: what would help, each tried, in the order in which to try them."""

    checkpoint: Checkpoint
    cards: tuple[Card, ...]
    reason: str
    remedies: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.reason}; {', or '.join(self.remedies) or 'nothing is known that would fit'}"


def make_plan(checkpoint: Checkpoint, cards: Sequence[Card], asked: Asked) -> Plan | NoPlan:
    """The plan for these GPUs, of which the first ones are taken."""
    refusal = _refusal(checkpoint.shape, len(cards), asked)
    if refusal is not None:
        reason, remedy = refusal
        return NoPlan(checkpoint, tuple(cards), reason, (remedy,))
    found = fit(checkpoint, cards, asked)
    if not isinstance(found, Plan):
        return NoPlan(checkpoint, tuple(cards), found.reason, tuple(_remedies(checkpoint, cards, asked)))
    spare = len(cards) - len(found.cards)
    if not spare:
        return found
    note = f"{len(found.cards)} of {len(cards)} GPUs {'is' if len(found.cards) == 1 else 'are'} enough; --tensor-parallel-size takes more"
    return replace(found, notes=(*found.notes, note))


def _refusal(shape: Shape, gpus: int, asked: Asked) -> tuple[str, str] | None:
    """Why no sum needs to be done, and what to do: the machine lacks the GPUs, or the model the heads or the context."""
    wanted, longest = whole(asked.given, "--tensor-parallel-size"), whole(asked.given, "--max-model-len")
    if gpus == 0:
        return "there is no GPU", "set device: cpu"
    if wanted is not None and wanted > gpus:
        return f"--tensor-parallel-size {wanted} needs as many GPUs, there {'is 1' if gpus == 1 else f'are {gpus}'}", "set a smaller one"
    if wanted is not None and not divides(shape, wanted):
        choices = ", ".join(str(number) for number in range(1, gpus + 1) if divides(shape, number))
        heads = f"{shape.attention_heads} attention and {shape.kv_heads} KV heads"
        return f"--tensor-parallel-size {wanted} does not divide the model's heads ({heads})", f"use one of {choices}"
    if longest is not None and longest > shape.max_context:
        return f"--max-model-len {longest} is more than the {shape.max_context} tokens that the model was made for", "set a smaller one"
    return None


def _remedies(checkpoint: Checkpoint, cards: Sequence[Card], asked: Asked) -> Iterator[str]:
    """Less of what was asked for, memory that others hold, more GPUs, another checkpoint."""
    for flag in ("--max-model-len", "--max-num-seqs", "--gpu-memory-utilization", "--quantization"):
        plan = _fitted(checkpoint, cards, _without(asked, flag)) if flag in asked.given else None
        if plan is not None:
            most = {"--max-model-len": plan.context, "--max-num-seqs": plan.sequences, "--gpu-memory-utilization": plan.utilisation}.get(
                flag
            )
            yield f"leave {flag} out" if most is None else f"leave {flag} out, which makes it {most}"
    if asked.dtype != "auto" and _fitted(checkpoint, cards, replace(asked, dtype="auto")):
        yield "set dtype: auto, which lets the weights become FP8"
    if "--kv-cache-dtype" not in asked.given and _fitted(checkpoint, cards, _with(asked, "--kv-cache-dtype", "fp8")):
        yield "set --kv-cache-dtype fp8, which halves the KV cache"
    if not is_text_only(checkpoint, asked) and _fitted(checkpoint, cards, replace(asked, text_only=True)):
        yield "set text_only: true, which leaves the vision tower out"
    empty = [replace(card, free=card.total) for card in cards]
    held = max(card.total - card.free for card in cards)
    if _fitted(checkpoint, empty, asked):
        yield f"end other programs on the GPU, which hold {gib(held)}"
    more = next((number for number in (2, 4, 8) if number > len(cards) and _fitted(checkpoint, empty[:1] * number, asked)), None)
    if more is not None:
        yield f"use {more} such GPUs"
    yield from _other_checkpoints(checkpoint, cards, _without(asked, "--quantization"))


def _other_checkpoints(checkpoint: Checkpoint, cards: Sequence[Card], asked: Asked) -> Iterator[str]:
    for entry in quantised_siblings(checkpoint):
        sibling = published_checkpoint(entry.name)
        if sibling is not None and _fitted(sibling, cards, asked):
            yield f"take {entry.name} ({entry.form}{'' if entry.official else ', made by others: look at it first'})"
            break
    smaller = next((other for other in smaller_sizes(checkpoint.shape) if _fitted(other, cards, asked)), None)
    if smaller is not None:
        yield f"take {smaller.name}"


def _fitted(checkpoint: Checkpoint, cards: Sequence[Card], asked: Asked) -> Plan | None:
    if _refusal(checkpoint.shape, len(cards), asked) is not None:
        return None
    found = fit(checkpoint, cards, asked)
    return found if isinstance(found, Plan) else None


def _without(asked: Asked, flag: str) -> Asked:
    return replace(asked, given={name: value for name, value in asked.given.items() if name != flag})


def _with(asked: Asked, flag: str, value: str) -> Asked:
    return replace(asked, given={**asked.given, flag: value})
