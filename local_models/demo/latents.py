"""The latent space of demo-image, fixed instead of learnt: four numbers for each 4 x 4 pixels.

The first three are the mean colour, the fourth says how much the pixels differ: an edge runs through. A picture of flat shapes is all in
them, and a diffusion model learns them far sooner than latents that an autoencoder found by itself. The autoencoder's encoder computes
these numbers, its decoder draws sharp edges from them. Four channels, because diffusers' inpainting takes a plain UNet only with four.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

CHANNELS, FACTOR = 4, 4
MEAN_SCALE, EDGE_SCALE = 1.5, 4.0


def latents_of(pixels: torch.Tensor) -> torch.Tensor:
    """(N, 4, height / 4, width / 4) of pixels (N, 3, height, width) in -1 to 1."""
    mean = F.avg_pool2d(pixels, FACTOR)
    spread = F.avg_pool2d(pixels * pixels, FACTOR) - mean * mean
    edge = spread.mean(dim=1, keepdim=True).clamp(min=0.0).sqrt()
    return torch.cat([MEAN_SCALE * mean, EDGE_SCALE * edge], dim=1)


def preview_factors() -> dict[str, list[list[float]] | list[float]]:
    """The linear preview decoder, under the names that other programs give it: 4 latent channels to red, green and blue in -1 to 1."""
    colour = [[1.0 / MEAN_SCALE if row == column else 0.0 for column in range(3)] for row in range(3)]
    return {"latent_rgb_factors": [*colour, [0.0, 0.0, 0.0]], "latent_rgb_factors_bias": [0.0, 0.0, 0.0]}


def thumbnail_of(latents: torch.Tensor) -> torch.Tensor:
    """The picture at a quarter of its size, (N, 3, h, w) in -1 to 1 of latents (N, 4, h, w): a preview without any network."""
    factors = preview_factors()
    pixels = torch.einsum("nchw,cr->nrhw", latents, torch.tensor(factors["latent_rgb_factors"]))
    return pixels + torch.tensor(factors["latent_rgb_factors_bias"]).view(1, 3, 1, 1)
