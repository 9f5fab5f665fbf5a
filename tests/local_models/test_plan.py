"""The planner's figures against published and measured ones, and what must hold for any machine."""

from __future__ import annotations

import random
import re
from dataclasses import replace
from pathlib import Path

import pytest

from local_models.cache_layout import CacheLayout, cache_layout
from local_models.checkpoints import PUBLISHED, Checkpoint, published_checkpoint
from local_models.plan import GIB, Asked, Card, Plan, weights_of
from local_models.planner import NoPlan, make_plan
from local_models.shapes import parameters_of

SIZES = (8, 12, 16, 20, 24, 32, 40, 48, 80, 96, 141, 180)
MACHINES = [(size,) for size in SIZES] + [(24, 24), (24, 24, 24, 24)]
NOTHING = Asked()
NINE = "Qwen/Qwen3.5-9B"
PAGE = Path(__file__).parents[2] / "docs" / "vllm.md"
FORMS = {"16-bit": NINE, "FP8": "RedHatAI/Qwen3.5-9B-FP8-dynamic", "4-bit": "RedHatAI/Qwen3.5-9B-quantized.w4a16"}


def known(name: str) -> Checkpoint:
    checkpoint = published_checkpoint(name)
    assert checkpoint is not None
    return checkpoint


def cards(*sizes: float) -> list[Card]:
    return [Card(int(size * GIB), int(size * GIB)) for size in sizes]


def asked(text_only: bool = False, mtp: bool = False, **flags: object) -> Asked:
    """`max_model_len=8192` as --max-model-len 8192."""
    given = {f"--{name.replace('_', '-')}": None if value is None else str(value) for name, value in flags.items()}
    return Asked(given, text_only=text_only, mtp=mtp)


def layout(name: str, **changes: object) -> CacheLayout:
    choices = {"tensor_parallel": 1, "kv_format_bytes": 2, "format_bytes": 2, "prefix_caching": True, "drafts": 0, **changes}
    return cache_layout(known(name).shape, **choices)  # type: ignore[arg-type]


def planned(name: str, gpus: list[Card], wish: Asked = NOTHING) -> Plan:
    plan = make_plan(known(name), gpus, wish)
    assert isinstance(plan, Plan), str(plan)
    return plan


def refused(name: str, gpus: list[Card], wish: Asked = NOTHING) -> NoPlan:
    plan = make_plan(known(name), gpus, wish)
    assert isinstance(plan, NoPlan), str(plan)
    return plan


# Against what was published and measured


@pytest.mark.parametrize(
    ("name", "billions"),
    [("Qwen/Qwen3.5-0.8B", 0.87), ("Qwen/Qwen3.5-2B", 2.27), ("Qwen/Qwen3.5-4B", 4.66), (NINE, 9.65), ("Qwen/Qwen3.5-27B", 27.8)],
)
def test_the_numbers_of_a_model_are_those_of_its_card(name: str, billions: float) -> None:
    numbers = parameters_of(known(name).shape)
    assert numbers is not None
    total = numbers.matrices + numbers.recurrent + numbers.embeddings + numbers.vision + numbers.mtp
    assert total / 1e9 == pytest.approx(billions, rel=0.005)


@pytest.mark.parametrize(
    ("name", "gigabytes"),
    [
        (NINE, 19.3),
        ("Qwen/Qwen3.5-4B", 9.34),
        ("RedHatAI/Qwen3.5-9B-quantized.w4a16", 10.95 + 0.487),
        ("Qwen/Qwen3.5-27B-GPTQ-Int4", 29),
    ],
)
def test_a_checkpoint_has_the_size_that_it_has_on_disk(name: str, gigabytes: float) -> None:
    assert known(name).weights.stored / 1e9 == pytest.approx(gigabytes, rel=0.05)


@pytest.mark.parametrize(
    ("name", "text_only", "gibibytes"),
    [
        (NINE, False, 17.66),  # vLLM 0.19, L40S
        ("Qwen/Qwen3.5-4B", False, 8.61),  # vLLM 0.29, L4
        ("Qwen/Qwen3.5-27B-FP8", False, 27.67),  # a 3.6 of the same shape, RTX 5090
        ("RedHatAI/Qwen3.5-9B-quantized.w4a16", True, 9.48),
        ("RedHatAI/Qwen3.5-9B-FP8-dynamic", False, 13e9 / GIB),  # on disk
    ],
)
def test_weights_take_what_vllm_said_they_take(name: str, text_only: bool, gibibytes: float) -> None:
    assert weights_of(known(name), None, NOTHING, text_only) / GIB == pytest.approx(gibibytes, rel=0.05)


