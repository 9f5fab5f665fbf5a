"""An image request, read and checked against its model's limits. Pure: bytes in, an `ImageRequest` or one clear error out.

Unlike chat fields, an unknown image field is refused by name: there is nobody further on who might know it.
"""

from __future__ import annotations

import secrets
from reprlib import repr as shown
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from config.schema import ImageSpec, ModelSpec, parse_size
from gateway.chat_request import parse_object
from gateway.errors import GatewayError, from_validation, invalid

MAX_PROMPT_CHARACTERS = 32_000  # OpenAI's limit for its image models
MAX_SEED = 2**32 - 1


class ImageRequest(BaseModel):
    """The fields of POST /v1/images/generations: OpenAI's, then diffusers' (`seed` and the rest) under its names."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    model: str = Field(min_length=1)
    prompt: str = Field(max_length=MAX_PROMPT_CHARACTERS)
    n: int | None = None
    size: str | None = None
    response_format: Literal["b64_json"] | None = None
    output_format: Literal["png"] | None = None
    quality: Literal["auto"] | None = None
    background: Literal["auto", "opaque"] | None = None
    moderation: Literal["auto", "low"] | None = None
    partial_images: Literal[0] | None = None
    stream: bool | None = None
    user: str | None = None
    seed: int | None = Field(default=None, ge=0, le=MAX_SEED)
    num_inference_steps: int | None = None
    guidance_scale: float | None = Field(default=None, ge=0, le=100, strict=False)
    negative_prompt: str | None = Field(default=None, max_length=MAX_PROMPT_CHARACTERS)


# What to do instead, for OpenAI's own fields of which only some values can be honoured here.
_ADVICE = {
    "response_format": "only 'b64_json' is supported: the picture comes in data[].b64_json; leave the field out",
    "output_format": "only 'png' is supported; leave the field out",
    "quality": "only 'auto' is supported; use num_inference_steps to trade time for quality",
    "background": "only 'auto' and 'opaque' are supported: pictures have no transparent background",
    "moderation": "it must be 'auto' or 'low'",
    "partial_images": "only 0 is supported: with stream=true progress comes as image_generation.progress events",
}


def parse(body: bytes) -> ImageRequest:
    """Raises GatewayError (400)."""
    fields = parse_object(body)
    try:
        request = ImageRequest.model_validate(fields)
    except ValidationError as error:
        raise _refusal(error, fields) from error
    if not request.prompt.strip():
        raise invalid("prompt is empty; say what the picture should show", "prompt")
    return request


def _refusal(error: ValidationError, fields: dict[str, Any]) -> GatewayError:
    problems = error.errors(include_url=False)
    name = str(problems[0]["loc"][0])
    if name in _ADVICE and problems[0]["type"] == "literal_error":
        return invalid(f"{name} is {shown(fields[name])}; {_ADVICE[name]}", name, "unsupported_value")
    known = ", ".join(ImageRequest.model_fields)
    return from_validation([dict(problem) for problem in problems], f"; the fields of this route are {known}")


def work_for(request: ImageRequest, model: ModelSpec) -> dict[str, Any]:
    """What the worker is asked for: every default filled in, every limit checked. Raises GatewayError (400)."""
    limits = model.image
    assert limits is not None, "an image model has an image section"
    width, height = _size(request.size, model, limits)
    count = _within(request.n, 1, 1, limits.max_n, "n", model)
    steps = _within(
        request.num_inference_steps, limits.num_inference_steps, 1, limits.max_num_inference_steps, "num_inference_steps", model
    )
    work: dict[str, Any] = {
        "prompt": request.prompt,
        "n": count,
        "width": width,
        "height": height,
        "num_inference_steps": steps,
        "seed": request.seed if request.seed is not None else secrets.randbelow(MAX_SEED + 1),
    }
    guidance = request.guidance_scale if request.guidance_scale is not None else limits.guidance_scale
    if guidance is not None:
        work["guidance_scale"] = guidance
    if request.negative_prompt:
        work["negative_prompt"] = request.negative_prompt
    return work


def _size(size: str | None, model: ModelSpec, limits: ImageSpec) -> tuple[int, int]:
    if size is None or size == "auto":
        return parse_size(limits.default_size)
    allowed = f"sides from {limits.min_side} to {limits.max_side} in multiples of {limits.size_multiple}, such as '{limits.default_size}'"
    try:
        width, height = parse_size(size)
    except ValueError:
        raise invalid(f"size {size[:40]!r} is not WIDTHxHEIGHT; the model '{model.name}' makes {allowed}", "size") from None
    problem = limits.size_problem(width, height)
    if problem is not None:
        raise invalid(f"size {size}: {problem}; the model '{model.name}' makes {allowed}", "size")
    return width, height


def _within(value: int | None, default: int, least: int, most: int, name: str, model: ModelSpec) -> int:
    if value is None:
        return default
    if not least <= value <= most:
        raise invalid(f"{name} is {value}; the model '{model.name}' takes {least} to {most}", name)
    return value
