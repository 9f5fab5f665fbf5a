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


def thumbnail_of(latents: torch.Tensor) -> torch.Tensor:
    """The picture at a quarter of its size, (N, 3, h, w) in -1 to 1 of latents (N, 4, h, w): a preview without any network."""
    return latents[:, :3] / MEAN_SCALE
