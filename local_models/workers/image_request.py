"""The body of the image worker's /v1/images/generations, read and checked. Pure: no pipeline."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from local_models.workers import fields
from local_models.workers.errors import ApiError
from local_models.workers.fields import JsonObject, shown

MAX_PROMPT_CHARS = 32_000
MAX_N = 16
MAX_SIDE = 8192
MAX_STEPS = 1000
MAX_SEED = 2**63 - 1
FIELDS = ("model", "prompt", "negative_prompt", "n", "width", "height", "num_inference_steps", "guidance_scale", "seed", "preview")


@dataclass(frozen=True)
class ImageRequest:
    """None: leave it to the pipeline. The seed is always known, so that every picture can be made again."""

    prompt: str
    negative_prompt: str | None
    n: int
    width: int
    height: int
    num_inference_steps: int
    guidance_scale: float | None
    seed: int


def parse_image_request(body: JsonObject) -> ImageRequest:
    if unknown := [name for name in body if name not in FIELDS]:
        raise ApiError(
            f"The field {shown(unknown[0])} is unknown; the worker reads {', '.join(FIELDS)}.", param=unknown[0], code="unknown_parameter"
        )
    fields.boolean(body, "preview")  # announced for later: no pipeline of today shows half-finished pictures
    seed = fields.integer(body, "seed", 0, MAX_SEED)
    return ImageRequest(
        prompt=_prompt(body),
        negative_prompt=fields.text(body, "negative_prompt", MAX_PROMPT_CHARS),
        n=fields.integer(body, "n", 1, MAX_N) or 1,
        width=_required(body, "width", MAX_SIDE),
        height=_required(body, "height", MAX_SIDE),
        num_inference_steps=_required(body, "num_inference_steps", MAX_STEPS),
        guidance_scale=fields.number(body, "guidance_scale", 0, 100),
        seed=secrets.randbelow(2**31) if seed is None else seed,
    )


def _prompt(body: JsonObject) -> str:
    prompt = fields.text(body, "prompt", MAX_PROMPT_CHARS)
    if prompt is None or not prompt.strip():
        raise ApiError("'prompt' is empty; describe the picture.", param="prompt", code="missing_required_parameter")
    return prompt


def _required(body: JsonObject, name: str, high: int) -> int:
    value = fields.integer(body, name, 1, high)
    if value is None:
        raise ApiError(f"'{name}' is missing; send a whole number from 1 to {high}.", param=name, code="missing_required_parameter")
    return value
