"""The engine environments that Tandem made in its data directory: where they lie, what each says of itself, which one a device gets.

One that is there under its own name is whole: it is built under another name and renamed last. Looks at files, runs nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

EngineDevice: TypeAlias = Literal["cuda", "rocm", "cpu"]

DEVICES: tuple[EngineDevice, ...] = get_args(EngineDevice)
FOLDER = "engines"
MANIFEST = "tandem-engine.json"


@dataclass(frozen=True)
class Manifest:
    """What was installed, by versions; written when it had been verified.

    seen: the device that it could use then, None if there was none. lock: SHA-256 of the requirements it was made by.
    installed_at: Unix seconds. size_bytes: on disk.
    """

    engine: str
    device: EngineDevice
    version: str
    python: str
    torch: str
    seen: str | None
    lock: str
    installed_at: float
    size_bytes: int


@dataclass(frozen=True)
class Environment:
    """One engine environment. manifest: None where it cannot be read. problem: why it cannot be used; None: it can."""

    path: Path
    manifest: Manifest | None
    problem: str | None = None

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.path / "bin" / "python"


def folder_of(data_dir: Path) -> Path:
    """Where they lie in this data directory."""
    return data_dir / FOLDER


def environment_path(data_dir: Path, engine: str, device: EngineDevice, version: str) -> Path:
    """Where this one lies, or would lie."""
    return folder_of(data_dir) / f"{engine}-{device}-{version}"


def find_environments(data_dir: Path) -> tuple[Environment, ...]:
    """Every environment there, broken ones too, by name. What is being built or removed has a name with a dot before it."""
    try:
        folders = sorted(path for path in folder_of(data_dir).iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError:
        return ()
    return tuple(read_environment(path) for path in folders)


def read_environment(path: Path) -> Environment:
    """What lies there, usable or with its problem."""
    try:
        manifest = _manifest(json.loads((path / MANIFEST).read_bytes()))
    except FileNotFoundError:
        return Environment(path, None, f"it has no {MANIFEST}")
    except (OSError, ValueError, TypeError) as error:
        return Environment(path, None, f"its {MANIFEST} cannot be read ({error})")
    environment = Environment(path, manifest)
    if not os.access(environment.python, os.X_OK):  # the Python that it was made with may have been removed or replaced
        return Environment(path, manifest, f"its interpreter {environment.python} cannot be run")
    if not any(path.glob(f"lib/python3*/site-packages/{manifest.engine}/__init__.py")):
        return Environment(path, manifest, f"{manifest.engine} is not in it any more")
    return environment


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Raises OSError."""
    (path / MANIFEST).write_text(json.dumps(asdict(manifest), indent=1) + "\n")


def install_command(device: str) -> str:
    """What makes the environment that an upstream of this device (auto, cpu, cuda, cuda:N) needs."""
    kind = device.partition(":")[0]
    return f"tandem engines install vllm --device {kind}" if kind in DEVICES else "tandem engines install vllm"


def environment_for(device: str, environments: Iterable[Environment]) -> Environment | None:
    """The environment for `device` of a configuration (auto, cpu, cuda, cuda:N), of several the newest; None: there is none.

    AMD cards are cuda too: torch calls them so. auto prefers an environment that saw its device when it was installed, and a GPU.
    """
    kind = device.partition(":")[0]
    wanted = {"cpu": ("cpu",), "cuda": ("cuda", "rocm"), "auto": DEVICES}.get(kind, ())
    known = [(entry.manifest, entry) for entry in environments if entry.manifest is not None and entry.problem is None]
    fitting = [(manifest, entry) for manifest, entry in known if manifest.device in wanted]
    best = min(fitting, key=lambda pair: (pair[0].seen is None, DEVICES.index(pair[0].device), -pair[0].installed_at), default=None)
    return None if best is None else best[1]


def _manifest(data: Any) -> Manifest:
    manifest = Manifest(**data)
    if manifest.device not in DEVICES:
        raise ValueError(f"unknown device {manifest.device!r}")
    return manifest
