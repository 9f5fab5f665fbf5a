"""`tandem engines`: environments for engines, made, listed, brought up to date and removed in the data directory.

What an engine that runs was started from is never removed or replaced.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from types import FrameType

import psutil

from config.environments import DEVICES, EngineDevice, Environment, environment_for, find_environments, folder_of, install_command
from config.hardware import engine_device
from config.schema import Settings, VllmUpstream
from gateway.columns import aligned
from gateway.startup import CannotStart, prepare_data_dir
from requirements import engine as installer
from requirements.engine import Recipe
from requirements.install import InstallError, Meter

EXIT_FAILED = 1
EXIT_INTERRUPTED = 130


@dataclass(frozen=True)
class Recipes:
    """What can be installed on this system."""

    folder: Path = installer.RECIPES
    platform: str = sys.platform

    def of(self, engine: str, device: EngineDevice) -> Recipe:
        """Raises CannotStart."""
        _check_engine(engine)
        if self.platform != "linux":
            raise CannotStart(f"there is no {engine} for this system ({self.platform}); run it on Linux, as an upstream of kind: openai")
        return installer.recipe_for(engine, device, self.folder)


def install(data_dir: Path, engine: str, device: str | None, environ: Mapping[str, str], recipes: Recipes | None = None) -> int:
    """Make the environment of this engine. device: None takes what this machine has. Raises CannotStart."""
    recipe = (recipes or Recipes()).of(engine, _device(device) or engine_device(environ))
    return _with_meter(lambda meter: _install(data_dir, recipe, meter))


def _install(data_dir: Path, recipe: Recipe, meter: Meter) -> int:
    prepare_data_dir(data_dir)
    environment = installer.install(recipe, data_dir, meter, _refuse_if_used, installer.find_uv())
    _tell(environment)
    return 0


def upgrade(data_dir: Path, engine: str, device: str | None, recipes: Recipes | None = None) -> int:
    """Make what is installed equal to the locks of this Tandem, and remove older versions. Raises CannotStart."""
    installed = _installed(data_dir, engine, device)
    devices = [kind for kind in DEVICES if any(_is_of(environment, engine, kind) for environment in installed)]
    wanted = [(recipes or Recipes()).of(engine, kind) for kind in devices]

    def run(meter: Meter) -> int:
        for recipe in wanted:
            _install(data_dir, recipe, meter)
            path = installer.path_of(recipe, data_dir)
            older = [environment for environment in installed if _is_of(environment, engine, recipe.device) and environment.path != path]
            for environment in older:
                if users := users_of(environment):
                    meter.say(f"{environment.name} stays, for it is in use by {', '.join(users)}; run the same again once that has ended")
            unused = [environment for environment in older if not users_of(environment)]
            installer.remove(unused, data_dir, meter)
            for environment in unused:
                print(f"removed {environment.name}")
        return 0

    return _with_meter(run)


def remove(data_dir: Path, engine: str, device: str | None) -> int:
    """Throw an environment away. Raises CannotStart."""
    chosen = _installed(data_dir, engine, device)
    devices = [kind for kind in DEVICES if any(_is_of(environment, engine, kind) for environment in chosen)]
    if len(devices) > 1:
        raise CannotStart(f"{engine} is installed for {' and '.join(devices)}; say which one is to go with --device")
    for environment in chosen:
        _refuse_if_used(environment)

    def run(meter: Meter) -> int:
        installer.remove(chosen, data_dir, meter)
        for environment in chosen:
            print(f"removed {environment.name}")
        return 0

    return _with_meter(run)


def show(data_dir: Path, settings: Settings, as_json: bool) -> int:
    """Print every environment."""
    environments = find_environments(data_dir)
    if as_json:
        print(json.dumps([_as_data(environment, settings, environments) for environment in environments], indent=1))
        return 0
    for line in table(data_dir, settings, environments):
        print(line)
    return 0


def table(data_dir: Path, settings: Settings, environments: tuple[Environment, ...]) -> Iterator[str]:
    """One line for each environment, columns aligned; one line that says what to do where there is none."""
    if not environments:
        yield f"no engine environments in {folder_of(data_dir)}; make one with `{install_command('auto')}`"
        return
    rows = [_row(environment, settings, environments) for environment in environments]
    yield from aligned([("NAME", "VERSION", "DEVICE", "SIZE", "STATE", "UPSTREAMS", "PATH"), *rows])


def _row(environment: Environment, settings: Settings, environments: tuple[Environment, ...]) -> tuple[str, ...]:
    manifest = environment.manifest
    version = manifest.version if manifest else "?"
    device = f"{manifest.device} ({manifest.seen or 'none seen'})" if manifest else "?"
    upstreams = ",".join(upstreams_of(environment, settings, environments)) or "none"
    return environment.name, version, device, f"{_size(environment) / 1e9:.1f} GB", _state(environment), upstreams, str(environment.path)


def _as_data(environment: Environment, settings: Settings, environments: tuple[Environment, ...]) -> dict[str, object]:
    known = asdict(environment.manifest) if environment.manifest else {}
    return {
        "name": environment.name,
        **known,
        "size_bytes": _size(environment),
        "path": str(environment.path),
        "state": _state(environment),
        "upstreams": upstreams_of(environment, settings, environments),
        "used_by": users_of(environment),
    }


def _size(environment: Environment) -> int:
    return environment.manifest.size_bytes if environment.manifest else installer.size_of(environment.path)


def _state(environment: Environment) -> str:
    manifest = environment.manifest
    if environment.problem is not None or manifest is None:
        return f"broken: {environment.problem}; install it again, or remove it"
    state = "in use" if users_of(environment) else "ready"
    known = manifest.engine in installer.ENGINES
    if known and installer.is_made_by(installer.recipe_for(manifest.engine, manifest.device), environment):
        return state
    return f"{state}, not this Tandem's version: tandem engines upgrade {manifest.engine}"


def upstreams_of(environment: Environment, settings: Settings, environments: tuple[Environment, ...]) -> list[str]:
    """Names of the upstreams whose engines are started from it."""
    return [
        name
        for name, spec in settings.upstreams.items()
        if isinstance(spec, VllmUpstream) and spec.python is None and environment_for(spec.device, environments) == environment
    ]


def users_of(environment: Environment) -> list[str]:
    """The engines that run from it, by the name that they serve, and whatever else does, by process id."""
    programs = (environment.path / "bin").resolve()
    found = {
        process.info["pid"]: process.info["cmdline"]
        for process in psutil.process_iter(["pid", "cmdline"])
        if process.info["cmdline"] and Path(process.info["cmdline"][0]).parent.resolve() == programs
    }
    engines = [f"'{name}' (process {pid})" for pid, words in found.items() if (name := _served_name(words))]
    return engines or [f"process {pid}" for pid in found]


def _served_name(words: list[str]) -> str | None:
    return next((value for flag, value in pairwise(words) if flag == "--served-model-name"), None)


def _refuse_if_used(environment: Environment) -> None:
    if users := users_of(environment):
        raise CannotStart(f"{environment.name} is in use by {', '.join(users)}; unload it or stop Tandem, then run the same again")


def _tell(environment: Environment) -> None:
    manifest = environment.manifest
    assert manifest is not None
    print(f"{manifest.engine} {manifest.version} for {manifest.device} is in {environment.path} (torch {manifest.torch})")
    if manifest.seen is None:
        print(f"tandem: it sees no {manifest.device} device here; {_REMEDIES[manifest.device]}", file=sys.stderr)


_REMEDIES: Mapping[EngineDevice, str] = {
    "cuda": "nvidia-smi must work, with a driver for the CUDA version of its torch",
    "rocm": "rocminfo must work, and this user must be allowed to use /dev/kfd",
    "cpu": "look at what `tandem engines` says, and install it again",
}


def _check_engine(engine: str) -> None:
    if engine not in installer.ENGINES:
        known = ", ".join(installer.ENGINES)
        raise CannotStart(f"unknown engine '{engine}'; Tandem installs {known}. One that runs already is an upstream of kind: openai")


def _device(text: str | None) -> EngineDevice | None:
    known = next((device for device in DEVICES if device == text), None)
    if text is not None and known is None:
        raise CannotStart(f"unknown device '{text}'; --device is one of {', '.join(DEVICES)}")
    return known


def _installed(data_dir: Path, engine: str, device: str | None) -> list[Environment]:
    _check_engine(engine)
    kind = _device(device)
    found = [environment for environment in find_environments(data_dir) if _is_of(environment, engine, kind)]
    if not found:
        where = f"{engine} is not installed{f' for {kind}' if kind else ''} in {folder_of(data_dir)}"
        raise CannotStart(f"{where}; `{install_command(kind or 'auto')}` does that, `tandem engines` lists what is there")
    return found


def _is_of(environment: Environment, engine: str, device: EngineDevice | None) -> bool:
    """By its name, which a broken one has too."""
    return any(environment.name.startswith(f"{engine}-{kind}-") for kind in ([device] if device else DEVICES))


def _with_meter(run: Callable[[Meter], int]) -> int:
    """What `run` returns; a failure is one line on stderr, below the bar."""
    meter = Meter(sys.stderr)
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        return run(meter)
    except InstallError as error:
        meter.say(str(error))
        return EXIT_FAILED
    except OSError as error:
        meter.say(f"cannot write in the data directory: {error.strerror}: {error.filename}")
        return EXIT_FAILED
    except KeyboardInterrupt:
        meter.say("interrupted; run the same again to go on")
        return EXIT_INTERRUPTED
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
