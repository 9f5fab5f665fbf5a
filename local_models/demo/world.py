"""The world of the demo models: flat coloured shapes on a flat background, and the renderer that draws them.

Coordinates are fractions of the picture's shorter side, measured from the centre of the picture, y down.
"""

from __future__ import annotations

import math
import random
import zlib
from dataclasses import dataclass, replace
from typing import Literal

from PIL import Image, ImageDraw

Relation = Literal["left of", "right of", "above", "below", "inside"]
Size = Literal["small", "medium", "large"]
Point = tuple[float, float]

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 38, 38),
    "orange": (248, 138, 24),
    "yellow": (250, 220, 48),
    "green": (44, 158, 62),
    "cyan": (64, 206, 222),
    "blue": (34, 78, 208),
    "purple": (128, 52, 172),
    "pink": (250, 148, 196),
    "brown": (122, 72, 34),
    "gray": (134, 134, 134),
    "white": (250, 250, 250),
    "black": (18, 18, 18),
}
SHAPES = ("circle", "square", "triangle", "star", "diamond", "heart", "cross", "ring")
SIZES: dict[Size, float] = {"small": 0.19, "medium": 0.26, "large": 0.38}
RELATIONS: tuple[Relation, ...] = ("left of", "right of", "above", "below", "inside")
OPPOSITE: dict[Relation, Relation] = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}

_OVERSAMPLING = 2
_PAIR_RADIUS = 0.19
_PAIR_DISTANCE = 0.24
_RING_HOLE = 0.55
_STROKE = 0.05  # width of a hollow thing's line


@dataclass(frozen=True)
class Thing:
    """One shape. radius: of the circle that the shape fits in."""

    shape: str
    colour: str
    size: Size
    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Scene:
    """things[0] stands in `relation` to things[1] where there are two; the one in front is drawn last."""

    background: str
    things: tuple[Thing, ...]
    relation: Relation | None = None


def outline(shape: str) -> list[Point]:
    """Polygon of a shape inside the unit circle around the origin. A ring's outline is its outer circle."""
    if shape in ("circle", "ring"):
        return _regular(64, 0.0)
    if shape == "square":
        return _regular(4, math.pi / 4)
    if shape == "triangle":
        return _regular(3, -math.pi / 2)
    if shape == "diamond":
        return [(0.0, -1.0), (0.66, 0.0), (0.0, 1.0), (-0.66, 0.0)]
    if shape == "star":
        return [_polar(1.0 if i % 2 == 0 else 0.42, -math.pi / 2 + i * math.pi / 5) for i in range(10)]
    if shape == "cross":
        a, b = 0.3, 0.95
        return [(-a, -b), (a, -b), (a, -a), (b, -a), (b, a), (a, a), (a, b), (-a, b), (-a, a), (-b, a), (-b, -a), (-a, -a)]
    if shape == "heart":
        return [_heart(2 * math.pi * i / 64) for i in range(64)]
    raise ValueError(f"unknown shape {shape!r}; the world has {', '.join(SHAPES)}")


def render(scene: Scene, width: int = 128, height: int | None = None, hollow: bool = False) -> Image.Image:
    """RGB picture of the scene, anti-aliased. hollow: only the outlines of the things."""
    height = width if height is None else height
    canvas = Image.new("RGB", (width * _OVERSAMPLING, height * _OVERSAMPLING), COLOURS[scene.background])
    for thing in reversed(scene.things):
        canvas.paste(COLOURS[thing.colour], mask=_mask(thing, canvas.width, canvas.height, hollow))
    return canvas.resize((width, height), Image.Resampling.BOX)


def random_scene(rng: random.Random, pairs: float = 0.3, inside: float = 0.2) -> Scene:
    """A scene whose neighbouring colours differ. pairs: share of scenes with two things; inside: of those, with one inside the other."""
    return _pair(rng, inside) if rng.random() < pairs else _single(rng)


def training_scene(rng: random.Random, pairs: float = 0.3, inside: float = 0.2) -> Scene:
    """A random scene that is not held out."""
    while is_held_out(scene := random_scene(rng, pairs, inside)):
        pass
    return scene


def held_out_scenes(count: int, seed: int, pairs: float) -> list[Scene]:
    """Scenes that training never saw."""
    rng = random.Random(f"{seed}:held out")
    found: list[Scene] = []
    while len(found) < count:
        if is_held_out(scene := random_scene(rng, pairs)):
            found.append(scene)
    return found


