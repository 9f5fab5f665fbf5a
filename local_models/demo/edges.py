"""Edges of a picture by classical means: what the edge ControlNet is given. White lines on black."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

_THRESHOLD = 24.0


def edges_of(picture: Image.Image) -> Image.Image:
    """RGB picture of the same size: white where neighbouring colours differ, lines about two pixels wide."""
    smooth = np.asarray(picture.convert("RGB").filter(ImageFilter.GaussianBlur(0.8)), dtype=np.float32)
    padded = np.pad(smooth, ((1, 1), (1, 1), (0, 0)), mode="edge")
    across = padded[1:-1, 2:] - padded[1:-1, :-2]
    down = padded[2:, 1:-1] - padded[:-2, 1:-1]
    strength = np.sqrt((across**2 + down**2).max(axis=-1))
    line = (strength > _THRESHOLD) & (strength >= 0.5 * _largest_nearby(strength))
    return Image.fromarray((line * 255).astype(np.uint8)).convert("RGB")


def _largest_nearby(strength: NDArray[np.float32]) -> NDArray[np.float32]:
    """Largest value of each pixel's 3 x 3 surroundings."""
    padded = np.pad(strength, 1, mode="edge")
    height, width = strength.shape
    largest: NDArray[np.float32] = np.max([padded[y : y + height, x : x + width] for y in range(3) for x in range(3)], axis=0)
    return largest
