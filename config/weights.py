"""Whether the weights of a local model lie on this disk. Reads the Hub's cache by its layout; importing huggingface_hub takes too long."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TypeAlias

Weights: TypeAlias = Literal["present", "partial", "absent"]


def find_weights(model: str, builtin: Mapping[str, Path], environ: Mapping[str, str]) -> Weights:
    """State of a model's files. model: as in a deployment; builtin: directory of each builtin: name."""
    folder = _folder(model, builtin, environ)
    if folder is None:
        return "partial" if any(_cached(model, environ).glob("blobs/*")) else "absent"
    # Not a sign of anything: *.incomplete. The client leaves one behind whenever it is killed, and never takes it up again.
    return _state(folder)


def weights_bytes(model: str, builtin: Mapping[str, Path], environ: Mapping[str, str]) -> int:
    """Bytes of a model's weights on this disk, as far as they are there. Arguments as for `find_weights`."""
    folder = _folder(model, builtin, environ)
    if folder is None:
        return 0
    parts = [folder / part for part in _components(folder / "model_index.json")] or [folder]
    return sum(_size(path) for part in parts for path in _weight_files(part))


def find_folder(model: str, builtin: Mapping[str, Path], environ: Mapping[str, str]) -> Path | None:
    """Folder in which the files of a model lie, whole or not; None when there is none."""
    if model in builtin:
        return builtin[model]
    if model.startswith(("/", "./", "../", "~/")):
        folder = Path(model).expanduser()
        return folder if folder.is_dir() else None
    return _snapshot(hub_cache(environ) / f"models--{model.replace('/', '--')}")


def hub_cache(environ: Mapping[str, str]) -> Path:
    """Where the Hub's client keeps models. Source: huggingface_hub.constants."""
    if environ.get("HF_HUB_CACHE"):
        return Path(environ["HF_HUB_CACHE"]).expanduser()
    if environ.get("HF_HOME"):
        return Path(environ["HF_HOME"]).expanduser() / "hub"
    base = environ.get("XDG_CACHE_HOME") or f"{environ.get('HOME', '~')}/.cache"
    return Path(base).expanduser() / "huggingface" / "hub"


def _folder(model: str, builtin: Mapping[str, Path], environ: Mapping[str, str]) -> Path | None:
    """Where its files are; None for a model that the Hub's cache has no snapshot of."""
    if model in builtin:
        return builtin[model]
    if model.startswith(("/", "./", "../", "~/")):
        return Path(model).expanduser()
    return _snapshot(_cached(model, environ))


def _cached(model: str, environ: Mapping[str, str]) -> Path:
    return hub_cache(environ) / f"models--{model.replace('/', '--')}"


def _weight_files(folder: Path) -> set[Path]:
    """Each weight once: a folder may hold them in other forms as well, beside the shards of an index or as name.fp16.safetensors."""
    shards = {folder / name for index in folder.glob("*.safetensors.index.json") for name in _shards(index)}
    files = set(folder.glob("*.safetensors"))
    return shards or {path for path in files if "." not in path.stem or path.with_suffix("").with_suffix(".safetensors") not in files}


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


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
    if (folder / "model_index.json").exists():
        parts = _components(folder / "model_index.json")
        whole = bool(parts) and all(_is_whole_component(folder / part) for part in parts)
    else:
        whole = (folder / "config.json").exists() and _has_weights(folder)
    return "present" if whole else "partial"


def _is_whole_component(folder: Path) -> bool:
    """A part of a pipeline; only models (with a config.json) have weights, tokenizers and schedulers have none."""
    return _has_weights(folder) if (folder / "config.json").exists() else folder.is_dir() and any(folder.iterdir())


def _has_weights(folder: Path) -> bool:
    """Whether there are weights, and every shard that an index names."""
    if not any(path.exists() for path in folder.glob("*.safetensors")):
        return False
    return all((folder / name).exists() for index in folder.glob("*.safetensors.index.json") for name in _shards(index))


def _components(index: Path) -> list[str]:
    """Folders that a pipeline's index names; none if it cannot be read. An entry without a class is an optional part left out."""
    entries = _read_object(index)
    return [name for name, value in entries.items() if isinstance(value, list) and len(value) == 2 and all(value)]


def _shards(index: Path) -> set[str]:
    """Files that an index of shards names; none if it cannot be read."""
    weight_map = _read_object(index).get("weight_map")
    return {name for name in weight_map.values() if isinstance(name, str)} if isinstance(weight_map, dict) else set()


def _read_object(path: Path) -> dict[str, object]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
