"""Makes the environment of one engine equal to its lock, beside Tandem's own, and shows how far it is.

Rule: it is built under a name with a dot before it, verified there, and gets its own name last; so whatever has a name is whole, and what
an interrupted installation leaves is thrown away by the next. Downloads that were finished come from the cache of uv or pip then.
Standard library only.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from config.environments import EngineDevice, Environment, Manifest, environment_path, folder_of, read_environment, write_manifest
from requirements.install import LOCKS, InstallError, Meter, Packages, check_disk, check_python, locked_packages, only_one, surroundings

ENGINES = ("vllm",)
RECIPES = LOCKS / "engines"
LOG = "install.log"
# On the disk of the data directory. cpu: measured, with room for pip's copies. cuda: 4.0 GB of downloads by the lock, unpacked 2.5 times
# as much. rocm: a guess.
NEEDED_BYTES = {"cpu": 5_000_000_000, "cuda": 14_000_000_000, "rocm": 25_000_000_000}
VERIFY_LIMIT_S = 600
_NO_KERNELS = "operator torchvision::"


@dataclass(frozen=True)
class Recipe:
    """By what an environment is made. lock: requirements, with hashes where `is_locked`. torch: builds that are installed apart."""

    engine: str
    device: EngineDevice
    version: str
    lock: Path
    torch: Path | None
    needed_bytes: int

    @property
    def is_locked(self) -> bool:
        return "--hash=" in self.lock.read_text()

    @property
    def digest(self) -> str:
        """SHA-256 of the requirements."""
        files = [self.lock] if self.torch is None else [self.lock, self.torch]
        return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def recipe_for(engine: str, device: EngineDevice, folder: Path = RECIPES) -> Recipe:
    """The recipe in this folder. Raises InstallError."""
    lock, torch = folder / f"{engine}-{device}.txt", folder / f"{engine}-{device}-torch.txt"
    match = re.search(rf"^{engine}(?:-{device})?==([^\s;]+)", lock.read_text(), re.MULTILINE)
    if match is None:
        raise InstallError(f"{lock} does not pin {engine}; make it anew with requirements/engines/lock.sh")
    return Recipe(engine, device, match[1], lock, torch if torch.exists() else None, NEEDED_BYTES[device])


def path_of(recipe: Recipe, data_dir: Path) -> Path:
    """Where its environment lies, or would lie."""
    return environment_path(data_dir, recipe.engine, recipe.device, recipe.version)


def install(recipe: Recipe, data_dir: Path, meter: Meter, may_replace: Callable[[Environment], None], uv: str | None = None) -> Environment:
    """The environment, made if it is not there, whole and by this recipe. Raises InstallError, OSError.

    may_replace: called with one that is there but is not that; raises what keeps it from being thrown away. uv: the program; None: pip
    does it all.
    """
    check_python()
    folder = folder_of(data_dir)
    path = path_of(recipe, data_dir)
    with only_one(folder, meter) as lock_fd, (folder / LOG).open("w", buffering=1) as log:
        _sweep(folder)
        if path.exists():
            found = read_environment(path)
            if is_made_by(recipe, found):
                return found
            may_replace(found)
        check_disk(folder, shutil.disk_usage(folder).free, recipe.needed_bytes, "choose another data directory with --data-dir")
        building = folder / f".building-{path.name}"
        meter.say(f"installing {recipe.engine} {recipe.version} for {recipe.device} into {path}")
        try:
            manifest = Builder(recipe, building, meter, log, lock_fd, uv).make()
            _move_scripts(building, path)
            write_manifest(building, manifest)
            if path.exists():
                discard(path)
            building.rename(path)
        except InstallError as error:
            raise InstallError(f"{error}; all of it in {folder / LOG}") from error
        finally:
            shutil.rmtree(building, ignore_errors=True)  # what was renamed is not there any more
        meter.show(1.0, "installed")
        meter.say("installed")
        return read_environment(path)


def is_made_by(recipe: Recipe, environment: Environment) -> bool:
    """Whether it can be used and has exactly what the recipe wants."""
    return environment.problem is None and environment.manifest is not None and environment.manifest.lock == recipe.digest


def remove(environments: list[Environment], data_dir: Path, meter: Meter) -> None:
    """Throw them away, and what interrupted work left. Raises OSError."""
    folder = folder_of(data_dir)
    with only_one(folder, meter):
        for environment in environments:
            discard(environment.path)
        _sweep(folder)


def discard(path: Path) -> None:
    """Remove an environment: its name goes first, so that nobody finds half of it."""
    leaving = path.with_name(f".removing-{path.name}")
    shutil.rmtree(leaving, ignore_errors=True)
    path.rename(leaving)
    shutil.rmtree(leaving, ignore_errors=True)


def _sweep(folder: Path) -> None:
    for left in (*folder.glob(".building-*"), *folder.glob(".removing-*")):
        shutil.rmtree(left, ignore_errors=True)


def size_of(path: Path) -> int:
    """Bytes of all files below it; what is linked is counted once here, though uv's cache may have it too."""
    return sum(file.lstat().st_blocks * 512 for file in path.rglob("*") if not file.is_dir())


