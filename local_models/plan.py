"""How a model is run by vLLM on the GPUs there are: what its parts take, what is left, and the flags that this leads to. Pure.

A plan never adds up to more memory than is free, and what cannot run is said together with what would. Where a figure is an estimate it is
one on the safe side, so that vLLM, which measures, finds a little more room than was planned.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import floor

from local_models.cache_layout import KERNEL_BLOCK, CacheLayout, cache_layout
from local_models.checkpoints import Checkpoint
from local_models.shapes import FORMAT_BYTES, Shape
from local_models.vllm_args import fraction, whole

GIB = 2**30

# CUDA counts less memory than nvidia-smi: 22.03 of 22.49 GiB on an L4, 44.4 of 45.0 on an L40S, 79.2 of 79.6 on an H100.
SEEN_BY_CUDA = 0.979
CONTEXT = int(0.3 * GIB)  # of CUDA itself, before vLLM looks how much is free: 0.19 GiB on an L4
UTILISATION = 0.92  # vLLM's own default; the rest is for kernels that take memory at the first request
# Measured beside the estimates below, which are for activations only: what loading adds to the weights, and libraries.
LIBRARIES = int(0.5 * GIB)
TENSOR_PARALLEL = int(0.5 * GIB)  # buffers of NCCL and of the all-reduce, on each GPU
GRAPHS, GRAPHS_WHOLE, CAPTURE_LIMIT = int(0.25 * GIB), int(0.6 * GIB), 512  # 0.24 to 0.78 GiB measured for all sizes up to 512
PICTURE_TOKENS = 16_384  # of the largest picture that Qwen's processor lets through, with which vLLM measures

MINIMUM_CONTEXT = 4096
COMFORT_CONTEXT, COMFORT_SEQUENCES = 32_768, 4
TYPICAL_SEQUENCE = 4096  # tokens, for how many sequences are let in at once
MOST_SEQUENCES = 256
PICTURES = {"image": 4, "video": 1}
MTP_DRAFTS = 1  # tokens that the model's own head guesses ahead
MTP = {"method": "mtp", "num_speculative_tokens": MTP_DRAFTS}

# With these vLLM divides memory in ways that are not computed here
_UNPLANNED = (
    *(
        "--config",
        "--cpu-offload-gb",
        "--data-parallel-size",
        "--decode-context-parallel-size",
        "--enable-expert-parallel",
        "--enable-lora",
    ),
    *("--hf-overrides", "--kv-cache-memory-bytes", "--num-gpu-blocks-override", "--offload-backend", "--pipeline-parallel-size"),
    *("--prefill-context-parallel-size", "--spec-method", "--spec-model"),
)


@dataclass(frozen=True)
class Card:
    """Memory of one GPU in bytes, as nvidia-smi counts it; free: at this moment. capability: compute capability, None: unknown."""

    total: int
    free: int
    capability: tuple[int, int] | None = None

    @property
    def usable(self) -> int:
        """What vLLM may ask for at most."""
        return min(self.free, self.seen) - CONTEXT

    @property
    def seen(self) -> int:
        return int(self.total * SEEN_BY_CUDA)


@dataclass(frozen=True)
class Asked:
    """What the user decided. given: flags, as `vllm_args.given_flags` returns them. mtp: speculative decoding with the model's own head."""

    given: Mapping[str, str | None] = field(default_factory=dict)
    text_only: bool = False
    mtp: bool = False
    dtype: str = "auto"


@dataclass(frozen=True)
class Plan:
    """All bytes are of one GPU. left: for the pool of blocks. concurrency: sequences of `reference` tokens that fit at the same time.

    flags: for vLLM, only those that the user did not set. form: of the weights as they run. goal_tokens, goal_sequences: what makes it
    comfortable, which is less where the user set less.
    """

    checkpoint: Checkpoint
    cards: tuple[Card, ...]
    text_only: bool
    form: str
    utilisation: float
    budget: int
    weights: int
    reserve: int
    layout: CacheLayout
    blocks: int
    context: int
    sequences: int
    goal_tokens: int
    goal_sequences: int
    flags: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def left(self) -> int:
        return self.budget - self.weights - self.reserve

    @property
    def reference(self) -> int:
        return min(self.context, self.goal_tokens)

    @property
    def concurrency(self) -> float:
        return self.blocks / self.layout.blocks_for(self.reference)

    @property
    def is_comfortable(self) -> bool:
        """A long conversation fits, and several can go on at the same time."""
        return self.context >= self.goal_tokens and self.concurrency >= self.goal_sequences

    def __str__(self) -> str:
        gpus = f"{len(self.cards)} GPU{'s' if len(self.cards) > 1 else ''}"
        return (
            f"{self.checkpoint.name} in {self.form} on {gpus}: {gib(self.budget)} each, of which weights {gib(self.weights)},"
            f" activations and graphs {gib(self.reserve)}, KV cache and state {gib(self.left)};"
            f" context {self.context}, {self.concurrency:.1f} x {self.reference} tokens at once; {' '.join(self.flags) or 'no flags'}"
        )


