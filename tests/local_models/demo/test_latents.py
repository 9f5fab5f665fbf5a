"""The fixed latents of demo-image."""

import random

import torch
import torch.nn.functional as F

from local_models.demo.latents import CHANNELS, latents_of, thumbnail_of
from local_models.demo.train_image import pixels_of
from local_models.demo.world import random_scene, single


def test_latents_keep_the_quarter_size_picture_exactly() -> None:
    rng = random.Random(0)
    pixels = pixels_of([random_scene(rng) for _ in range(4)], 96, 128)
    latents = latents_of(pixels)
    assert latents.shape == (4, CHANNELS, 32, 24)
    torch.testing.assert_close(thumbnail_of(latents), F.avg_pool2d(pixels, 4))


def test_a_flat_area_has_no_edge() -> None:
    latents = latents_of(pixels_of([single("circle", "red", "blue", "small")], 128, 128))
    assert latents[0, 3:, 0, 0].abs().max() < 1e-6
    assert latents[0, 3:].abs().max() > 0.1