class Builder:
    """The steps for one environment, in a folder that nobody uses yet."""

    def __init__(self, recipe: Recipe, environment: Path, meter: Meter, log: TextIO, lock_fd: int, uv: str | None) -> None:
        self._recipe = recipe
        self._uv = uv
        self._environment = environment
        self._python = environment / "bin" / "python"
        self._meter = meter
        self._log = log
        self._lock_fd = lock_fd
        # Tandem's own pip, which is locked, works on another environment: that one then needs none.
        pip = [sys.executable, "-I", "-m", "pip", "--python", str(self._python)]
        self._packages = Packages(environment, pip, meter, log, lock_fd, recipe.needed_bytes, _pip_tells_progress())

    def make(self) -> Manifest:
        """Raises InstallError."""
        # The parts of the bar are proportional to the seconds they took on two cores: 2, 50, 12 and 20.
        recipe, uv = self._recipe, self._uv
        self._meter.show(0.0, "making the environment")
        self._packages.run([sys.executable, "-I", "-m", "venv", "--without-pip", str(self._environment)])
        lock = ["-r", str(recipe.lock)]
        if recipe.is_locked:
            lock = ["--require-hashes", "--no-deps", *lock]
        else:
            self._meter.say(f"{recipe.engine} for {recipe.device} is not locked: only its version is pinned, see {recipe.lock}")
        self._packages.uv_or_pip(uv, lock, lock, len(locked_packages(recipe.lock.read_text())), 0.02, 0.62)
        for index, requirement in enumerate(self._builds()):
            start = 0.62 + 0.08 * min(index, 1)
            self._packages.torch(["--no-deps", requirement], uv, recipe.device, 1, start, start + 0.08)
        self._meter.show(0.78, "verifying")
        return self._verified()

    def _builds(self) -> list[str]:
        if self._recipe.torch is None:
            return []
        return [line.strip() for line in self._recipe.torch.read_text().splitlines() if line.strip() and not line.startswith("#")]

    def _verified(self) -> Manifest:
        recipe = self._recipe
        status, output = self._ask("-c", "import torchvision")
        if status != 0 and _NO_KERNELS in output:
            self._add_operators()
        status, output = self._ask(str(RECIPES / "verify.py"), recipe.engine)
        if status != 0:
            raise InstallError(f"{recipe.engine} was installed but does not load: {_last_line(output)}")
        found: dict[str, Any] = json.loads(output.splitlines()[-1])
        version = str(found["version"]).partition("+")[0]
        if version != recipe.version:
            raise InstallError(f"{recipe.engine} {recipe.version} was wanted, but {version} is what was installed")
        if found["built_for"] != recipe.device:
            raise InstallError(f"the {recipe.engine} that was installed is built for {found['built_for']}, not for {recipe.device}")
        return Manifest(
            engine=recipe.engine,
            device=recipe.device,
            version=recipe.version,
            python=found["python"],
            torch=found["torch"],
            seen=found["seen"],
            lock=recipe.digest,
            installed_at=time.time(),
            size_bytes=size_of(self._environment),
        )

    def _add_operators(self) -> None:
        self._meter.say("torchvision's kernels are built for CUDA; going on without them")
        (packages,) = self._environment.glob("lib/python3*/site-packages")
        shutil.copyfile(RECIPES / "without_kernels.py", packages / "tandem_torchvision.py")
        (packages / "tandem_torchvision.pth").write_text("import tandem_torchvision\n")

    def _ask(self, *arguments: str) -> tuple[int, str]:
        """Exit status and output of the environment's Python."""
        command = [str(self._python), "-I", *arguments]
        self._log.write(f"$ {' '.join(command)}\n")
        env = surroundings() | {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                env=env,
                timeout=VERIFY_LIMIT_S,
                pass_fds=[self._lock_fd],
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise InstallError(f"{self._recipe.engine} was installed, but did not load within {VERIFY_LIMIT_S} s") from error
        self._log.write(done.stdout)
        return done.returncode, done.stdout


def _last_line(output: str) -> str:
    return next((line.strip()[:300] for line in reversed(output.splitlines()) if line.strip()), "it said nothing")


def find_uv() -> str | None:
    """On the PATH, or beside Tandem's own Python, where its lock puts it."""
    beside = Path(sys.executable).parent / "uv"
    return shutil.which("uv") or (str(beside) if beside.exists() else None)


def _pip_tells_progress() -> bool:
    """Whether this pip can say how far a download is; the locked one can, that of an environment made by hand may be older."""
    numbers = re.findall(r"\d+", importlib.metadata.version("pip"))
    return [int(number) for number in numbers[:2]] >= [24, 1]


def _move_scripts(building: Path, path: Path) -> None:
    """Make the programs in bin name the Python of the environment's last place: installers write the whole path into them."""
    before, after = (os.fsencode(folder / "bin") for folder in (building, path))
    for script in (building / "bin").iterdir():
        if script.is_symlink() or not script.is_file():
            continue
        content = script.read_bytes()
        if content.startswith(b"#!") and before in content:
            script.write_bytes(content.replace(before, after))
