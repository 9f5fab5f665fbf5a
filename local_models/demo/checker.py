"""What is in a picture, by classical means: nearest palette colour for each pixel, then the outline of each colour's area.

No learned model takes part, so the checker can judge one.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from local_models.demo.world import COLOURS, SHAPES, Relation, Scene, Size, render, single

Mask = NDArray[np.bool_]
_SMALLEST_SHARE = 0.008
_OUTLINE_SIDE = 64
_GAP = 3


@dataclass(frozen=True)
class Found:
    """One area of one colour. box: left, top, right, bottom in pixels. fit: overlap with the ideal shape, 0 to 1."""

    shape: str
    colour: str
    box: tuple[int, int, int, int]
    fit: float

    @property
    def centre(self) -> tuple[float, float]:
        left, top, right, bottom = self.box
        return (left + right) / 2, (top + bottom) / 2


@dataclass(frozen=True)
class Reading:
    """things: largest first."""

    background: str
    things: tuple[Found, ...]


@dataclass(frozen=True)
class Verdict:
    """colour: exactly the wanted colours are there. shapes: one for each thing of the scene."""

    colour: bool
    background: bool
    shapes: tuple[bool, ...]
    relation: bool | None

    @property
    def shape(self) -> bool:
        return all(self.shapes)


def read_picture(picture: Image.Image) -> Reading:
    names = list(COLOURS)
    nearest, background = _segmented(picture)
    rounds = max(1, min(nearest.shape) // 64)
    areas = {index: _opened(nearest == index, rounds) for index in range(len(names)) if index != background}
    areas = {index: area for index, area in areas.items() if area.mean() >= _SMALLEST_SHARE}
    boxes = {index: _box(area) for index, area in areas.items()}
    found = []
    for index, area in areas.items():
        whole = _with_thin_parts(area, nearest == index, rounds)
        inner = [areas[other] for other in areas if other != index and _contains(boxes[index], boxes[other])]
        filled = functools.reduce(np.logical_or, inner, whole)
        shape, fit = _best_shape(filled, _box(whole))
        found.append((int(area.sum()), Found(shape, names[index], boxes[index], fit)))
    found.sort(key=lambda pair: -pair[0])
    return Reading(names[background], tuple(thing for _, thing in found))


def judge(scene: Scene, picture: Image.Image) -> Verdict:
    """Whether the picture shows the scene: exactly its things, each with its colour and shape, in their relation."""
    reading = read_picture(picture)
    by_colour = {thing.colour: thing for thing in reading.things}
    wanted = {thing.colour: thing.shape for thing in scene.things}
    colour = set(by_colour) == set(wanted)
    shapes = tuple(thing.colour in by_colour and by_colour[thing.colour].shape == thing.shape for thing in scene.things)
    if not scene.relation:
        shapes = (bool(reading.things) and reading.things[0].shape == scene.things[0].shape,)
        return Verdict(colour, reading.background == scene.background, shapes, None)
    first, second = (by_colour.get(thing.colour) for thing in scene.things)
    relation = first is not None and second is not None and stands(first, scene.relation, second)
    return Verdict(colour, reading.background == scene.background, shapes, relation)


def figure(picture: Image.Image) -> Mask:
    """(height, width): where the picture is not its background, thin lines of blur left out."""
    nearest, background = _segmented(picture)
    return _opened(nearest != background, max(1, min(nearest.shape) // 128))


def overlap(a: Mask, b: Mask) -> float:
    """Intersection over union, 0 to 1."""
    return float((a & b).sum() / max(1, (a | b).sum()))


def hollow_share(picture: Image.Image) -> float:
    """How much of what the figure encloses is background: 0 for filled shapes, 1 for the thinnest outline. Small gaps do not matter."""
    drawn = figure(picture)
    wall = drawn
    for _ in range(_GAP):
        wall = _grown(wall)
    outside = np.zeros_like(wall)
    outside[[0, -1], :] = ~wall[[0, -1], :]
    outside[:, [0, -1]] = ~wall[:, [0, -1]]
    while (grown := (_grown(outside) & ~wall) | outside).sum() > outside.sum():
        outside = grown
    for _ in range(_GAP):
        outside = _grown(outside)
    enclosed = ~outside | drawn
    return 1.0 - float(drawn.sum() / max(1, enclosed.sum()))


def stands(first: Found, relation: Relation, second: Found) -> bool:
    if relation == "inside":
        return _contains(second.box, first.box)
    dx, dy = first.centre[0] - second.centre[0], first.centre[1] - second.centre[1]
    along, across = {"left of": (-dx, dy), "right of": (dx, dy), "above": (-dy, dx), "below": (dy, dx)}[relation]
    return along > abs(across)


def _segmented(picture: Image.Image) -> tuple[NDArray[np.intp], int]:
    """Index of each pixel's palette colour, and of the one that most of the border has."""
    nearest = _nearest_colours(np.asarray(picture.convert("RGB"), dtype=np.float32))
    edge = np.concatenate([nearest[:3].ravel(), nearest[-3:].ravel(), nearest[:, :3].ravel(), nearest[:, -3:].ravel()])
    return nearest, int(np.bincount(edge, minlength=len(COLOURS)).argmax())


