"""Where a checkpoint lies and what it needs, found out before a heavy library is imported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from local_models.workers.errors import LoadError


def find_checkpoint(model: str, marker: str) -> Path:
    """Directory of a checkpoint: `model` itself, or the local Hugging Face cache of that id. Never downloads.

    marker: the file that every such checkpoint has. Raises LoadError.
    """
    folder = Path(model).expanduser()
    if not folder.is_dir():
        folder = _cached(model)
    if not (folder / marker).is_file():
        raise LoadError(f"the checkpoint {model} has no {marker}; give the folder that holds it")
    if not weight_files(folder):
        raise LoadError(f"the checkpoint {model} has no *.safetensors file; other weight formats are not read, convert it first")
    return folder


def _cached(model: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError) as error:
        raise LoadError(
            f"the model {model} is neither a folder nor in the local Hugging Face cache; download it with: hf download {model}"
        ) from error


def weight_files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


def weight_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in weight_files(folder))


def read_json_file(path: Path) -> dict[str, Any]:
    """The object in a file of the checkpoint; empty when there is no such file. Raises LoadError when it is broken."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise LoadError(f"cannot read {path}: {error}") from error
    return value if isinstance(value, dict) else {}
