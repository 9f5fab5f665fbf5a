"""What a checkpoint takes, from real files, from files that are not whole, and from names alone."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from local_models.checkpoints import PUBLISHED, checkpoint_in, published_checkpoint
from local_models.launch import BUILTIN_MODELS
from local_models.shapes import parameters_of, shape_of

CONFIG = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_size": 64,
    "intermediate_size": 128,
    "vocab_size": 100,
    "max_position_embeddings": 4096,
}
TENSORS = {
    "model.embed_tokens.weight": ("BF16", [100, 64]),
    "model.layers.0.mlp.up_proj.weight": ("BF16", [128, 64]),
    "model.layers.0.input_layernorm.weight": ("BF16", [64]),
    "model.layers.0.linear_attn.conv1d.weight": ("BF16", [64, 1, 4]),
    "model.visual.blocks.0.attn.proj.weight": ("BF16", [8, 8]),
    "mtp.layers.0.mlp.up_proj.weight": ("BF16", [16, 8]),
}


def write(folder: Path, name: str = "model.safetensors", tensors: dict[str, tuple[str, list[int]]] | None = None) -> None:
    """A safetensors file with these tensors, all zeros."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    place = 0
    for tensor, (number_format, shape) in (TENSORS if tensors is None else tensors).items():
        size = {"BF16": 2, "I32": 4}[number_format]
        for side in shape:
            size *= side
        header[tensor] = {"dtype": number_format, "shape": shape, "data_offsets": [place, place + size]}
        place += size
    text = json.dumps(header).encode()
    folder.mkdir(exist_ok=True, parents=True)
    (folder / name).write_bytes(struct.pack("<Q", len(text)) + text + bytes(place))
    if not (folder / "config.json").exists():
        (folder / "config.json").write_text(json.dumps(CONFIG))


def test_each_part_is_counted_where_it_belongs(tmp_path: Path) -> None:
    write(tmp_path)
    checkpoint = checkpoint_in(tmp_path, "mine")
    assert checkpoint is not None
    weights = checkpoint.weights
    assert (weights.matrices, weights.vision, weights.mtp) == (2 * 128 * 64, 2 * 64, 2 * 128)
    assert weights.other == 2 * (100 * 64 + 64 + 64 * 4)
    assert (checkpoint.form, checkpoint.source) == ("16-bit", f"the files in {tmp_path}")


def test_only_what_the_index_names_is_loaded(tmp_path: Path) -> None:
    write(tmp_path, "model-00001-of-00001.safetensors")
    write(tmp_path, "consolidated.safetensors")
    both = checkpoint_in(tmp_path, "mine")
    index = {"weight_map": dict.fromkeys(TENSORS, "model-00001-of-00001.safetensors")}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    one = checkpoint_in(tmp_path, "mine")
    assert one is not None
    assert both is not None
    assert both.weights.stored == 2 * one.weights.stored


@pytest.mark.parametrize(
    ("quantisation", "form"),
    [
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "FP8"),
        ({"quant_method": "gptq", "bits": 4}, "4-bit"),
        ({"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": {"num_bits": 4}}}}, "4-bit"),
        ({"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": {"num_bits": 8}}}}, "FP8"),
    ],
)
def test_a_quantised_checkpoint_says_so_and_has_nothing_left_to_quantise(tmp_path: Path, quantisation: object, form: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, "quantization_config": quantisation}))
    write(tmp_path, tensors={**TENSORS, "model.layers.0.mlp.down_proj.qweight": ("I32", [16, 64])})
    checkpoint = checkpoint_in(tmp_path, "mine")
    assert checkpoint is not None
    assert (checkpoint.form, checkpoint.weights.matrices) == (form, 0)
    assert checkpoint.weights.other == 2 * (100 * 64 + 128 * 64 + 64 + 64 * 4) + 4 * 16 * 64


def test_the_demo_model_is_read_from_its_files() -> None:
    folder = BUILTIN_MODELS["builtin:demo"]
    checkpoint = checkpoint_in(folder, "builtin:demo")
    assert checkpoint is not None
    assert (checkpoint.shape.attention_layers, checkpoint.shape.linear_layers) == (2, 2)
    on_disk = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    assert checkpoint.weights.stored == pytest.approx(on_disk, rel=0.02)
    numbers = parameters_of(checkpoint.shape)
    assert numbers is not None
    assert 2 * (numbers.matrices + numbers.recurrent + numbers.embeddings + numbers.vision) == pytest.approx(on_disk, rel=0.02)


@pytest.mark.parametrize("damage", ["no config", "no weights", "half a file", "missing shard", "no json"])
def test_files_that_are_not_whole_are_no_checkpoint(tmp_path: Path, damage: str) -> None:
    write(tmp_path)
    match damage:
        case "no config":
            (tmp_path / "config.json").unlink()
        case "no weights":
            (tmp_path / "model.safetensors").unlink()
        case "half a file":
            (tmp_path / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
        case "missing shard":
            (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors"}}))
        case "no json":
            (tmp_path / "config.json").write_text("[1]")
    assert checkpoint_in(tmp_path, "mine") is None


@pytest.mark.parametrize(
    "more",
    [
        {"kv_lora_rank": 512},
        {"layer_types": ["full_attention", "mamba"]},
        {"layer_types": ["linear_attention", "full_attention"]},
        {"num_hidden_layers": 0},
        {"max_position_embeddings": True},
    ],
    ids=str,
)
def test_an_architecture_that_is_not_understood_has_no_shape(more: dict[str, object]) -> None:
    assert shape_of(CONFIG) is not None
    assert shape_of({**CONFIG, **more}) is None


@pytest.mark.parametrize(
    ("name", "form", "layers"),
    [
        ("Qwen/Qwen3.5-9B", "16-bit", 32),
        ("qwen/qwen3.5-9b", "16-bit", 32),
        ("someone/Qwen3.5-4B-GPTQ-Int4", "4-bit", 32),
        ("someone/my_qwen3_5-27b-fp8", "FP8", 64),
        ("Qwen/Qwen3.5-2B-Base", "16-bit", 24),
    ],
)
def test_a_name_says_size_and_form(name: str, form: str, layers: int) -> None:
    checkpoint = published_checkpoint(name)
    assert checkpoint is not None
    assert (checkpoint.form, checkpoint.shape.layers) == (form, layers)


@pytest.mark.parametrize("name", ["Qwen/Qwen3-8B", "Qwen/Qwen3.5-35B-A3B", "Qwen/Qwen3.5-7B", "meta-llama/Llama-3.1-8B", "qwen3.5"])
def test_other_names_say_nothing(name: str) -> None:
    assert published_checkpoint(name) is None


def test_every_published_checkpoint_is_known_and_has_a_source() -> None:
    for entry in PUBLISHED:
        checkpoint = published_checkpoint(entry.name)
        assert checkpoint is not None
        assert checkpoint.form == entry.form
        assert entry.source
        assert entry.official == entry.name.startswith("Qwen/")