def _nearest_colours(pixels: NDArray[np.float32]) -> NDArray[np.intp]:
    palette = np.array(list(COLOURS.values()), dtype=np.float32)
    distances = ((pixels[:, :, None, :] - palette) ** 2).sum(axis=-1)
    nearest: NDArray[np.intp] = distances.argmin(axis=-1)
    return nearest


def _opened(mask: Mask, rounds: int) -> Mask:
    """Without lines thinner than about 2 * rounds pixels: those are blurred edges."""
    for _ in range(rounds):
        mask = ~_grown(~mask)
    for _ in range(rounds):
        mask = _grown(mask)
    return mask


def _with_thin_parts(area: Mask, colour: Mask, rounds: int) -> Mask:
    """The area with what of its colour hangs on to it, such as the tips of a star, which opening took away with the blur."""
    reach = area
    for _ in range(4 * rounds):
        reach = _grown(reach) & colour
    return area | _opened(reach, max(1, rounds - 1))


def _grown(mask: Mask) -> Mask:
    padded = np.pad(mask, 1)
    grown: Mask = padded[1:-1, 1:-1] | padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]
    return grown


def _box(mask: Mask) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _contains(outer: tuple[int, int, int, int], inner: tuple[int, int, int, int]) -> bool:
    return outer[0] < inner[0] and outer[1] < inner[1] and outer[2] > inner[2] and outer[3] > inner[3]


def _best_shape(mask: Mask, box: tuple[int, int, int, int]) -> tuple[str, float]:
    """The shape whose outline fits best, by the mean of two ways to lay one over the other: in its own proportions, brought to a square.

    The first tells a diamond from a circle, the second a square that is a little too wide.
    """
    fits = {shape: _fit(mask, box, shape) for shape in SHAPES}
    best = max(fits, key=lambda shape: fits[shape])
    return best, fits[best]


def _fit(mask: Mask, box: tuple[int, int, int, int], shape: str) -> float:
    ideal, ideal_box = _ideal(shape)
    overlaps = [overlap(_normalised(mask, box, keep), _normalised(ideal, ideal_box, keep)) for keep in (True, False)]
    return sum(overlaps) / len(overlaps)


def _normalised(mask: Mask, box: tuple[int, int, int, int], keep_proportions: bool) -> Mask:
    """The boxed part in a square of fixed side: in its middle, or filling it."""
    cut = Image.fromarray(mask.astype(np.uint8) * 255).crop(box)
    scale = _OUTLINE_SIDE / max(cut.size)
    size = (max(1, round(cut.width * scale)), max(1, round(cut.height * scale))) if keep_proportions else (_OUTLINE_SIDE, _OUTLINE_SIDE)
    canvas = Image.new("L", (_OUTLINE_SIDE, _OUTLINE_SIDE))
    canvas.paste(cut.resize(size, Image.Resampling.BILINEAR), ((_OUTLINE_SIDE - size[0]) // 2, (_OUTLINE_SIDE - size[1]) // 2))
    normalised: Mask = np.asarray(canvas) > 127
    return normalised


@functools.cache
def _ideal(shape: str) -> tuple[Mask, tuple[int, int, int, int]]:
    """The shape as it should be, and its box."""
    size: Size = "large"
    mask: Mask = np.asarray(render(single(shape, "black", "white", size), 256).convert("L")) < 128
    return mask, _box(mask)