@dataclass(frozen=True)
class Shortage:
    """Why it does not fit. reason: in words. missing: bytes of one GPU, by which the nearest of several attempts is told."""

    reason: str
    missing: int


def unplanned(asked: Asked) -> str | None:
    """The user's flag for which there is no plan; None when there can be one."""
    return next((flag for flag in _UNPLANNED if flag in asked.given), None)


def fit(checkpoint: Checkpoint, cards: Sequence[Card], asked: Asked) -> Plan | Shortage:
    """The plan for these GPUs, of which the first ones are taken; there must be one at least, and a number of them that divides the model.

    1. what the user set counts   2. the weights as they are, on as few GPUs as make it comfortable   3. quantised to FP8 while loading
    4. what is not comfortable but runs: the one with the longest context
    """
    attempts = [
        _attempt(checkpoint, tuple(cards[:number]), asked, quantisation)
        for quantisation in _quantisations(checkpoint, cards, asked)
        for number in numbers_of_gpus(checkpoint.shape, len(cards), asked)
    ]
    plans = [attempt for attempt in attempts if isinstance(attempt, Plan)]
    comfortable = next((plan for plan in plans if plan.is_comfortable), None)
    if comfortable is not None:
        return comfortable
    if plans:
        return max(plans, key=lambda plan: (plan.context, plan.concurrency))
    return min((attempt for attempt in attempts if isinstance(attempt, Shortage)), key=lambda shortage: shortage.missing)


def gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"


def divides(shape: Shape, gpus: int) -> bool:
    """Whether vLLM can give each GPU as many heads: all kinds evenly, KV heads one each at least."""
    linear = (shape.linear.key_heads, shape.linear.value_heads) if shape.linear else ()
    heads = (shape.attention_heads, *linear)
    return all(number % gpus == 0 for number in heads) and (shape.kv_heads % gpus == 0 or gpus % shape.kv_heads == 0)


def numbers_of_gpus(shape: Shape, gpus: int, asked: Asked) -> list[int]:
    """As the user said, or every number that gives each GPU KV heads of its own, fewest first."""
    wanted = whole(asked.given, "--tensor-parallel-size")
    if wanted:
        return [wanted]
    return [number for number in range(1, gpus + 1) if shape.kv_heads % number == 0 and divides(shape, number)]


def _quantisations(checkpoint: Checkpoint, cards: Sequence[Card], asked: Asked) -> list[str | None]:
    """What to try: None is as the files are. FP8 while loading needs an Ampere GPU or a newer one, and a user who left the format open."""
    if "--quantization" in asked.given:
        return [asked.given["--quantization"]]
    able = all(card.capability is None or card.capability >= (8, 0) for card in cards)
    is_open = asked.dtype == "auto" and "--dtype" not in asked.given
    return [None, "fp8"] if able and is_open and checkpoint.weights.matrices else [None]


def _attempt(checkpoint: Checkpoint, cards: tuple[Card, ...], asked: Asked, quantisation: str | None) -> Plan | Shortage:
    """The plan for exactly these GPUs and this form of the weights."""
    utilisation, budget, trouble = _budget(cards, asked)
    if trouble is not None:
        return trouble
    shape, given = checkpoint.shape, asked.given
    text_only = is_text_only(checkpoint, asked)
    weights = weights_of(checkpoint, quantisation, asked, text_only) // len(cards)
    layout = layout_of(shape, asked, len(cards))
    fixed_context, fixed_sequences = whole(given, "--max-model-len"), whole(given, "--max-num-seqs")
    minimum = fixed_context or min(MINIMUM_CONTEXT, shape.max_context)
    reserve, blocks, sequences = _room(shape, cards, asked, budget - weights, layout, minimum, text_only)
    if blocks < layout.blocks_for(minimum):
        one = (layout.blocks_for(minimum) + 1) * layout.block_bytes
        form = _form(checkpoint, quantisation)
        parts = f"weights {gib(weights)} in {form}, activations and graphs {gib(reserve)}, KV cache and state {gib(one)}"
        need = weights + reserve + one
        reason = f"one sequence of {minimum} tokens needs {gib(need)} on each GPU ({parts}), vLLM may use {gib(budget)}"
        return Shortage(reason, need - budget)
    context = fixed_context or _context(layout, blocks, shape.max_context)
    sequences = fixed_sequences or min(sequences, _sequences(layout, blocks, context))
    decided = Plan(
        checkpoint=checkpoint,
        cards=cards,
        text_only=text_only,
        form=_form(checkpoint, quantisation),
        utilisation=utilisation,
        budget=budget,
        weights=weights,
        reserve=reserve,
        layout=layout,
        blocks=blocks,
        context=context,
        sequences=sequences,
        goal_tokens=min(fixed_context or shape.max_context, COMFORT_CONTEXT),
        goal_sequences=min(fixed_sequences or COMFORT_SEQUENCES, COMFORT_SEQUENCES),
        flags=(),
        notes=_notes(checkpoint, quantisation, layout, blocks, sequences),
    )
    return replace(decided, flags=tuple(_flags(decided, asked, quantisation)))


