"""How a model is run by vLLM on a CPU: how much of the machine's memory its KV cache gets, and the context that fits. Pure.

vLLM would take most of the machine's memory for itself; here the cache gets what some long conversations need, and at most half of what the
weights leave, so that other programs can live.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from local_models.cache_layout import CPU_KERNEL_BLOCK
from local_models.checkpoints import Checkpoint
from local_models.plan import GIB, Asked, gib, is_text_only, layout_of, weights_of
from local_models.vllm_args import whole

PROCESSES = 3 * GIB  # of vLLM's three processes beside the weights, measured
MOST_CONTEXT = 32_768  # a CPU needs minutes to read more
CONVERSATIONS = 8  # as long as the context, at the same time
SPACE = "VLLM_CPU_KVCACHE_SPACE"


@dataclass(frozen=True)
class CpuPlan:
    """available: bytes of memory at this moment. space: of the KV cache, in whole GiB as vLLM takes it."""

    checkpoint: Checkpoint
    available: int
    weights: int
    space: int
    context: int
    flags: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f"{self.checkpoint.name} on the CPU: {gib(self.available)} of memory available, of which weights {gib(self.weights)},"
            f" processes {gib(PROCESSES)}, KV cache and state {self.space} GiB; context {self.context}"
        )


def plan_for_cpu(checkpoint: Checkpoint, available: int, asked: Asked, space: int | None = None) -> CpuPlan | str:
    """The plan, or why it does not fit. space: GiB that the user gave the KV cache, None: open."""
    weights = weights_of(checkpoint, asked.given.get("--quantization"), asked, is_text_only(checkpoint, asked))
    layout = layout_of(checkpoint.shape, asked, 1, CPU_KERNEL_BLOCK)
    left = available - weights - PROCESSES
    fixed = whole(asked.given, "--max-model-len")
    wanted = fixed or min(checkpoint.shape.max_context, MOST_CONTEXT)
    enough = ceil(CONVERSATIONS * layout.blocks_for(wanted) * layout.block_bytes / GIB)
    gibibytes = space or min(enough, left // 2 // GIB)
    if left < GIB or gibibytes < 1:
        parts = f"weights {gib(weights)}, processes {gib(PROCESSES)}, 1 GiB of KV cache and as much again for others"
        return f"it needs {gib(weights + PROCESSES + 2 * GIB)} of memory ({parts}), {gib(available)} are available; take a smaller model"
    longest = layout.tokens_in(gibibytes * GIB // layout.block_bytes - 1)
    context = fixed or min(wanted, longest)
    if longest < context or context == 0:
        return (
            f"{gibibytes} GiB of KV cache hold one sequence of {longest} tokens, not of {wanted}; lower --max-model-len, or raise {SPACE}"
        )
    return CpuPlan(checkpoint, available, weights, gibibytes, context, () if fixed else ("--max-model-len", str(context)))
