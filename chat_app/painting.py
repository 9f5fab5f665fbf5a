"""The work of an image run: one streaming request, whose events say where the job stands."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping
from typing import Any

from PIL import Image

from chat_app.catalog import Progress
from chat_app.client import Gateway
from chat_app.records import ImageRequest, Picture, State
from chat_app.runs import Run

Keep = Callable[[bytes, str, int, int], Picture]


class NoPicture(Exception):
    def __init__(self, wanted: int, got: int) -> None:
        super().__init__(f"the gateway ended the stream after {got} of {wanted} pictures; try again")


def paint(run: Run, gateway: Gateway, request: ImageRequest, keep: Keep) -> None:
    """Stream the pictures into the run. Raises what the SDK raises, and NoPicture."""
    run.show(Progress("Waiting for the gateway"), State.QUEUED)
    got = 0
    with gateway.session(run.line) as client:
        stream = client.images.generate(
            model=request.model, prompt=request.prompt, n=request.n, size=request.size, stream=True, extra_body=_extras(request)
        )
        with stream:
            run.request_id = stream.response.headers.get("x-request-id")
            for event in stream:
                facts = event.to_dict(exclude_unset=False, warnings=False)
                if facts.get("type") == "image_generation.completed":
                    run.add_picture(_picture(facts, keep))
                    got += 1
                elif (shown := progress_of(facts, request.n)) is not None:
                    run.show(*shown)
    if got < request.n:
        raise NoPicture(request.n, got)


def progress_of(event: Mapping[str, Any], n: int) -> tuple[Progress, State] | None:
    """What one event of the image stream means to the person who waits; None for an event of no interest."""
    match event.get("type"):
        case "image_generation.queued":
            position = event.get("position") or 0
            return Progress(f"{_ordinal(position)} in the queue" if position > 0 else "Next in the queue"), State.QUEUED
        case "image_generation.loading":
            fraction = event.get("progress")
            percent = "" if fraction is None else f" {round(fraction * 100)} %"
            stage = f": {event['stage']}" if event.get("stage") else ""
            return Progress(f"Loading the model{percent}{stage}", fraction), State.LOADING
        case "image_generation.progress":
            return Progress(_step_line(event, n), min(1.0, event["step"] / max(1, event["steps"]))), State.RUNNING
    return None


def _step_line(event: Mapping[str, Any], n: int) -> str:
    parts = [f"picture {event.get('image_index', 0) + 1} of {n}"] if n > 1 else []
    parts.append(f"step {event['step']}/{event['steps']}")
    if (eta_s := event.get("eta_s")) is not None:
        parts.append(f"ETA {max(0, round(eta_s))} s")
    return " · ".join(parts)


def _ordinal(number: int) -> str:
    suffix = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{suffix}"


def _extras(request: ImageRequest) -> dict[str, object]:
    """The fields the SDK has no names for; what is not set is left to the model."""
    fields = {
        "seed": request.seed,
        "num_inference_steps": request.num_inference_steps,
        "guidance_scale": request.guidance_scale,
        "negative_prompt": request.negative_prompt or None,
    }
    return {name: value for name, value in fields.items() if value is not None}


def _picture(event: Mapping[str, Any], keep: Keep) -> Picture:
    content = base64.b64decode(event["b64_json"])
    with Image.open(io.BytesIO(content)) as image:
        width, height = image.size
        media_type = Image.MIME[image.format or "PNG"]
    kept = keep(content, media_type, width, height)
    return Picture(kept.digest, kept.media_type, width, height, event.get("seed"), event.get("duration_s"))
