"""How far an engine is with its start, in words for whoever waits for it. One wording for the terminal and for streams."""

from __future__ import annotations

from local_models.runtime import Runtime


def loading(progress: float | None, stage: str | None) -> str:
    """progress: 0 to 1."""
    percent = "" if progress is None else f" {progress:.0%}"
    return f"loading{percent}{f' ({stage})' if stage else ''}"


def wait_for(runtime: Runtime, engine_id: str) -> str | None:
    """What a request on this engine waits for; None where nothing of ours keeps it waiting."""
    if engine_id not in runtime.engines():
        return None  # hosted
    status = runtime.status(engine_id)
    return loading(status.progress, status.stage) if status.state == "starting" else None
