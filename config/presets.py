"""Defaults of image models that are known by name, so that a configuration need not repeat their cards.

Steps and guidance are not portable between models: a distilled one is slow and worse with the usual 28 steps. What a configuration says
goes over these values; a model that is not here has the defaults of `ImageSpec`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

ImagePreset = Mapping[str, str | int | float]

# Sources: the models' cards on the Hub. Guidance 0 or 1 switches classifier-free guidance off, as their distillation wants it.
IMAGE_PRESETS: Mapping[str, ImagePreset] = MappingProxyType(
    {
        "black-forest-labs/FLUX.2-klein-4B": {
            "default_size": "1024x1024",
            "size_multiple": 16,
            "min_side": 256,
            "max_side": 2048,
            "num_inference_steps": 4,
            "max_num_inference_steps": 50,
            "guidance_scale": 1.0,
        },
        "Tongyi-MAI/Z-Image-Turbo": {
            "default_size": "1024x1024",
            "size_multiple": 16,
            "min_side": 512,
            "max_side": 2048,
            "num_inference_steps": 9,
            "max_num_inference_steps": 50,
            "guidance_scale": 0.0,
        },
        "stabilityai/sd-turbo": {
            "default_size": "512x512",
            "size_multiple": 8,
            "min_side": 256,
            "max_side": 768,
            "num_inference_steps": 1,
            "max_num_inference_steps": 8,
            "guidance_scale": 0.0,
        },
    }
)


def image_preset(model: str) -> ImagePreset:
    """What is known about the model with this Hub id; nothing for any other."""
    return IMAGE_PRESETS.get(model, {})
