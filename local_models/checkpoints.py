"""A checkpoint as the planner needs it: its shape and its bytes, from its files or, before a download, from what was published.

Files win: a name is only believed where there is nothing on this disk. Only headers are read, never weights.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any, Literal

from local_models.shapes import Shape, parameters_of, shape_of

Form = Literal["16-bit", "FP8", "4-bit"]
HEADER_LIMIT = 100 * 1024 * 1024  # bytes; the safetensors format allows no more

_UNQUANTISED = frozenset({"BF16", "F16", "F32"})
# vLLM leaves these as they are when it quantises while loading
_LEFT_ALONE = re.compile(r"embed|lm_head|conv1d|norm|\.gate\.weight|mlp\.shared_expert_gate")


@dataclass(frozen=True)
class Weights:
    """Bytes as they are stored. matrices: those that vLLM can quantise while it loads. other: all the rest of the language model."""

    matrices: int
    other: int
    vision: int
    mtp: int

    @property
    def stored(self) -> int:
        return self.matrices + self.other + self.vision + self.mtp

    def __add__(self, more: Weights) -> Weights:
        return Weights(self.matrices + more.matrices, self.other + more.other, self.vision + more.vision, self.mtp + more.mtp)


@dataclass(frozen=True)
class Checkpoint:
    """form: of the numbers it holds; anything but 16-bit is quantised already. source: where these figures are from, for people."""

    name: str
    form: Form
    shape: Shape
    weights: Weights
    source: str


@dataclass(frozen=True)
class Published:
    """A checkpoint that people use. official: by the model's authors; one by others may be gone tomorrow."""

    name: str
    size: str
    form: Form
    official: bool
    source: str


PUBLISHED: tuple[Published, ...] = (
    Published("Qwen/Qwen3.5-27B", "27B", "16-bit", True, "config.json as quoted in exporters' tests; 27.8 B numbers"),
    Published("Qwen/Qwen3.5-27B-FP8", "27B", "FP8", True, "vllm-project/recipes; a 3.6 of this shape loads as 27.7 GiB (vLLM PR 41000)"),
    Published("Qwen/Qwen3.5-27B-GPTQ-Int4", "27B", "4-bit", True, "vllm-project/recipes; 29 GB on disk"),
    Published("Qwen/Qwen3.5-9B", "9B", "16-bit", True, "model card; 9.65 B numbers, 19.3 GB; loads as 17.66 GiB (vLLM 0.19 on an L40S)"),
    Published("RedHatAI/Qwen3.5-9B-FP8-dynamic", "9B", "FP8", False, "in use with vLLM, 13 GB"),
    Published("RedHatAI/Qwen3.5-9B-quantized.w4a16", "9B", "4-bit", False, "in use with vLLM, 10.95 GB and 0.49 GB for MTP"),
    Published("cyankiwi/Qwen3.5-9B-AWQ-4bit", "9B", "4-bit", False, "in use with vLLM"),
    Published("Qwen/Qwen3.5-4B", "4B", "16-bit", True, "model card; 4.66 B numbers, 9.34 GB; loads as 8.61 GiB (vLLM 0.29 on an L4)"),
    Published("Qwen/Qwen3.5-2B", "2B", "16-bit", True, "model card; 2.27 B numbers"),
    Published("Qwen/Qwen3.5-0.8B", "0.8B", "16-bit", True, "model card; 0.87 B numbers; loads as 1.72 GiB (vLLM 0.19)"),
)
# layers, hidden, intermediate, attention heads, KV heads, value heads of Gated DeltaNet, tied embeddings, the tower's depth, width, inner
_SIZES: Mapping[str, tuple[int, int, int, int, int, int, bool, int, int, int]] = {
    "27B": (64, 5120, 17408, 24, 4, 48, False, 27, 1152, 4304),
    "9B": (32, 4096, 12288, 16, 4, 32, False, 27, 1152, 4304),
    "4B": (32, 2560, 9216, 16, 4, 32, True, 24, 1024, 4096),
    "2B": (24, 2048, 6144, 8, 2, 16, True, 24, 1024, 4096),
    "0.8B": (24, 1024, 3584, 8, 2, 16, True, 12, 768, 3072),
}
# Bytes of a number, for matrices of attention and feed-forward and for those of Gated DeltaNet. The authors' FP8 holds both in FP8; other
# people's quantised checkpoints leave Gated DeltaNet, tower and embeddings in 16 bits (10.95 GB of RedHatAI's 4-bit 9B). Four bits come
# with a scale for each group of 128.
_BYTES: Mapping[tuple[Form, bool], tuple[float, float]] = {
    ("16-bit", True): (2, 2),
    ("16-bit", False): (2, 2),
    ("FP8", True): (1, 1),
    ("FP8", False): (1, 2),
    ("4-bit", True): (0.53, 2),
    ("4-bit", False): (0.53, 2),
}


