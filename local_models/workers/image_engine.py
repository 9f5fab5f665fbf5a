"""A diffusers pipeline and the pictures it makes, one at a time. Runs in the engine thread only.

`pipe._interrupt` would let the remaining steps spin and still decode, so a job is left by raising out of the step
callback; what the pipeline does at the end of a call is then done here.
"""

from __future__ import annotations

import base64
import inspect
import io
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from PIL import Image

from local_models.workers.checkpoint import read_json_file, weight_bytes
from local_models.workers.errors import ApiError, Cancelled
from local_models.workers.image_request import ImageRequest
from local_models.workers.jobs import Job
from local_models.workers.torch_device import choose_device, choose_dtype, cores, use_threads

INDEX = "model_index.json"
FREE_SHARE = 0.85  # of the free GPU memory for weights; the rest is for what a step computes

Report = Callable[[str, float], None]


class ImageEngine:
    """A loaded pipeline. Build it with `load`."""

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe
        self._parameters = inspect.signature(pipe.__call__).parameters
        self._size_multiple = size_multiple(pipe)
        self.steps_done = 0

    def check(self, request: ImageRequest) -> None:
        """Raises ApiError for what this pipeline cannot do."""
        for name in ("width", "height"):
            if (value := getattr(request, name)) % self._size_multiple:
                multiple = self._size_multiple
                raise ApiError(
                    f"'{name}' is {value}; this model needs a multiple of {multiple}. Take {nearest(value, multiple)}.",
                    param=name,
                    code="invalid_value",
                )
        for name in ("width", "height", "num_inference_steps", "negative_prompt", "guidance_scale"):
            if getattr(request, name) is not None and name not in self._parameters:
                raise ApiError(
                    f"'{name}' is given, but {type(self._pipe).__name__} has no such setting; leave it out.",
                    param=name,
                    code="unsupported_parameter",
                )

    def draw(self, request: ImageRequest, job: Job) -> None:
        """The work of one job: n pictures, told step by step as the events of the worker's stream."""
        started = time.monotonic()
        for index in range(request.n):
            self._draw_one(request, index, job)
        job.emit({"type": "done", "duration_s": seconds_since(started)})

    def _draw_one(self, request: ImageRequest, index: int, job: Job) -> None:
        started = time.monotonic()
        picture = self._picture(request, index, job)
        if picture.size != (request.width, request.height):
            raise ApiError(
                f"The model made {picture.width}x{picture.height} instead of {request.width}x{request.height}; ask for a size it can make.",
                param="width",
                code="invalid_value",
            )
        job.emit(
            {
                "type": "image",
                "image_index": index,
                "b64_json": png_base64(picture),
                "seed": request.seed + index,
                "width": picture.width,
                "height": picture.height,
                "duration_s": seconds_since(started),
            }
        )

    @torch.inference_mode()
    def _picture(self, request: ImageRequest, index: int, job: Job) -> Image.Image:
        pipe = self._pipe
        pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)  # nothing of an aborted run stays in it
        done = 0

        def on_step(step: int) -> None:
            nonlocal done
            done = step + 1
            self.steps_done += 1
            steps = getattr(pipe, "num_timesteps", None) or request.num_inference_steps
            job.emit({"type": "progress", "image_index": index, "step": done, "steps": steps})
            job.checkpoint()

        job.checkpoint()
        try:
            picture = pipe(**self._arguments(request, index), **self._callback(on_step)).images[0]
        except ValueError as error:
            if done:
                raise
            raise ApiError(f"The model refuses the request: {error}", code="invalid_value") from error
        except Cancelled:
            pipe.maybe_free_model_hooks()  # a call that ends by itself does this
            raise
        assert isinstance(picture, Image.Image)
        return picture

    def _arguments(self, request: ImageRequest, index: int) -> dict[str, Any]:
        given = {
            "prompt": request.prompt,
            "negative_prompt": request.negative_prompt,
            "width": request.width,
            "height": request.height,
            "num_inference_steps": request.num_inference_steps,
            guidance_name(self._parameters): request.guidance_scale,
        }
        # the noise is made on the CPU, whose generator gives the same numbers on every machine
        generator = torch.Generator("cpu").manual_seed(request.seed + index)
        return {**{name: value for name, value in given.items() if value is not None}, "generator": generator}

    def _callback(self, on_step: Callable[[int], None]) -> dict[str, Any]:
        """The step callback under the name the pipeline knows; without one, a job can only be left between pictures."""

        def new_style(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            on_step(step)
            return tensors

        if "callback_on_step_end" in self._parameters:
            return {"callback_on_step_end": new_style}
        if "callback" in self._parameters:
            return {"callback": lambda step, timestep, latents: on_step(step), "callback_steps": 1}
        return {}


def load(folder: Path, device: str, dtype: str, report: Report) -> ImageEngine:
    """report: stage and fraction done, from 0 to 1."""
    where = choose_device(device)
    use_threads(cores())
    index = read_json_file(folder / INDEX)
    options: dict[str, Any] = {"safety_checker": None, "requires_safety_checker": False} if "safety_checker" in index else {}
    chosen = choose_dtype(dtype, where, torch.bfloat16, weight_bytes(folder))
    report("reading weights", 0.0)
    with _counted_components(folder, report):
        pipe = DiffusionPipeline.from_pretrained(folder, dtype=chosen, use_safetensors=True, local_files_only=True, **options)
    report(f"moving weights to {where.type}", 0.95)
    pipe.set_progress_bar_config(disable=True)
    if fits(where, weight_bytes(folder)):
        pipe.to(where)
    else:
        pipe.enable_model_cpu_offload(device=where)
    return ImageEngine(pipe)


@contextmanager
def _counted_components(folder: Path, report: Report) -> Iterator[None]:
    """Progress by the bytes of the components read. diffusers has no hook, only the progress bar that is replaced here."""
    total = max(1, weight_bytes(folder))
    bar = diffusers_logging.tqdm

    def counted(components: Any, **_: Any) -> Iterator[Any]:
        read = 0
        for component in components:
            yield component
            read += weight_bytes(folder / component[0])
            report("reading weights", 0.95 * read / total)

    diffusers_logging.tqdm = counted
    try:
        yield
    finally:
        diffusers_logging.tqdm = bar


def fits(device: torch.device, size_bytes: int) -> bool:
    """Whether the weights fit the device at once; on a GPU that is too small the components take turns."""
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return size_bytes < free * FREE_SHARE


def size_multiple(pipe: Any) -> int:
    """What width and height must be a multiple of: the VAE's factor, times the patch where latents are packed."""
    processor = getattr(pipe, "image_processor", None)
    factor = int(processor.config.vae_scale_factor) if processor is not None else int(getattr(pipe, "vae_scale_factor", 8))
    patch = getattr(pipe, "patch_size", None)
    return max(factor, int(pipe.vae_scale_factor) * patch) if isinstance(patch, int) else factor


def nearest(value: int, multiple: int) -> int:
    return max(multiple, round(value / multiple) * multiple)


def guidance_name(parameters: Mapping[str, inspect.Parameter]) -> str:
    """Qwen-Image and its kin guide with `true_cfg_scale` and ignore `guidance_scale`: its default above 1 tells."""
    true_cfg = parameters.get("true_cfg_scale")
    return "true_cfg_scale" if true_cfg is not None and isinstance(true_cfg.default, float) and true_cfg.default > 1 else "guidance_scale"


def png_base64(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def seconds_since(started: float) -> float:
    return round(time.monotonic() - started, 3)