def test_kv_cache_and_state_of_the_9b() -> None:
    sixteen = layout(NINE)
    assert sixteen.kv_bytes == 32 * 1024
    assert sixteen.state_bytes / 2**20 == pytest.approx(48 + 1, rel=0.05)
    assert layout(NINE, kv_format_bytes=1).kv_bytes == 16 * 1024
    shape = known(NINE).shape
    assert shape.linear is not None
    halved = replace(shape, linear=replace(shape.linear, state_format="bfloat16"))
    halved_layout = cache_layout(halved, tensor_parallel=1, kv_format_bytes=2, format_bytes=2, prefix_caching=True, drafts=0)
    assert halved_layout.state_bytes / 2**20 == pytest.approx(24 + 1, rel=0.05)


@pytest.mark.parametrize(
    ("name", "kv_format_bytes", "tokens"),
    [
        ("Qwen/Qwen3.5-0.8B", 2, 544),
        ("Qwen/Qwen3.5-4B", 2, 528),
        (NINE, 2, 528),
        ("Qwen/Qwen3.5-27B", 2, 784),
        ("Qwen/Qwen3.5-27B", 1, 1568),
    ],
)
def test_a_block_has_the_tokens_that_vllm_logs(name: str, kv_format_bytes: int, tokens: int) -> None:
    assert layout(name, kv_format_bytes=kv_format_bytes).block_tokens == tokens


@pytest.mark.parametrize(
    ("name", "pool_gib", "prefix_caching", "tokens", "concurrency"),
    [
        (NINE, 20.27, False, 262_144, 2.52),  # vLLM 0.19, L40S
        ("Qwen/Qwen3.5-4B", 9.10, True, 32_768, 8.17),  # vLLM 0.29, L4
    ],
)
def test_a_pool_holds_the_sequences_that_vllm_logs(
    name: str, pool_gib: float, prefix_caching: bool, tokens: int, concurrency: float
) -> None:
    blocks = layout(name, prefix_caching=prefix_caching)
    held = int(pool_gib * GIB) // blocks.block_bytes / blocks.blocks_for(tokens)
    assert held == pytest.approx(concurrency, rel=0.005)


@pytest.mark.parametrize(
    ("name", "card", "utilisation", "pool_gib"),
    [
        ("Qwen/Qwen3.5-4B", Card(int(22.49 * GIB), int(22.3 * GIB)), 0.92, 9.10),
        (NINE, Card(int(44.99 * GIB), int(44.6 * GIB)), 0.90, 20.27 - 0.65),  # 0.19 did not count its CUDA graphs
    ],
)
def test_the_pool_is_a_little_smaller_than_the_one_that_vllm_measured(name: str, card: Card, utilisation: float, pool_gib: float) -> None:
    plan = planned(name, [card], asked(gpu_memory_utilization=utilisation, max_num_seqs=256))
    assert 0.95 <= plan.left / GIB / pool_gib <= 1


# Every size, every form