def checkpoint_in(folder: Path, name: str) -> Checkpoint | None:
    """The checkpoint in this folder; None when its files are missing, damaged or of an architecture that is not understood."""
    config = _read_object(folder / "config.json")
    shape = shape_of(config)
    files = _weight_files(folder)
    if shape is None or not files:
        return None
    headers = [_header(file) for file in files]
    if any(header is None for header in headers):
        return None
    parts = [_part(tensor, value) for header in headers if header is not None for tensor, value in header.items()]
    weights = reduce(Weights.__add__, parts, Weights(0, 0, 0, 0))
    form = _form(config)
    if form != "16-bit":  # nothing is quantised a second time
        weights = replace(weights, matrices=0, other=weights.matrices + weights.other)
    return Checkpoint(name, form, shape, weights, f"the files in {folder}")


def published_checkpoint(name: str) -> Checkpoint | None:
    """What is known of this checkpoint without its files: one of PUBLISHED, or a name that says size and form of a Qwen3.5."""
    known = next((entry for entry in PUBLISHED if entry.name.lower() == name.lower()), None)
    if known is not None:
        return _from_size(known.name, known.size, known.form, known.official, known.source)
    size = re.search(r"qwen3[._]5-(\d+(?:\.\d+)?b)(?![a-z0-9])", name, re.IGNORECASE)
    if size is None or size[1].upper() not in _SIZES or re.search(r"-A\d+B", name, re.IGNORECASE):
        return None
    form: Form = "16-bit"
    if re.search(r"fp8|w8a8|int8|8bit", name, re.IGNORECASE):
        form = "FP8"
    elif re.search(r"awq|gptq|4bit|int4|w4a16|nvfp4|mxfp4", name, re.IGNORECASE):
        form = "4-bit"
    return _from_size(name, size[1].upper(), form, False, "its name only: nothing of it is on this disk")


def smaller_sizes(shape: Shape) -> Iterator[Checkpoint]:
    """The authors' 16-bit checkpoints of this family with fewer layers or narrower ones, largest first."""
    for entry in PUBLISHED:
        if entry.official and entry.form == "16-bit" and shape.qwen:
            other = _from_size(entry.name, entry.size, entry.form, True, entry.source)
            if other.shape.layers * other.shape.hidden < shape.layers * shape.hidden:
                yield other


def quantised_siblings(checkpoint: Checkpoint) -> tuple[Published, ...]:
    """Published quantised checkpoints of the same model, FP8 before 4-bit."""
    own = next((entry.size for entry in PUBLISHED if entry.name.lower() == checkpoint.name.lower()), None)
    return tuple(entry for entry in PUBLISHED if entry.size == own and entry.form != "16-bit" and entry.name != checkpoint.name)