def moved(scene: Scene, rng: random.Random) -> Scene:
    """All of it somewhere else, as far as it stays in the picture."""
    room = max(0.0, 0.5 - max(max(abs(thing.x), abs(thing.y)) + thing.radius for thing in scene.things))
    dx, dy = rng.uniform(-room, room), rng.uniform(-room, room)
    return replace(scene, things=tuple(replace(thing, x=thing.x + dx, y=thing.y + dy) for thing in scene.things))


def ordered(scene: Scene) -> Scene:
    """The same picture with the left, the upper or the inner thing first: one of the two ways to say it."""
    if scene.relation in ("right of", "below"):
        return replace(scene, things=scene.things[::-1], relation=OPPOSITE[scene.relation])
    return scene


def single(shape: str, colour: str, background: str, size: Size = "medium") -> Scene:
    """One thing in the middle."""
    return Scene(background, (Thing(shape, colour, size, 0.0, 0.0, SIZES[size]),))


def is_held_out(scene: Scene) -> bool:
    """Whether the scene's combination of shapes, colours, background and relation is kept from training: one in ten."""
    words = [scene.background, scene.relation or "", *(f"{thing.colour} {thing.shape}" for thing in scene.things)]
    return zlib.crc32("|".join(words).encode()) % 10 == 0


def _single(rng: random.Random) -> Scene:
    background, colour = rng.sample(list(COLOURS), 2)
    size = rng.choice(list(SIZES))
    radius = SIZES[size] * rng.uniform(0.92, 1.08)
    room = 0.06 if size != "large" else 0.03
    thing = Thing(rng.choice(SHAPES), colour, size, rng.uniform(-room, room), rng.uniform(-room, room), radius)
    return Scene(background, (thing,))


def _pair(rng: random.Random, inside: float) -> Scene:
    relation = "inside" if rng.random() < inside else rng.choice(RELATIONS[:4])
    background, first, second = rng.sample(list(COLOURS), 3)
    if relation == "inside":
        outer_shape = rng.choice(("circle", "square", "heart", "diamond", "triangle"))
        outer = Thing(outer_shape, second, "large", 0.0, 0.0, 0.44 * rng.uniform(0.95, 1.05))
        y = {"triangle": 0.02, "heart": -0.02}.get(outer_shape, 0.0)
        inner = Thing(rng.choice(SHAPES), first, "small", rng.uniform(-0.02, 0.02), y, 0.18 * rng.uniform(0.95, 1.05))
        return Scene(background, (inner, outer), relation)
    dx, dy = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}[relation]
    things = tuple(
        Thing(
            rng.choice(SHAPES),
            colour,
            "medium",
            sign * dx * _PAIR_DISTANCE + rng.uniform(-0.03, 0.03),
            sign * dy * _PAIR_DISTANCE + rng.uniform(-0.03, 0.03),
            _PAIR_RADIUS * rng.uniform(0.94, 1.06),
        )
        for sign, colour in ((1, first), (-1, second))
    )
    return Scene(background, things, relation)


def _mask(thing: Thing, width: int, height: int, hollow: bool) -> Image.Image:
    side = min(width, height)
    mask = Image.new("L", (width, height), 0)
    draw = ImageDraw.Draw(mask)

    def place(points: list[Point], scale: float) -> list[Point]:
        return [
            (width / 2 + (thing.x + px * thing.radius * scale) * side, height / 2 + (thing.y + py * thing.radius * scale) * side)
            for px, py in points
        ]

    if hollow:
        corners = place(outline(thing.shape), 1.0 - _STROKE / 2 / thing.radius)
        draw.line([*corners, *corners[:2]], fill=255, width=round(_STROKE * side), joint="curve")
        return mask
    draw.polygon(place(outline(thing.shape), 1.0), fill=255)
    if thing.shape == "ring":
        draw.polygon(place(outline("ring"), _RING_HOLE), fill=0)
    return mask


def _polar(radius: float, angle: float) -> Point:
    return radius * math.cos(angle), radius * math.sin(angle)


def _regular(corners: int, start: float) -> list[Point]:
    return [_polar(1.0, start + 2 * math.pi * i / corners) for i in range(corners)]


def _heart(t: float) -> Point:
    """The usual heart curve, scaled into the unit circle."""
    x = 16 * math.sin(t) ** 3
    y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
    return x / 17.0, -(y + 2.5) / 17.0
