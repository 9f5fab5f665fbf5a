"""What the engine concludes about a pipeline, without one."""

from __future__ import annotations

import inspect
import warnings
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest


@pytest.fixture(scope="module")
def image_engine() -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # diffusers' own, at import
        from local_models.workers import image_engine
    return image_engine


def processor(factor: int) -> SimpleNamespace:
    return SimpleNamespace(config=SimpleNamespace(vae_scale_factor=factor))


@pytest.mark.parametrize(
    ("pipe", "multiple"),
    [
        (SimpleNamespace(image_processor=processor(8), vae_scale_factor=8), 8),  # Stable Diffusion
        (SimpleNamespace(image_processor=processor(16), vae_scale_factor=8), 16),  # FLUX, Qwen-Image, Z-Image: packed latents
        (SimpleNamespace(image_processor=processor(8), vae_scale_factor=8, patch_size=2), 16),  # Stable Diffusion 3
        (SimpleNamespace(vae_scale_factor=32), 32),
    ],
)
def test_sizes_are_multiples_of_the_vae_and_the_patch(image_engine: ModuleType, pipe: Any, multiple: int) -> None:
    assert image_engine.size_multiple(pipe) == multiple


@pytest.mark.parametrize(("value", "taken"), [(100, 96), (108, 112), (1, 16), (1030, 1024)])
def test_a_refused_size_comes_with_one_that_works(image_engine: ModuleType, value: int, taken: int) -> None:
    assert image_engine.nearest(value, 16) == taken


def test_guidance_goes_where_the_pipeline_looks_for_it(image_engine: ModuleType) -> None:
    def flux(guidance_scale: float = 3.5, true_cfg_scale: float = 1.0) -> None: ...
    def qwen_image(guidance_scale: float | None = None, true_cfg_scale: float = 4.0) -> None: ...

    assert image_engine.guidance_name(inspect.signature(flux).parameters) == "guidance_scale"
    assert image_engine.guidance_name(inspect.signature(qwen_image).parameters) == "true_cfg_scale"


def test_the_cpu_holds_everything(image_engine: ModuleType) -> None:
    assert image_engine.fits(image_engine.torch.device("cpu"), 10**15)
