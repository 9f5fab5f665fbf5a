"""Who is measured, and the command that starts each. Pure but for the installation of the peers."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.chat import peers
from bench.chat.processes import free_port
from config import __version__

ROOT = Path(__file__).resolve().parent.parent.parent
KEY = "sk-bench"
_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Place:
    """Where an entrant runs. port: its own. upstream_port: whom it passes requests on to. folder: empty, for whatever it writes.
    cache: where peers are installed. say: for a line of progress."""

    port: int
    upstream_port: int
    folder: Path
    cache: Path
    say: Callable[[str], None] = lambda text: None

    @property
    def upstream(self) -> str:
        return f"http://127.0.0.1:{self.upstream_port}"


@dataclass(frozen=True)
class Launch:
    """How to start an entrant. environ: all of it."""

    command: list[str]
    environ: dict[str, str]


@dataclass(frozen=True)
class Entrant:
    """name: for --only and the results. launch: None where there is nothing between the load and the upstream. peer: made by others.

    launch raises EntrantFailed where it cannot be started here.
    """

    name: str
    title: str
    version: str
    launch: Callable[[Place], Launch] | None
    peer: bool = False


def _ours(place: Place, **more: str) -> dict[str, str]:
    """The environment of what runs from this checkout: a user's own settings must not change what is measured."""
    return {**_plain(), "PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1", "BENCH_UPSTREAM": f"{place.upstream}/v1", **more}


def _plain(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    own = ("TANDEM_", "OPENROUTER_", "LITELLM_", "OPENAI_", "OTEL_", "PYTHON", "UVICORN_")
    kept = {name: value for name, value in environ.items() if not name.startswith(own) and not name.lower().endswith("_proxy")}
    return {**kept, "NO_COLOR": "1"}


def _uvicorn(module: str) -> Callable[[Place], Launch]:
    def launch(place: Place) -> Launch:
        options = ["--factory", "--host", "127.0.0.1", "--port", str(place.port), "--loop", "uvloop", "--http", "httptools"]
        quiet = ["--no-access-log", "--log-level", "warning"]
        return Launch([sys.executable, "-m", "uvicorn", f"bench.chat.{module}:make_app", *options, *quiet], _ours(place))

    return launch


def _tandem(place: Place) -> Launch:
    options = ["--config", str(_HERE / "tandem.yaml"), "--profile", "demo", "--host", "127.0.0.1", "--port", str(place.port)]
    command = [sys.executable, "-m", "gateway.cli", "serve", *options, "--data-dir", str(place.folder)]
    return Launch(command, _ours(place, TANDEM_API_KEY=KEY))


def _litellm(place: Place) -> Launch:
    script = peers.install(peers.LITELLM, place.cache, place.say)
    options = ["--config", str(_HERE / "litellm.yaml"), "--host", "127.0.0.1", "--port", str(place.port), "--num_workers", "1"]
    # As its documentation asks for in production; and no network at the start.
    settings = {"LITELLM_MODE": "PRODUCTION", "LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    return Launch([str(script), *options], {**_plain(), **settings, "BENCH_UPSTREAM": f"{place.upstream}/v1", "BENCH_KEY": KEY})


def _vllm_router(place: Place) -> Launch:
    script = peers.install(peers.VLLM_ROUTER, place.cache, place.say)
    options = ["--host", "127.0.0.1", "--port", str(place.port), "--worker-urls", place.upstream, "--policy", "round_robin"]
    quiet = ["--log-level", "warning", "--prometheus-port", str(free_port())]
    return Launch([str(script), *options, *quiet], _plain())


def entrants() -> list[Entrant]:
    """All of them, in the order of the table."""
    return [
        Entrant("direct", "direct", "", None),
        Entrant("hot-path", "bare hot path", "", _uvicorn("hot_path")),
        Entrant("tandem", "Tandem", __version__, _tandem),
        Entrant("vllm-router", "vllm-router (Rust)", peers.VLLM_ROUTER.version, _vllm_router, peer=True),
        Entrant("aiohttp", "ASGI + aiohttp", "", _uvicorn("passthrough")),
        Entrant("litellm", "LiteLLM proxy", peers.LITELLM.version, _litellm, peer=True),
    ]
