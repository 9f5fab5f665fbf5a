"""The command line and environment of each kind of engine. Pure: values in, values out, nothing started.

Secrets travel in the environment only, never on a command line, where every user of the machine can read them.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from config.environments import install_command
from local_models.errors import StartFailed
from local_models.plan import MTP
from local_models.vllm_args import given_flags

EngineKind = Literal["transformers", "diffusers", "vllm"]

PROJECT = Path(__file__).resolve().parent.parent
HOST = "127.0.0.1"
BUILTIN_MODELS: Mapping[str, Path] = {
    "builtin:demo": PROJECT / "local_models" / "demo" / "weights" / "demo",
    "builtin:demo-image": PROJECT / "local_models" / "demo" / "weights" / "demo-image",
}
WORKERS: Mapping[str, str] = {
    "transformers": "local_models.workers.chat_server",
    "diffusers": "local_models.workers.image_server",
}

NO_HOST = "fetched-by-the-gateway.invalid"  # a name that no host ever has (RFC 2606)

_PASSED_ON = re.compile(
    r"PATH|HOME|USER|LOGNAME|SHELL|LANG|LANGUAGE|TZ|TMPDIR|TEMP|TMP|TERM|VIRTUAL_ENV|LD_LIBRARY_PATH|SSL_CERT_(?:FILE|DIR)|CC|CXX"
    r"|COLUMNS|NO_COLOR"
    r"|(?:LC|XDG|HF|HUGGINGFACE|TRANSFORMERS|DIFFUSERS|SAFETENSORS|CUDA|NVIDIA|NCCL|HIP|HSA|ROCR|ROCM|OMP|KMP|GOMP|MKL|OPENBLAS|NUMEXPR"
    r"|ONEDNN|DNNL|ATEN|TORCH|TORCHINDUCTOR|PYTORCH|TRITON|FLASHINFER|VLLM|DYLD)_\w+"
)
_SECRET = re.compile(r"\w*(?:KEY|TOKEN|SECRET|PASSWORD|CREDENTIALS?)(?:_PATH|_FILE)?")
_NOT_PASSED_ON = frozenset({"VLLM_SERVER_DEV_MODE"})  # opens routes that run anything, without a key
_OWN_VLLM_FLAGS = frozenset({"--model", "--served-model-name", "--host", "--port", "--uds", "--api-key", "--ssl-keyfile", "--ssl-certfile"})


@dataclass(frozen=True)
class EngineSpec:
    """One engine process: a model on one local upstream.

    python: interpreter of the environment that has the engine; None: Tandem's own, and for vLLM the one that Tandem installed
    (`local_models.installed`), else the one behind `vllm` on the PATH.
    args: further command-line flags. env: further variables; these may hold secrets.
    plan, text_only, speculative: for vLLM only; plan: whether flags come from the planner, as far as args leaves them open.
    memory: bytes that it takes of each of its devices; None: estimated. pinned: never stopped so that another one may start.
    """

    engine_id: str
    kind: EngineKind
    model: str
    served_model_name: str
    python: Path | None = None
    device: str = "auto"
    dtype: str = "auto"
    start_timeout_s: float = 600.0
    idle_unload_s: float | None = None
    max_restarts: int = 3
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    max_queue: int = 64
    plan: bool = True
    text_only: bool = False
    speculative: Literal["mtp"] | None = None
    memory: int | None = None
    pinned: bool = False


@dataclass(frozen=True)
class Launch:
    """What to run, and where it says that it is ready: 2xx on GET http://`host`:PORT`ready_path`. note: first line of its log.

    vllm_model: the name under which a vLLM serves its model. It is ready once that is listed and one token of it has been made; its log
    says how far it is, and why it died. None: a program that says on `ready_path` all there is to know.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(repr=False)
    cwd: Path | None = None
    host: str = HOST
    ready_path: str = "/health"
    note: str | None = None
    vllm_model: str | None = None


@dataclass(frozen=True)
class Planned:
    """What a plan adds to the command line and the environment of vLLM. line: the plan in one line, for the log."""

    flags: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    line: str | None = None


NOT_PLANNED = Planned()


def launch_engine(
    spec: EngineSpec, port: int, key: str, environ: Mapping[str, str] | None = None, planned: Planned = NOT_PLANNED
) -> Launch:
    """How to run this engine. environ: the environment to take from, by default this process's. Raises StartFailed."""
    surroundings = os.environ if environ is None else environ
    if spec.kind == "vllm":
        return _launch_vllm(spec, port, key, surroundings, planned)
    return _launch_worker(spec, port, key, surroundings)


def resolve_model(model: str) -> str:
    """Directory of a `builtin:` model, anything else as it is."""
    builtin = BUILTIN_MODELS.get(model)
    return model if builtin is None else str(builtin)


def child_environment(environ: Mapping[str, str], *extra: Mapping[str, str]) -> dict[str, str]:
    """What a child needs of `environ`, without its secrets, overridden by each of `extra` in turn."""
    env = {name: value for name, value in environ.items() if _is_passed_on(name)}
    env |= {"PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false"}
    for more in extra:
        env |= more
    return env


def _is_passed_on(name: str) -> bool:
    if name in _NOT_PASSED_ON or _SECRET.fullmatch(name.upper()):
        return False
    return _PASSED_ON.fullmatch(name.upper()) is not None


def _engine_environment(
    spec: EngineSpec, python: Path, environ: Mapping[str, str], defaults: Mapping[str, str], key: Mapping[str, str]
) -> dict[str, str]:
    offline = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    env = child_environment(environ, offline, defaults, spec.env, key)
    # tools installed beside the interpreter (ninja, for kernels built at start) are only found through the PATH
    env["PATH"] = os.pathsep.join([str(python.parent), env.get("PATH", os.defpath)])
    return env


