"""What demo-image's latents mean: one Haar step of the picture at a quarter of its size.

Each 8 x 8 block of pixels is 12 numbers: its mean colour, and the horizontal, vertical and diagonal differences of its quarters.
A fixed meaning instead of a learnt one keeps similar colours near each other and lets the UNet settle coarse colour areas first, because
the differences have less variance and drown in noise sooner. Latents of a learnt code of the same size gave blobs of mixed colour.
The autoencoder is trained to this: its encoder computes these numbers, its decoder draws sharp edges from them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

CHANNELS = 12
MEAN_SCALE, DETAIL_SCALE = 1.5, 4.0


def latents_of(pixels: torch.Tensor) -> torch.Tensor:
    """(N, 12, height / 8, width / 8) of pixels (N, 3, height, width) in -1 to 1."""
    quarters = F.pixel_unshuffle(F.avg_pool2d(pixels, 4), 2)
    count, _, height, width = quarters.shape
    a, b, c, d = quarters.view(count, 3, 4, height, width).unbind(dim=2)
    mean, across, down, diagonal = (a + b + c + d) / 4, (a - b + c - d) / 4, (a + b - c - d) / 4, (a - b - c + d) / 4
    return torch.cat([MEAN_SCALE * mean, DETAIL_SCALE * across, DETAIL_SCALE * down, DETAIL_SCALE * diagonal], dim=1)


def thumbnail_of(latents: torch.Tensor) -> torch.Tensor:
    """The picture at a quarter of its size, (N, 3, 2 * h, 2 * w) of latents (N, 12, h, w): a preview without any network."""
    mean, across, down, diagonal = torch.split(latents, 3, dim=1)
    mean, across, down, diagonal = mean / MEAN_SCALE, across / DETAIL_SCALE, down / DETAIL_SCALE, diagonal / DETAIL_SCALE
    quarters = torch.stack(
        [
            mean + across + down + diagonal,
            mean - across + down - diagonal,
            mean + across - down - diagonal,
            mean - across - down + diagonal,
        ],
        dim=2,
    )
    return F.pixel_shuffle(quarters.flatten(1, 2), 2)