def _budget(cards: tuple[Card, ...], asked: Asked) -> tuple[float, int, Shortage | None]:
    """Part of each GPU that vLLM may use, and what that is on the smallest of them."""
    wanted = fraction(asked.given, "--gpu-memory-utilization")
    smallest = min(cards, key=lambda card: card.seen)
    if wanted is None:
        part = floor(min(UTILISATION, *(card.usable / card.seen for card in cards)) * 100) / 100
        return part, max(0, int(part * smallest.seen)), None
    full = next((card for card in cards if wanted * card.seen > min(card.free, card.seen)), None)
    if full is None:
        return wanted, int(wanted * smallest.seen), None
    most = max(0, floor(full.usable / full.seen * 100) / 100)
    needed = int(wanted * full.seen)
    reason = f"--gpu-memory-utilization {wanted:g} asks for {gib(needed)} of a GPU that has {gib(full.free)} of {gib(full.total)} free"
    return wanted, 0, Shortage(f"{reason}: {most:g} is the most", needed - full.free)


def is_text_only(checkpoint: Checkpoint, asked: Asked) -> bool:
    return checkpoint.shape.vision is None or asked.text_only or "--language-model-only" in asked.given


def weights_of(checkpoint: Checkpoint, quantisation: str | None, asked: Asked, text_only: bool) -> int:
    """Bytes of the weights as they run, over all GPUs. MTP's are loaded only where it is used."""
    stored = checkpoint.weights
    scale = _number_bytes(asked) / FORMAT_BYTES[checkpoint.shape.number_format] if checkpoint.form == "16-bit" else 1.0
    parts = stored.matrices * _quantised_share(quantisation) + stored.other + (0 if text_only else stored.vision)
    return int(scale * (parts + (stored.mtp if _drafts(asked) else 0)))


def _number_bytes(asked: Asked) -> int:
    """Bytes of an unquantised number as it runs. Left to itself, vLLM makes 16 bits of 32."""
    dtype = asked.given.get("--dtype") or asked.dtype
    return 4 if dtype == "float" else FORMAT_BYTES.get(dtype, 2)


def layout_of(shape: Shape, asked: Asked, gpus: int, kernel_block: int = KERNEL_BLOCK) -> CacheLayout:
    """Blocks of the pool as the user's flags make them."""
    kv_format = asked.given.get("--kv-cache-dtype") or "auto"
    model_bytes = _number_bytes(asked)
    state = asked.given.get("--mamba-ssm-cache-dtype")
    if shape.linear is not None and state in FORMAT_BYTES:
        shape = replace(shape, linear=replace(shape.linear, state_format=state))
    return cache_layout(
        shape,
        tensor_parallel=gpus,
        kv_format_bytes=1 if kv_format.startswith(("fp8", "int8")) else FORMAT_BYTES.get(kv_format, model_bytes),
        format_bytes=model_bytes,
        prefix_caching="--no-enable-prefix-caching" not in asked.given,
        drafts=_drafts(asked),
        kernel_block=kernel_block,
    )


def _drafts(asked: Asked) -> int:
    """Tokens that speculative decoding guesses ahead."""
    text = asked.given.get("--speculative-config")
    if text is None:
        return MTP_DRAFTS if asked.mtp else 0
    try:
        said = json.loads(text)
    except ValueError:
        return 1
    number = said.get("num_speculative_tokens", 1) if isinstance(said, dict) else 1
    return number if isinstance(number, int) else 1


def _quantised_share(quantisation: str | None) -> float:
    """What is left of a 16-bit matrix. A name that says nothing here is that of the checkpoint's own form."""
    if quantisation is None:
        return 1.0
    if quantisation.startswith(("fp8", "int8", "mxfp8")):
        return 0.5
    return 0.28 if quantisation.startswith(("bitsandbytes", "nvfp4", "mxfp4")) else 1.0


def _form(checkpoint: Checkpoint, quantisation: str | None) -> str:
    if checkpoint.form != "16-bit" or quantisation is None:
        return checkpoint.form
    return f"{'FP8' if quantisation == 'fp8' else quantisation} (quantised while it loads)"