def _launch_worker(spec: EngineSpec, port: int, key: str, environ: Mapping[str, str]) -> Launch:
    python = spec.python or Path(sys.executable)
    argv = [str(python), "-m", WORKERS[spec.kind], "--model", resolve_model(spec.model), "--served-model-name", spec.served_model_name]
    argv += ["--port", str(port), "--device", spec.device, "--dtype", spec.dtype]
    if spec.kind == "transformers":
        argv += ["--max-queue", str(spec.max_queue)]
    env = _engine_environment(spec, python, environ, {}, {"TANDEM_WORKER_KEY": key})
    return Launch(argv=(*argv, *spec.args), env=env, cwd=PROJECT)  # -m finds the package from here, installed or not


def _launch_vllm(spec: EngineSpec, port: int, key: str, environ: Mapping[str, str], planned: Planned) -> Launch:
    given = given_flags(spec.args).keys()
    if reserved := sorted(given & _OWN_VLLM_FLAGS):
        raise StartFailed(
            spec.engine_id, f"its args set {', '.join(reserved)}, which Tandem chooses itself; remove them from the configuration"
        )
    program, serve = _vllm_program(spec, environ)
    # no access log: a line for each look at its health would push the telling ones out
    argv = [*serve, "--disable-uvicorn-access-log", "--served-model-name", spec.served_model_name, "--host", HOST, "--port", str(port)]
    if spec.dtype != "auto":
        argv += ["--dtype", spec.dtype]
    if "--allowed-media-domains" not in given:
        argv += [f"--allowed-media-domains={NO_HOST}"]  # pictures come inside the request: the gateway fetches, past its own guard
    argv += _qwen_flags(spec.model, given)
    argv += feature_flags(spec, given)
    argv += planned.flags
    defaults = {
        "VLLM_NO_USAGE_STATS": "1",
        "PYTHONSAFEPATH": "1",  # the folder Tandem was started in must not shadow vLLM's modules
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # as nvidia-smi counts: a plan for the first GPU must be for the one that vLLM takes
        **_visible_devices(spec.device, environ.get("CUDA_VISIBLE_DEVICES")),
        **planned.env,
    }
    env = _engine_environment(spec, program, environ, defaults, {"VLLM_API_KEY": key})
    return Launch(argv=(*argv, *spec.args), env=env, note=planned.line, vllm_model=spec.served_model_name)


def _visible_devices(device: str, visible: str | None) -> dict[str, str]:
    """vLLM has no flag for one GPU of several: `cuda:N` is the Nth of those that Tandem itself may see."""
    kind, _, number = device.partition(":")
    if kind != "cuda" or not number:
        return {}
    choices = [choice.strip() for choice in (visible or "").split(",") if choice.strip()]
    return {"CUDA_VISIBLE_DEVICES": choices[int(number)] if int(number) < len(choices) else number}


def _vllm_program(spec: EngineSpec, environ: Mapping[str, str]) -> tuple[Path, list[str]]:
    """The file to run, and the command up to the model."""
    python = spec.python
    if python is None:
        found = shutil.which("vllm", path=environ.get("PATH", os.defpath))
        if found is None:
            raise StartFailed(
                spec.engine_id,
                f"vLLM is not installed; `{install_command(spec.device)}` makes an environment for it,"
                " or set `python` of the upstream to the interpreter of one that you made",
            )
        python = interpreter_of(Path(found))
        if python is None:
            return Path(found), [found, "serve", spec.model]
    if not os.access(python, os.X_OK):
        raise StartFailed(spec.engine_id, f"its interpreter {python} cannot be run; correct `python` of the upstream")
    return python, [str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", spec.model]


def interpreter_of(script: Path) -> Path | None:
    """The Python that an installed console script runs with, from its first line; None when that names none.

    Preferred over the script: builds of vLLM under another distribution name install a `vllm` command that only fails.
    """
    try:
        with script.open("rb") as file:
            line = file.readline(512)
    except OSError:
        return None
    words = line.removeprefix(b"#!").split()
    if not line.startswith(b"#!") or len(words) != 1 or b"python" not in words[0]:
        return None
    python = Path(os.fsdecode(words[0]))
    return python if python.is_absolute() and os.access(python, os.X_OK) else None


def feature_flags(spec: EngineSpec, given: Container[str]) -> list[str]:
    """vLLM's flags for keys of the upstream, as far as the user did not write them himself."""
    flags = ["--language-model-only"] if spec.text_only and "--language-model-only" not in given else []
    if spec.speculative == "mtp" and not any(flag in given for flag in ("--speculative-config", "--spec-method", "--spec-model")):
        flags += ["--speculative-config", json.dumps(MTP, separators=(",", ":"))]
    return flags


def _qwen_flags(model: str, given: Container[str]) -> list[str]:
    """What Qwen3.5 needs for reasoning and tool calls to be told from text, as far as the user did not decide it."""
    if not re.search(r"qwen3[._]5", model, re.IGNORECASE):
        return []
    flags = [] if "--reasoning-parser" in given else ["--reasoning-parser", "qwen3"]
    if "--no-enable-auto-tool-choice" in given:
        return flags
    if "--enable-auto-tool-choice" not in given:
        flags.append("--enable-auto-tool-choice")
    if "--tool-call-parser" not in given:
        flags += ["--tool-call-parser", "qwen3_coder"]
    return flags