@pytest.mark.parametrize("text_only", [False, True], ids=["pictures", "text"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("sizes", MACHINES, ids=str)
def test_the_9b_fits_or_it_is_said_what_does(sizes: tuple[int, ...], form: str, text_only: bool) -> None:
    plan = make_plan(known(FORMS[form]), cards(*sizes), Asked(text_only=text_only))
    if isinstance(plan, Plan):
        assert sizes[0] >= (12 if text_only else 16)
        check(plan)
    else:
        assert sizes[0] <= 16
        assert "needs" in plan.reason
        assert plan.remedies
        assert any("take " in remedy or "GPUs" in remedy for remedy in plan.remedies)


@pytest.mark.parametrize(
    ("sizes", "form", "gpus", "context"),
    [
        ((24,), "FP8 (quantised while it loads)", 1, 120_000),
        ((32,), "16-bit", 1, 128_000),
        ((48,), "16-bit", 1, 262_144),
        ((80,), "16-bit", 1, 262_144),
        ((24, 24), "16-bit", 2, 262_144),
        ((24, 24, 24, 24), "16-bit", 2, 262_144),
        ((80, 80), "16-bit", 1, 262_144),
    ],
    ids=str,
)
def test_the_presets_of_the_9b(sizes: tuple[int, ...], form: str, gpus: int, context: int) -> None:
    plan = planned(NINE, cards(*sizes))
    assert (plan.form, len(plan.cards)) == (form, gpus)
    assert plan.context >= context
    assert plan.is_comfortable


def check(plan: Plan) -> None:
    """What must hold for every plan."""
    layout, flags = plan.layout, dict(zip(plan.flags[::2], plan.flags[1::2], strict=True))
    pool = (plan.blocks + 1) * layout.block_bytes
    assert plan.weights + plan.reserve + pool <= plan.budget
    for card in plan.cards:
        assert plan.utilisation * card.seen <= card.free
    assert plan.blocks >= layout.blocks_for(plan.context)
    assert min(4096, plan.checkpoint.shape.max_context) <= plan.context <= plan.checkpoint.shape.max_context
    assert plan.sequences >= 1
    assert plan.concurrency >= 1
    assert plan.checkpoint.shape.kv_heads % len(plan.cards) == 0
    captured = int(flags.get("--max-cudagraph-capture-size", min(512, 2 * plan.sequences)))
    assert captured <= plan.blocks


def test_no_plan_is_impossible() -> None:
    rng = random.Random(5)
    fitted = 0
    for _ in range(3000):
        checkpoint = known(rng.choice(PUBLISHED).name)
        size = rng.uniform(2, 200)
        total = int(size * GIB)
        machine = [Card(total, int(total * rng.choice((1, 1, rng.random())))) for _ in range(rng.choice((1, 1, 2, 3, 4, 8)))]
        wish = asked(rng.random() < 0.3, rng.random() < 0.2)
        if rng.random() < 0.2:
            wish.given["--kv-cache-dtype"] = "fp8"  # type: ignore[index]
        plan = make_plan(checkpoint, machine, wish)
        if isinstance(plan, Plan):
            fitted += 1
            check(plan)
        else:
            assert plan.reason
            assert "needs" in plan.reason
    assert 1000 < fitted < 2900


@pytest.mark.parametrize("wish", [Asked(dtype="bfloat16"), asked(quantization="fp8")], ids=["bf16", "FP8"])
def test_more_memory_never_gives_less(wish: Asked) -> None:
    contexts = [0]
    for size in range(8, 200):
        plan = make_plan(known(NINE), cards(size), wish)
        contexts.append(plan.context if isinstance(plan, Plan) else 0)
    assert contexts == sorted(contexts)
    assert contexts[-1] == 262_144


# What the user decides


def test_what_the_user_set_counts_and_is_not_repeated() -> None:
    plan = planned(NINE, cards(80), asked(max_model_len="32k", max_num_seqs=16, gpu_memory_utilization=0.5, limit_mm_per_prompt="{}"))
    assert (plan.context, plan.sequences, plan.utilisation) == (32_000, 16, 0.5)
    assert plan.flags == ()


def test_a_short_context_is_no_reason_to_quantise() -> None:
    plan = planned(NINE, cards(24), asked(max_model_len=4096, max_num_seqs=2))
    assert plan.form == "16-bit"
    assert planned(NINE, cards(24), asked(max_model_len=16_384)).form == "FP8 (quantised while it loads)"


def test_fp8_for_the_kv_cache_gives_more_context() -> None:
    assert planned(NINE, cards(24), asked(kv_cache_dtype="fp8")).context > 1.5 * planned(NINE, cards(24)).context


def test_float32_takes_twice_the_memory_and_is_not_quantised() -> None:
    plan = planned(NINE, cards(80), replace(NOTHING, dtype="float32"))
    assert plan.weights == 2 * planned(NINE, cards(80)).weights
    assert plan.form == "16-bit"


def test_mtp_takes_its_own_weights_and_state() -> None:
    without, with_mtp = planned(NINE, cards(48)), planned(NINE, cards(48), asked(mtp=True))
    assert with_mtp.weights - without.weights == pytest.approx(486_582_848, rel=0.001)  # as RedHatAI's model_mtp.safetensors
    assert with_mtp.layout.state_blocks == 9
    assert with_mtp.concurrency < without.concurrency


def test_who_names_a_format_gets_it() -> None:
    assert planned(NINE, cards(24), replace(NOTHING, dtype="bfloat16")).form == "16-bit"
    assert planned(NINE, cards(24), asked(dtype="bfloat16")).form == "16-bit"


def test_fp8_while_loading_needs_a_gpu_that_can() -> None:
    old = [replace(card, capability=(7, 5)) for card in cards(24)]
    assert planned(NINE, old).form == "16-bit"
    new = [replace(card, capability=(8, 6)) for card in cards(24)]
    assert planned(NINE, new).form == "FP8 (quantised while it loads)"


def test_a_quantised_checkpoint_is_not_quantised_again() -> None:
    plan = planned(FORMS["4-bit"], cards(24))
    assert plan.form == "4-bit"
    assert "--quantization" not in plan.flags


def test_tensor_parallel_is_taken_from_the_user() -> None:
    plan = planned(NINE, cards(80, 80), asked(tensor_parallel_size=2))
    assert len(plan.cards) == 2
    assert "--tensor-parallel-size" not in plan.flags
    assert plan.layout.kv_bytes == 16 * 1024


def test_more_gpus_than_kv_heads_share_them() -> None:
    eight = planned("Qwen/Qwen3.5-27B", cards(*[24] * 8), asked(tensor_parallel_size=8))
    assert eight.layout.kv_bytes == layout("Qwen/Qwen3.5-27B", tensor_parallel=4).kv_bytes


def test_spare_gpus_are_mentioned() -> None:
    assert "1 of 2 GPUs is enough; --tensor-parallel-size takes more" in planned(NINE, cards(80, 80)).notes


# What cannot be


def test_memory_that_others_hold_is_not_planned_with() -> None:
    busy = [Card(48 * GIB, 30 * GIB)]
    plan = planned(NINE, busy)
    assert plan.budget < 30 * GIB
    assert plan.utilisation < 0.65
    full = refused(NINE, [Card(24 * GIB, 4 * GIB)])
    assert "end other programs on the GPU, which hold 20.0 GiB" in full.remedies


def test_a_share_of_the_gpu_that_is_not_free_is_refused_as_vllm_would() -> None:
    plan = refused(NINE, [Card(48 * GIB, 30 * GIB)], asked(gpu_memory_utilization=0.9))
    assert plan.reason == "--gpu-memory-utilization 0.9 asks for 42.3 GiB of a GPU that has 30.0 GiB of 48.0 GiB free: 0.63 is the most"
    assert plan.remedies[0] == "leave --gpu-memory-utilization out, which makes it 0.63"


def test_a_context_that_does_not_fit_is_refused_with_the_one_that_does() -> None:
    plan = refused(NINE, cards(24), asked(max_model_len=262_144))
    assert plan.reason.startswith("one sequence of 262144 tokens needs")
    longest = int(plan.remedies[0].rsplit(" ", 1)[1])
    assert plan.remedies[0] == f"leave --max-model-len out, which makes it {longest}"
    assert planned(NINE, cards(24), asked(max_model_len=longest)).context == longest


def test_remedies_are_true() -> None:
    plan = refused(NINE, cards(12))
    assert "use 2 such GPUs" in plan.remedies
    assert planned(NINE, cards(12, 12))
    small = next(remedy for remedy in plan.remedies if remedy.startswith("take Qwen/"))
    assert planned(small.removeprefix("take "), cards(12))


def test_a_checkpoint_by_others_is_only_a_suggestion() -> None:
    plan = refused(NINE, cards(24), replace(asked(max_model_len=65_536), dtype="bfloat16"))
    assert "set dtype: auto, which lets the weights become FP8" in plan.remedies
    assert any("made by others: look at it first" in remedy for remedy in plan.remedies)


@pytest.mark.parametrize(
    ("wish", "gpus", "reason", "remedy"),
    [
        (asked(tensor_parallel_size=2), 1, "--tensor-parallel-size 2 needs as many GPUs, there is 1", "set a smaller one"),
        (
            asked(tensor_parallel_size=3),
            4,
            "--tensor-parallel-size 3 does not divide the model's heads (16 attention and 4 KV heads)",
            "use one of 1, 2, 4",
        ),
        (
            asked(max_model_len=300_000),
            1,
            "--max-model-len 300000 is more than the 262144 tokens that the model was made for",
            "set a smaller one",
        ),
        (NOTHING, 0, "there is no GPU", "set device: cpu"),
    ],
)
def test_what_no_memory_would_help(wish: Asked, gpus: int, reason: str, remedy: str) -> None:
    plan = refused(NINE, cards(*[80] * gpus), wish)
    assert (plan.reason, plan.remedies) == (reason, (remedy,))


def test_graphs_are_not_captured_for_more_sequences_than_there_are_states() -> None:
    plan = planned(NINE, cards(16), asked(text_only=True, max_num_seqs=256))
    flags = dict(zip(plan.flags[::2], plan.flags[1::2], strict=True))
    assert int(flags["--max-cudagraph-capture-size"]) == plan.blocks < 512
    assert any("can run at once, the others wait" in note for note in plan.notes)
    assert "--max-cudagraph-capture-size" not in planned(NINE, cards(48)).flags


def test_the_presets_in_the_documentation_are_what_is_planned() -> None:
    rows = re.findall(
        r"^\| (\d) x (\d+) GB \| (\S+) \| (text|pictures) \|.*\| ([\d,]+) \| ([\d.]+) x ([\d,]+) \| (\d+) \|$", PAGE.read_text(), re.M
    )
    assert len(rows) > 20
    for number, size, name, content, context, concurrency, reference, sequences in rows:
        plan = planned(name, cards(*[int(size)] * int(number)), Asked(text_only=content == "text"))
        shown = (f"{plan.context:,}", f"{plan.concurrency:.1f}", f"{plan.reference:,}", str(plan.sequences))
        assert shown == (context, concurrency, reference, sequences), (number, size, name, content)