def _reserve(shape: Shape, cards: tuple[Card, ...], asked: Asked, sequences: int, text_only: bool) -> int:
    """Activations at their peak, CUDA graphs and libraries. Between 0.3 and 0.5 GiB more than measured with vLLM 0.19 and 0.29."""
    smallest = min(card.total for card in cards)
    batched = whole(asked.given, "--max-num-batched-tokens") or (2048 if smallest < 70 * GIB else 8192 if smallest < 160 * GIB else 16_384)
    language = batched * (8 * shape.hidden + 3 * shape.intermediate) * 2 + sequences * shape.vocabulary * 8
    pictures = 0
    if shape.vision is not None and not text_only:
        patches = PICTURE_TOKENS * shape.vision.merge**2
        pictures = patches * (6 * shape.vision.hidden + 2 * shape.vision.intermediate) * 2
    graphs = 0 if "--enforce-eager" in asked.given else GRAPHS + GRAPHS_WHOLE * _captured(sequences, asked) // CAPTURE_LIMIT
    return LIBRARIES + max(language, pictures) + graphs + (TENSOR_PARALLEL if len(cards) > 1 else 0)


def _captured(sequences: int, asked: Asked) -> int:
    """Largest batch for which vLLM records a CUDA graph."""
    return whole(asked.given, "--max-cudagraph-capture-size") or min(CAPTURE_LIMIT, 2 * sequences * (1 + _drafts(asked)))


def _room(
    shape: Shape, cards: tuple[Card, ...], asked: Asked, room: int, layout: CacheLayout, minimum: int, text_only: bool
) -> tuple[int, int, int]:
    """Reserve, blocks and sequences within `room` bytes. The more sequences, the larger the reserve: half as many until it comes out."""

    def blocks_beside(reserve: int) -> int:
        return max(0, room - reserve) // layout.block_bytes - 1  # one is vLLM's own

    fixed = whole(asked.given, "--max-num-seqs")
    sequences = fixed or _sequences(layout, blocks_beside(_reserve(shape, cards, asked, 1, text_only)), shape.max_context)
    while True:
        reserve = _reserve(shape, cards, asked, sequences, text_only)
        blocks = blocks_beside(reserve)
        if blocks >= layout.blocks_for(minimum) or fixed or sequences == 1:
            return reserve, blocks, sequences
        sequences //= 2


def _context(layout: CacheLayout, blocks: int, native: int) -> int:
    """The longest of which two fit, so that a long request does not stop all others; where that is short, up to what one may have."""
    pair, alone = layout.tokens_in(blocks // 2), layout.tokens_in(blocks)
    longest = min(native, max(pair, min(alone, COMFORT_CONTEXT)))
    return longest if longest in (native, COMFORT_CONTEXT) else max(longest // 1024 * 1024, min(longest, 1024))


def _sequences(layout: CacheLayout, blocks: int, context: int) -> int:
    """How many are let in at once: each has its state, and room for a typical length."""
    return max(1, min(MOST_SEQUENCES, blocks // layout.blocks_for(min(context, TYPICAL_SEQUENCE))))


def _notes(checkpoint: Checkpoint, quantisation: str | None, layout: CacheLayout, blocks: int, sequences: int) -> tuple[str, ...]:
    notes: list[str] = []
    if quantisation == "fp8" and checkpoint.form == "16-bit":
        notes.append("the weights become FP8 while they load: nothing else is downloaded, and quality is nearly that of 16 bits")
    if layout.state_bytes:
        notes.append(f"a hybrid model: prefixes are cached in blocks of {layout.block_tokens} tokens, shorter ones are not found again")
    if sequences > blocks // layout.blocks_for(1):
        notes.append(f"of {sequences} sequences at most {blocks // layout.blocks_for(1)} can run at once, the others wait")
    return tuple(notes)


def _flags(plan: Plan, asked: Asked, quantisation: str | None) -> Iterator[str]:
    """Only what the user left open."""
    given = asked.given
    if len(plan.cards) > 1 and "--tensor-parallel-size" not in given:
        yield from ("--tensor-parallel-size", str(len(plan.cards)))
    if quantisation is not None and "--quantization" not in given:
        yield from ("--quantization", quantisation)
    if "--gpu-memory-utilization" not in given:
        yield from ("--gpu-memory-utilization", f"{plan.utilisation:g}")
    if "--max-model-len" not in given:
        yield from ("--max-model-len", str(plan.context))
    if "--max-num-seqs" not in given:
        yield from ("--max-num-seqs", str(plan.sequences))
    if not plan.text_only and "--limit-mm-per-prompt" not in given:
        yield from ("--limit-mm-per-prompt", json.dumps(PICTURES, separators=(",", ":")))
    # A graph for more sequences than there are states ends the engine: vLLM PR 34571
    if _captured(plan.sequences, asked) > plan.blocks and "--max-cudagraph-capture-size" not in given:
        yield from ("--max-cudagraph-capture-size", str(plan.blocks))
