"""What of a model decides about memory, read from its config.json. Pure.

None where this module does not understand the architecture: a figure that is a guess would become a plan that fails.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

FORMAT_BYTES: Mapping[str, int] = {"float32": 4, "float16": 2, "bfloat16": 2, "float8_e4m3fn": 1}
_LAYERS = frozenset({"full_attention", "sliding_attention", "linear_attention"})
# their attention keeps something else than keys and values of every token, or their state is another one than Gated DeltaNet's
_OTHER_CACHES = frozenset({"kv_lora_rank", "ssm_state_size", "mamba_d_state", "state_size", "num_kv_shared_layers"})


@dataclass(frozen=True)
class Linear:
    """Gated DeltaNet: heads and widths of keys and values, and how many positions its convolution spans.

    state_format: number format of the state, None for that of the model.
    """

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    conv_kernel: int
    state_format: str | None


@dataclass(frozen=True)
class Vision:
    """The vision tower. patch: pixels of a patch's side. merge: patches of a side that become one token together."""

    depth: int
    hidden: int
    intermediate: int
    patch: int
    temporal_patch: int
    merge: int
    channels: int
    out_hidden: int
    positions: int


@dataclass(frozen=True)
class Shape:
    """max_context: tokens. number_format: of the checkpoint's weights. dense: every layer has one feed-forward block."""

    layers: int
    attention_layers: int
    linear_layers: int
    attention_heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    intermediate: int
    vocabulary: int
    max_context: int
    number_format: str
    tied: bool
    mtp_layers: int
    dense: bool
    qwen: bool
    linear: Linear | None
    vision: Vision | None


@dataclass(frozen=True)
class Parameters:
    """How many numbers the parts hold. matrices: of attention and feed-forward; recurrent: those of Gated DeltaNet."""

    matrices: int
    recurrent: int
    embeddings: int
    vision: int
    mtp: int


def shape_of(config: Mapping[str, object]) -> Shape | None:
    """The shape that a config.json describes; None when it is not understood."""
    text = _object(config, "text_config") or config
    if _OTHER_CACHES & text.keys():
        return None
    layers, heads, hidden = _whole(text, "num_hidden_layers"), _whole(text, "num_attention_heads"), _whole(text, "hidden_size")
    context, vocabulary = _whole(text, "max_position_embeddings"), _whole(text, "vocab_size")
    kinds = _layer_kinds(text, layers)
    if not (layers and heads and hidden and context and vocabulary) or not kinds or not set(kinds) <= _LAYERS:
        return None
    linear = _linear(text)
    recurrent = kinds.count("linear_attention")
    if recurrent and (linear is None or recurrent == layers):
        return None
    return Shape(
        layers=layers,
        attention_layers=layers - recurrent,
        linear_layers=recurrent,
        attention_heads=heads,
        kv_heads=_whole(text, "num_key_value_heads") or heads,
        head_dim=_whole(text, "head_dim") or hidden // heads,
        hidden=hidden,
        intermediate=_whole(text, "intermediate_size") or _whole(text, "moe_intermediate_size") or 4 * hidden,
        vocabulary=vocabulary,
        max_context=context,
        number_format=_number_format(text, config),
        tied=text.get("tie_word_embeddings", config.get("tie_word_embeddings")) is True,
        mtp_layers=_whole(text, "mtp_num_hidden_layers"),
        dense=not any("expert" in key for key in text),
        qwen=str(text.get("model_type", "")).startswith("qwen3_5"),
        linear=linear if recurrent else None,
        vision=_vision(config),
    )


def parameters_of(shape: Shape) -> Parameters | None:
    """How many numbers a dense Qwen3.5 of this shape has; None for another architecture. Biases and norms are too few to count."""
    if not (shape.qwen and shape.dense):
        return None
    feed_forward = 3 * shape.hidden * shape.intermediate
    attention_width = shape.attention_heads * shape.head_dim
    # the query projection is twice as wide, for the output gate
    attention = shape.hidden * (3 * attention_width + 2 * shape.kv_heads * shape.head_dim)
    return Parameters(
        matrices=shape.layers * feed_forward + shape.attention_layers * attention,
        recurrent=shape.linear_layers * _recurrent(shape),
        embeddings=shape.vocabulary * shape.hidden * (1 if shape.tied else 2),
        vision=_tower(shape.vision) if shape.vision else 0,
        mtp=shape.mtp_layers * (feed_forward + attention) + (2 * shape.hidden**2 if shape.mtp_layers else 0),
    )


def _recurrent(shape: Shape) -> int:
    if shape.linear is None:
        return 0
    keys, values = shape.linear.key_heads * shape.linear.key_dim, shape.linear.value_heads * shape.linear.value_dim
    return shape.hidden * (2 * keys + 3 * values + 2 * shape.linear.value_heads) + shape.linear.conv_kernel * (2 * keys + values)


def _tower(vision: Vision) -> int:
    merged = vision.hidden * vision.merge**2
    blocks = vision.depth * (4 * vision.hidden**2 + 2 * vision.hidden * vision.intermediate)
    patches = vision.channels * vision.temporal_patch * vision.patch**2
    return blocks + merged * (merged + vision.out_hidden) + vision.hidden * (patches + vision.positions)


def _layer_kinds(text: Mapping[str, object], layers: int) -> list[str]:
    kinds = text.get("layer_types")
    if isinstance(kinds, list):
        return [str(kind) for kind in kinds] if len(kinds) == layers else []
    interval = _whole(text, "full_attention_interval")
    return ["linear_attention" if interval and (number + 1) % interval else "full_attention" for number in range(layers)]


def _linear(text: Mapping[str, object]) -> Linear | None:
    key_heads, value_heads = _whole(text, "linear_num_key_heads"), _whole(text, "linear_num_value_heads")
    key_dim, value_dim = _whole(text, "linear_key_head_dim"), _whole(text, "linear_value_head_dim")
    kernel, state = _whole(text, "linear_conv_kernel_dim"), text.get("mamba_ssm_dtype")
    if not all((key_heads, value_heads, key_dim, value_dim, kernel)):
        return None
    return Linear(key_heads, value_heads, key_dim, value_dim, kernel, state if isinstance(state, str) else None)


def _vision(config: Mapping[str, object]) -> Vision | None:
    tower = _object(config, "vision_config")
    depth, hidden = (_whole(tower, "depth"), _whole(tower, "hidden_size")) if tower else (0, 0)
    if tower is None or not (depth and hidden):
        return None
    return Vision(
        depth=depth,
        hidden=hidden,
        intermediate=_whole(tower, "intermediate_size") or 4 * hidden,
        patch=_whole(tower, "patch_size") or 16,
        temporal_patch=_whole(tower, "temporal_patch_size") or 1,
        merge=_whole(tower, "spatial_merge_size") or 1,
        channels=_whole(tower, "in_channels") or 3,
        out_hidden=_whole(tower, "out_hidden_size") or hidden,
        positions=_whole(tower, "num_position_embeddings"),
    )


def _number_format(*places: Mapping[str, object]) -> str:
    named = (place.get(key) for place in places for key in ("dtype", "torch_dtype"))
    return next((name for name in named if isinstance(name, str) and name in FORMAT_BYTES), "bfloat16")


def _object(place: Mapping[str, object], key: str) -> Mapping[str, object] | None:
    value = place.get(key)
    return value if isinstance(value, dict) else None


def _whole(place: Mapping[str, object], key: str) -> int:
    value = place.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
