"""Whether the weights of a local model lie on this disk. Reads the Hub's cache by its layout; importing huggingface_hub takes too long."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TypeAlias

Weights: TypeAlias = Literal["present", "partial", "absent"]

# Either names a whole model: transformers' own, or a diffusers pipeline's.
_DESCRIPTIONS = ("config.json", "model_index.json")


def find_weights(model: str, builtin: Mapping[str, Path], environ: Mapping[str, str]) -> Weights:
    """State of a model's files. model: as in a deployment; builtin: directory of each builtin: name."""
    if model in builtin:
        return _state(builtin[model])
    if model.startswith(("/", "./", "../", "~/")):
        return _state(Path(model).expanduser())
    cache = hub_cache(environ) / f"models--{model.replace('/', '--')}"
    snapshot = _snapshot(cache)
    if snapshot is None:
        return "partial" if any(cache.glob("blobs/*")) else "absent"
    state = _state(snapshot)
    return "partial" if state == "present" and any(cache.glob("blobs/*.incomplete")) else state


def hub_cache(environ: Mapping[str, str]) -> Path:
    """Where the Hub's client keeps models. Source: huggingface_hub.constants."""
    if environ.get("HF_HUB_CACHE"):
        return Path(environ["HF_HUB_CACHE"]).expanduser()
    if environ.get("HF_HOME"):
        return Path(environ["HF_HOME"]).expanduser() / "hub"
    base = environ.get("XDG_CACHE_HOME") or f"{environ.get('HOME', '~')}/.cache"
    return Path(base).expanduser() / "huggingface" / "hub"


def _snapshot(cache: Path) -> Path | None:
    reference = cache / "refs" / "main"
    try:
        snapshot = cache / "snapshots" / reference.read_text().strip()
    except OSError:
        return None
    return snapshot if snapshot.is_dir() else None


def _state(folder: Path) -> Weights:
    if not folder.is_dir():
        return "absent"
    if not any((folder / name).exists() for name in _DESCRIPTIONS):
        return "partial"
    if not any(path.exists() for path in folder.rglob("*.safetensors")):
        return "partial"
    missing = (name for index in folder.rglob("*.safetensors.index.json") for name in _shards(index) if not (index.parent / name).exists())
    return "partial" if any(missing) else "present"


def _shards(index: Path) -> set[str]:
    """Files that an index of shards names; none if it cannot be read."""
    try:
        weight_map = json.loads(index.read_bytes()).get("weight_map", {})
    except (OSError, ValueError, AttributeError):
        return set()
    return {name for name in weight_map.values() if isinstance(name, str)} if isinstance(weight_map, dict) else set()
