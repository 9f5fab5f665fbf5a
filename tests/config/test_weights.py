"""Whether a model lies on the disk, in each state a download can leave it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from config.weights import find_folder, find_weights, hub_cache, weights_bytes


def put(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")


def cached(home: Path, *names: str, revision: str = "abc") -> Path:
    cache = home / ".cache" / "huggingface" / "hub" / "models--owner--name"
    put(cache, "blobs/1")
    put(cache / "snapshots" / revision, *names)
    (cache / "refs").mkdir(exist_ok=True)
    (cache / "refs" / "main").write_text("abc\n")
    return cache


@pytest.mark.parametrize(
    ("names", "state"),
    [
        (["config.json", "model.safetensors"], "present"),
        (["config.json"], "partial"),
        (["model.safetensors"], "partial"),
        (["config.json", "pytorch_model.bin"], "partial"),
    ],
)
def test_a_model_in_the_cache(tmp_path: Path, names: list[str], state: str) -> None:
    cached(tmp_path, *names)
    assert find_weights("owner/name", {}, {"HOME": str(tmp_path)}) == state


def test_a_model_that_was_never_asked_for(tmp_path: Path) -> None:
    assert find_weights("owner/name", {}, {"HOME": str(tmp_path)}) == "absent"


def test_a_shard_is_missing(tmp_path: Path) -> None:
    cache = cached(tmp_path, "config.json", "model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (cache / "snapshots" / "abc" / "model.safetensors.index.json").write_text(json.dumps(index))
    assert find_weights("owner/name", {}, {"HOME": str(tmp_path)}) == "partial"
    put(cache / "snapshots" / "abc", "model-00002-of-00002.safetensors")
    assert find_weights("owner/name", {}, {"HOME": str(tmp_path)}) == "present"


PIPELINE = {"_class_name": "P", "unet": ["diffusers", "U"], "tokenizer": ["transformers", "T"], "safety_checker": [None, None]}


@pytest.mark.parametrize(
    ("names", "state"),
    [
        (["unet/config.json", "unet/model.safetensors", "tokenizer/vocab.json"], "present"),
        (["unet/config.json", "tokenizer/vocab.json"], "partial"),
        (["unet/config.json", "unet/model.safetensors"], "partial"),
        ([], "partial"),
    ],
)
def test_a_pipeline_is_whole_when_all_its_parts_are(tmp_path: Path, names: list[str], state: str) -> None:
    put(tmp_path, "model_index.json", *names)
    (tmp_path / "model_index.json").write_text(json.dumps(PIPELINE))
    assert find_weights(str(tmp_path), {}, {}) == state


def test_a_pipeline_whose_index_cannot_be_read(tmp_path: Path) -> None:
    put(tmp_path, "unet/config.json", "unet/model.safetensors")
    (tmp_path / "model_index.json").write_text("[")
    assert find_weights(str(tmp_path), {}, {}) == "partial"


def test_what_a_killed_download_left_behind_does_not_count(tmp_path: Path) -> None:
    cache = cached(tmp_path, "config.json", "model.safetensors")
    put(cache, "blobs/2.incomplete")
    assert find_weights("owner/name", {}, {"HOME": str(tmp_path)}) == "present"


def test_a_revision_that_is_not_there(tmp_path: Path) -> None:
    cached(tmp_path, "config.json", "model.safetensors", revision="old")
    assert find_weights("owner/name", {}, {"HOME": str(tmp_path)}) == "partial"


def test_a_folder_and_a_builtin_name(tmp_path: Path) -> None:
    put(tmp_path / "m", "config.json", "model.safetensors")
    assert find_weights(str(tmp_path / "m"), {}, {}) == "present"
    assert find_weights(str(tmp_path / "n"), {}, {}) == "absent"
    assert find_weights("builtin:x", {"builtin:x": tmp_path / "m"}, {}) == "present"
    assert find_weights("builtin:x", {"builtin:x": tmp_path / "n"}, {}) == "absent"


@pytest.mark.parametrize(
    ("environ", "path"),
    [
        ({"HOME": "/h"}, "/h/.cache/huggingface/hub"),
        ({"HOME": "/h", "XDG_CACHE_HOME": "/c"}, "/c/huggingface/hub"),
        ({"HOME": "/h", "XDG_CACHE_HOME": "/c", "HF_HOME": "/f"}, "/f/hub"),
        ({"HOME": "/h", "HF_HOME": "/f", "HF_HUB_CACHE": "/k"}, "/k"),
    ],
)
def test_where_the_cache_is(environ: dict[str, str], path: str) -> None:
    assert hub_cache(environ) == Path(path)


def test_the_hub_client_agrees_on_where_it_is(tmp_path: Path) -> None:
    from huggingface_hub.constants import default_cache_path, default_home

    assert Path(default_cache_path).relative_to(default_home) == Path("huggingface/hub")


def test_the_folder_of_a_model(tmp_path: Path) -> None:
    environ = {"HOME": str(tmp_path)}
    assert find_folder("builtin:one", {"builtin:one": tmp_path}, environ) == tmp_path
    assert find_folder(str(tmp_path), {}, environ) == tmp_path
    assert find_folder(str(tmp_path / "none"), {}, environ) is None
    assert find_folder("owner/name", {}, environ) is None
    cache = cached(tmp_path, "config.json")
    assert find_folder("owner/name", {}, environ) == cache / "snapshots" / "abc"


def sized(path: Path, size: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"0" * size)


def test_the_size_of_weights_counts_them_once(tmp_path: Path) -> None:
    """A repository may hold the same weights in two forms: what its index names counts, beside one whatever is there."""
    plain, sharded, pipeline = tmp_path / "plain", tmp_path / "sharded", tmp_path / "pipeline"
    sized(plain / "model.safetensors", 100)
    sized(plain / "tokenizer.json", 7)
    for name, size in (("a.safetensors", 10), ("b.safetensors", 20), ("consolidated.safetensors", 30)):
        sized(sharded / name, size)
    (sharded / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"x": "a.safetensors", "y": "b.safetensors", "z": "not-there.safetensors"}})
    )
    sized(pipeline / "unet" / "model.safetensors", 40)
    sized(pipeline / "unet" / "model.fp16.safetensors", 20)
    sized(pipeline / "unet" / "extra.fp16.safetensors", 2)
    sized(pipeline / "whole-pipeline.safetensors", 50)
    (pipeline / "model_index.json").write_text(json.dumps(PIPELINE))
    assert [weights_bytes(str(folder), {}, {}) for folder in (plain, sharded, pipeline)] == [100, 30, 42]
    assert weights_bytes("builtin:x", {"builtin:x": plain}, {}) == 100


def test_weights_that_are_not_there_have_no_size(tmp_path: Path) -> None:
    assert weights_bytes("owner/name", {}, {"HOME": str(tmp_path)}) == 0
    assert weights_bytes(str(tmp_path / "none"), {}, {}) == 0
    cache = cached(tmp_path)
    sized(cache / "snapshots" / "abc" / "model.safetensors", 60)
    assert weights_bytes("owner/name", {}, {"HOME": str(tmp_path)}) == 60
