"""Teach the chat model's vision tower to see before it learns to speak: what each piece of a picture belongs to, what the whole shows.

Answers alone teach a vision tower too little: one word in a sentence depends on it. The heads that read the tower's tokens are thrown away.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter

from local_models.demo import chat_model
from local_models.demo.chat_model import MERGE, PATCH
from local_models.demo.training import Budget, Run, half_precision, learn, learning_rate, on_device, trained
from local_models.demo.world import COLOURS, RELATIONS, SHAPES, Scene, ordered, render, training_scene

STEPS, PEAK_RATE = 5000, 2e-3
BATCH = 48
PAIRS_SHARE = 0.5
_COLOURS_KNOWN = ((0.06, 0), (0.1, 2), (0.16, 5), (1.1, 12))  # until this share of the budget: so many colours besides black and white
_COLOURS = list(COLOURS)
_PIECE_SHAPES = ("none", *SHAPES)
_WHOLE: dict[str, tuple[str, ...]] = {
    "background": tuple(COLOURS),
    "relation": ("none", *RELATIONS),
    "first shape": SHAPES,
    "first colour": tuple(COLOURS),
    "second shape": ("none", *SHAPES),
    "second colour": ("none", *COLOURS),
}


class Sight(torch.nn.Module):
    """The vision tower with heads that read each of its tokens, and their mean."""

    def __init__(self, visual: Any) -> None:
        super().__init__()
        self.visual = visual
        width = chat_model.HIDDEN
        self.piece_shape = torch.nn.Linear(width, len(_PIECE_SHAPES))
        self.piece_colour = torch.nn.Linear(width, len(_COLOURS))
        self.whole = torch.nn.ModuleList(torch.nn.Linear(width, len(classes)) for classes in _WHOLE.values())

    def forward(self, pixel_values: torch.Tensor, grids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
        """Scores (N, tokens, shapes) and (N, tokens, colours) of the pieces, and (N, classes) for each slot of the whole."""
        tokens = self.visual(pixel_values, grids).pooler_output.float().view(len(grids), -1, chat_model.HIDDEN)
        mean = tokens.mean(dim=1)
        return self.piece_shape(tokens), self.piece_colour(tokens), [head(mean) for head in self.whole]


def train_sight(work: Path, budget: Budget, seed: int) -> None:
    sight = Sight(chat_model.build_visual(seed)).train()
    sight.visual.set_attn_implementation("eager")  # on a CPU its backward pass takes half the time of the fused one
    optimizer = torch.optim.AdamW(sight.parameters(), lr=PEAK_RATE, betas=(0.9, 0.98), weight_decay=0.02)
    run = Run("sight", work / "sight.pt", budget, {"model": sight, "optimizer": optimizer})
    processor = chat_model.build_image_processor()
    for step in run:
        rng = random.Random(f"{seed}:sight:{step}")
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(PEAK_RATE, run.fraction)
        scenes = [_scene(rng, run.fraction) for _ in range(BATCH)]
        loss, right = _look(sight, processor, scenes, [roughened(render(scene, chat_model.PICTURE_SIDE), rng) for scene in scenes])
        learn(loss, sight.parameters(), optimizer)
        run.log(float(loss.detach()), right)


def _scene(rng: random.Random, fraction: float) -> Scene:
    """Single shapes in black and white, then more and more colours: with all at once, outlines are learnt many times later."""
    colours = next(count for until, count in _COLOURS_KNOWN if fraction < until)
    known = {"black", "white", *_COLOURS[:colours]} if colours < len(_COLOURS) else set(_COLOURS)
    while True:
        scene = training_scene(rng, PAIRS_SHARE if colours else 0.0)
        if {scene.background, *(thing.colour for thing in scene.things)} <= known:
            return scene


def trained_visual(work: Path) -> dict[str, Any]:
    """The vision tower's state."""
    state = trained(work / "sight.pt", "model")
    return {name.removeprefix("visual."): value for name, value in state.items() if name.startswith("visual.")}


def roughened(picture: Image.Image, rng: random.Random) -> Image.Image:
    """Now and then blurred, noisy or a little off in colour, as pictures are that a model drew or a camera took."""
    if rng.random() < 0.35:
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.4, 1.3)))
    if rng.random() < 0.35:
        generator = np.random.default_rng(rng.getrandbits(32))
        noise = generator.normal(0.0, rng.uniform(1.0, 7.0), (picture.height, picture.width, 3)) + generator.uniform(-9.0, 9.0, 3)
        picture = Image.fromarray((np.asarray(picture) + noise).clip(0, 255).astype(np.uint8))
    return picture


def _look(sight: Sight, processor: Any, scenes: list[Scene], pictures: list[Image.Image]) -> tuple[torch.Tensor, float]:
    """The loss, and the share of pictures whose shapes and colours are all read right."""
    seen = processor(pictures, return_tensors="pt")
    with half_precision():
        shapes, colours, whole = sight(on_device(seen["pixel_values"]), on_device(seen["image_grid_thw"]))
    pieces = torch.tensor([_pieces(scene) for scene in scenes])
    loss = F.cross_entropy(shapes.float().flatten(0, 1), pieces[:, 0].flatten()) + F.cross_entropy(
        colours.float().flatten(0, 1), pieces[:, 1].flatten()
    )
    wanted = torch.tensor([_whole(scene) for scene in scenes])
    right = torch.ones(len(scenes), dtype=torch.bool)
    for slot, scores in enumerate(whole):
        loss = loss + 0.5 * F.cross_entropy(scores.float(), wanted[:, slot])
        right &= scores.argmax(dim=1) == wanted[:, slot]
    return loss, float(right.float().mean())


def _pieces(scene: Scene) -> tuple[list[int], list[int]]:
    """Shape and colour at the middle of each token's piece of a square picture, row by row."""
    side = chat_model.PICTURE_SIDE // (PATCH * MERGE)
    shapes, colours = [], []
    for row in range(side):
        for column in range(side):
            x, y = (column + 0.5) / side - 0.5, (row + 0.5) / side - 0.5
            over = next((t for t in scene.things if (t.x - x) ** 2 + (t.y - y) ** 2 < t.radius**2), None)
            shapes.append(_PIECE_SHAPES.index(over.shape) if over else 0)
            colours.append(_COLOURS.index(over.colour if over else scene.background))
    return shapes, colours


def _whole(scene: Scene) -> list[int]:
    scene = ordered(scene)
    first, second = scene.things[0], scene.things[1] if len(scene.things) > 1 else None
    words = (
        scene.background,
        scene.relation or "none",
        first.shape,
        first.colour,
        second.shape if second else "none",
        second.colour if second else "none",
    )
    return [classes.index(word) for classes, word in zip(_WHOLE.values(), words, strict=True)]