def _from_size(name: str, size: str, form: Form, official: bool, source: str) -> Checkpoint:
    shape = shape_of(_config(size))
    assert shape is not None
    numbers = parameters_of(shape)
    assert numbers is not None
    matrix, recurrent = _BYTES[form, official]
    language = int(numbers.matrices * matrix + numbers.recurrent * recurrent)
    rest = 2 * numbers.embeddings
    whole = form == "16-bit"
    weights = Weights(language if whole else 0, rest if whole else rest + language, 2 * numbers.vision, 2 * numbers.mtp)
    return Checkpoint(name, form, shape, weights, source)


def _config(size: str) -> Mapping[str, object]:
    """The config.json of a Qwen3.5 of this size, as far as memory goes. Source: the checkpoints' own, see PUBLISHED."""
    layers, hidden, intermediate, heads, kv_heads, value_heads, tied, depth, tower, inner = _SIZES[size]
    text = {
        "model_type": "qwen3_5_text",
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": 256,
        "full_attention_interval": 4,
        "linear_num_key_heads": 16,
        "linear_num_value_heads": value_heads,
        "linear_key_head_dim": 128,
        "linear_value_head_dim": 128,
        "linear_conv_kernel_dim": 4,
        "mamba_ssm_dtype": "float32",
        "vocab_size": 248_320,
        "max_position_embeddings": 262_144,
        "mtp_num_hidden_layers": 1,
        "tie_word_embeddings": tied,
        "dtype": "bfloat16",
    }
    vision = {
        "depth": depth,
        "hidden_size": tower,
        "intermediate_size": inner,
        "patch_size": 16,
        "temporal_patch_size": 2,
        "spatial_merge_size": 2,
        "in_channels": 3,
        "out_hidden_size": hidden,
        "num_position_embeddings": 2304,
    }
    return {"model_type": "qwen3_5", "text_config": text, "vision_config": vision}


def _part(name: str, tensor: Any) -> Weights:
    """One tensor of a safetensors header, counted where it belongs."""
    start, end = tensor["data_offsets"]
    size = int(end) - int(start)
    if re.search(r"visual\.|vision_tower\.|vision_model\.", name):
        return Weights(0, 0, size, 0)
    if re.match(r"mtp\.|.*\.mtp\.", name):
        return Weights(0, 0, 0, size)
    is_matrix = len(tensor["shape"]) >= 2 and tensor["dtype"] in _UNQUANTISED and not _LEFT_ALONE.search(name)
    return Weights(size, 0, 0, 0) if is_matrix else Weights(0, size, 0, 0)


def _weight_files(folder: Path) -> list[Path]:
    """Those that vLLM loads: what an index names, or else all there are."""
    weight_map = _read_object(folder / "model.safetensors.index.json").get("weight_map")
    if isinstance(weight_map, dict):
        return sorted({folder / str(name) for name in weight_map.values()})
    return sorted(folder.glob("*.safetensors"))


def _header(file: Path) -> dict[str, Any] | None:
    """Names of the tensors with shape, format and place; None when this is no whole safetensors file."""
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(length)) if 0 < length <= HEADER_LIMIT else None
    except (OSError, ValueError):
        return None
    if not isinstance(header, dict):
        return None
    tensors = {name: value for name, value in header.items() if name != "__metadata__"}
    wanted = {"dtype", "shape", "data_offsets"}
    return tensors if all(isinstance(value, dict) and wanted <= value.keys() for value in tensors.values()) else None


def _form(config: Mapping[str, object]) -> Form:
    """Quantised to four bits, to eight (counted as FP8, which takes as much), or not at all."""
    text = config.get("text_config")
    quantisation = config.get("quantization_config") or (text.get("quantization_config") if isinstance(text, dict) else None)
    if not isinstance(quantisation, dict):
        return "16-bit"
    words = json.dumps(quantisation)
    return "4-bit" if re.search(r'"(?:num_bits|bits|w_bit)": 4|nvfp4|mxfp4|load_in_4bit": true', words, re.IGNORECASE) else "FP8"


def _read_object(path: Path) -> dict[str, object]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
