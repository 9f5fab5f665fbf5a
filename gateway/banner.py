"""What the terminal says at the start and once everything answers. Pure: facts in, lines out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from config import __version__
from config.loader import profile_names
from config.readiness import Report
from gateway.loading import loading
from gateway.startup import Choice, Keys

Line = tuple[str, str]
"""Label and text; a label of "" continues the line before."""


def opening(choice: Choice, report: Report, data_dir: str) -> list[Line]:
    """Which configuration was chosen and why, how to choose another, and what is missing."""
    settings = choice.settings
    lines = [("Tandem", __version__), ("profile", f"{settings.profile}: {choice.reason}")]
    if choice.config_file is not None:
        lines.append(("", f"with {choice.config_file} over it"))
    others = " | ".join(name for name in profile_names() if name != settings.profile)
    lines.append(("", f"choose another with --profile {others}, or write a tandem.yaml"))
    lines.append(("models", ", ".join(f"{model.name} ({model.kind})" for model in report.models)))
    for model in report.unusable:
        first = model.deployments[0]
        lines.append(("", f"{model.name} cannot answer yet; {first.missing[0]} (all of it: tandem check)"))
    lines.append(("data", data_dir))
    return lines


def ready(host: str, api: str | None, chat_app: str | None, keys: Keys | None) -> list[Line]:
    """Both addresses, and the API key: in full when it was made just now, later only where it lies. host: as listened on."""
    lines: list[Line] = []
    if api is not None:
        lines.append(("API", f"{api}/v1"))
    if chat_app is not None:
        lines.append(("chat app", chat_app))
    if keys is not None:
        lines.append(("API key", _key_text(keys)))
    if chat_app is not None and not is_loopback(host):
        lines.append(("note", f"the chat app has no login: whoever reaches {host} can use it"))
    lines.append(("", "Ctrl-C ends everything"))
    return lines


def is_loopback(host: str) -> bool:
    """Whether only programs on this machine can reach a server that listens there."""
    return host == "localhost" or host == "::1" or host.startswith("127.")


def _key_text(keys: Keys) -> str:
    if keys.created:
        return f"{keys.plain}   (shown this once; kept in {keys.path})"
    return "the value of TANDEM_API_KEY" if keys.path is None else f"in {keys.path}"


def plain(lines: Iterable[Line]) -> list[str]:
    """The lines as text, labels in one column."""
    return [f"{label:<10}{text}" for label, text in lines]


@dataclass(frozen=True)
class EngineState:
    """What GET /v1/models says of one local deployment."""

    state: str
    progress: float | None = None
    stage: str | None = None
    reason: str | None = None
    jobs: Mapping[str, int] | None = None
    """Of the running image job: step, steps; and how many are waiting."""


def engine_states(body: object) -> dict[str, EngineState]:
    """The local deployments in an answer of GET /v1/models, by "model on upstream"."""
    found: dict[str, EngineState] = {}
    models = body.get("data") if isinstance(body, Mapping) else None
    for model in models if isinstance(models, list) else []:
        for deployment in model["tandem"]["deployments"]:
            if deployment["local"]:
                label = f"{model['id']} on {deployment['upstream']}"
                known = ("state", "progress", "stage", "reason", "jobs")
                found[label] = EngineState(**{name: deployment[name] for name in known})
    return found


def news(before: Mapping[str, EngineState], now: Mapping[str, EngineState]) -> list[str]:
    """One line for each engine that changed its state."""
    lines: list[str] = []
    for label, engine in now.items():
        if before.get(label, EngineState("stopped")).state == engine.state:
            continue
        match engine.state:
            case "starting":
                lines.append(f"{label}: loading")
            case "ready":
                lines.append(f"{label}: ready")
            case "failed":
                lines.append(f"{label}: failed: {engine.reason}")
            case "stopped":
                lines.append(f"{label}: unloaded")
    return lines


def work(now: Mapping[str, EngineState]) -> str | None:
    """What is loading or drawing and how far it is, for a line that is drawn again and again; None when nothing is."""
    parts = []
    for label, engine in now.items():
        if engine.state == "starting":
            parts.append(f"{label}: {loading(engine.progress, engine.stage)}")
        elif engine.jobs is not None:
            waiting = f", {engine.jobs['waiting']} waiting" if engine.jobs["waiting"] else ""
            parts.append(f"{label}: drawing, step {engine.jobs['step']} of {engine.jobs['steps']}{waiting}")
    return "; ".join(parts) or None
