"""Measure demo-image with diffusers' own pipelines: text to image, negative prompt, image to image, inpainting, ControlNet, LoRA."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    ControlNetModel,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
)
from PIL import Image

from local_models.demo.captions import article, phrase, plain_caption
from local_models.demo.checker import Verdict, figure, hollow_share, judge, overlap, read_picture
from local_models.demo.edges import edges_of
from local_models.demo.image_model import CONTROLNET, LORA
from local_models.demo.measured import Row
from local_models.demo.world import COLOURS, SHAPES, Scene, held_out_scenes, moved, render

STEPS, GUIDANCE = 8, 3.0
_BATCH = 16
_HOLLOW = 0.12
_INK = 0.7
_SIDES = (64, 96, 160, 224, 256)
Note = Callable[[str], None]


def measure(folder: Path, share: float, seed: int, note: Note) -> Iterator[Row]:
    """share: of 400 prompts for pictures from text and 40 for each other way."""
    pipeline = load_image(folder)
    prompts, few = max(8, round(400 * share)), max(8, round(40 * share))
    yield from _from_text(pipeline, prompts, seed, note)
    yield _other_sizes(pipeline, few, seed)
    yield _negative_prompt(pipeline, few, seed)
    yield from _image_to_image(pipeline, few, seed)
    yield from _inpainting(pipeline, few, seed)
    yield _edges(pipeline, folder, few, seed)
    yield from _outline_style(pipeline, folder, few, seed)


def load_image(folder: Path) -> Any:
    pipeline = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(pipeline: Any, prompts: list[str], seed: int, side: int | None = None, **more: Any) -> list[Image.Image]:
    """One picture for each prompt, `seed`, `seed + 1` and so on; lists in `more` are cut like the prompts."""
    pictures: list[Image.Image] = []
    size = {"height": side, "width": side} if side else {}
    for start in range(0, len(prompts), _BATCH):
        part = slice(start, start + _BATCH)
        some = prompts[part]
        given = {key: value[part] if isinstance(value, list) else value for key, value in more.items()}
        generators = [torch.Generator().manual_seed(seed + start + i) for i in range(len(some))]
        pictures += pipeline(
            some, **{"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "generator": generators} | size | given
        ).images
    return pictures


def _from_text(pipeline: Any, count: int, seed: int, note: Note) -> Iterator[Row]:
    """A quarter one shape in plain words, a quarter in free words, half two shapes in free words."""
    rng = random.Random(f"{seed}:phrases")
    singles = held_out_scenes(count // 2, seed, pairs=0.0)
    pairs = held_out_scenes(count - count // 2, seed, pairs=1.0)
    plain = len(singles) // 2
    prompts = [plain_caption(scene) for scene in singles[:plain]] + [phrase(scene, rng, complete=True) for scene in singles[plain:] + pairs]
    scenes = singles + pairs
    verdicts = [judge(scene, picture) for scene, picture in zip(scenes, draw(pipeline, prompts, seed * 1000), strict=True)]
    for prompt, verdict in zip(prompts, verdicts, strict=True):
        if not (verdict.colour and verdict.background and verdict.shape and verdict.relation is not False):
            note(f"  {prompt}: {verdict}")
    one, two = verdicts[: len(singles)], verdicts[len(singles) :]
    yield Row.of("pictures: colours of the shapes", (v.colour for v in verdicts), 0.97)
    yield Row.of("pictures: background", (v.background for v in verdicts), 0.97)
    yield Row.of("pictures: each shape", (shape for v in verdicts for shape in v.shapes), 0.93)
    yield Row.of("  of one shape alone", (shape for v in one for shape in v.shapes), 0.93)
    yield Row.of("  of two together", (shape for v in two for shape in v.shapes), 0.9)
    yield Row.of("pictures: relation of two shapes", (bool(v.relation) for v in two), 0.9)


def _other_sizes(pipeline: Any, count: int, seed: int) -> Row:
    """From the smallest side to the largest, with shapes that have some pixels even in the smallest."""
    scenes = [scene for scene in held_out_scenes(4 * count, seed + 5, pairs=0.0) if scene.things[0].size != "small"][:count]
    verdicts: list[Verdict] = []
    for place, side in enumerate(_SIDES):
        some = scenes[place :: len(_SIDES)]
        pictures = draw(pipeline, [plain_caption(scene) for scene in some], seed, side)
        verdicts += [judge(scene, picture) for scene, picture in zip(some, pictures, strict=True)]
    return Row.of(
        "pictures of 64 to 256 pixels: colours, background, shape", (v.colour and v.background and v.shape for v in verdicts), 0.8
    )


def _negative_prompt(pipeline: Any, count: int, seed: int) -> Row:
    """Prompts that leave the colour open, with the seeds that give a red shape; then the same with "red" as the negative prompt."""
    rng = random.Random(f"{seed}:negative")
    found: list[tuple[str, int]] = []
    start = seed * 1000
    while len(found) < count and start < seed * 1000 + 30 * count:
        backgrounds = [rng.choice([c for c in COLOURS if c != "red"]) for _ in range(_BATCH)]
        prompts = [f"a {rng.choice(SHAPES)} on {article(b)} background" for b in backgrounds]
        pictures = draw(pipeline, prompts, start)
        found += [(prompt, start + i) for i, (prompt, picture) in enumerate(zip(prompts, pictures, strict=True)) if _has_red(picture)]
        start += _BATCH
    without = [draw(pipeline, [prompt], place, negative_prompt=["red"])[0] for prompt, place in found[:count]]
    return Row.of('negative prompt "red" removes red', (not _has_red(picture) for picture in without), 0.9)


def _has_red(picture: Image.Image) -> bool:
    return any(thing.colour == "red" for thing in read_picture(picture).things)


def _image_to_image(pipeline: Any, count: int, seed: int) -> Iterator[Row]:
    """A drawing recoloured a little, then taken as no more than a hint for the prompt of another scene."""
    again = StableDiffusionImg2ImgPipeline(**pipeline.components)
    again.set_progress_bar_config(disable=True)
    rng = random.Random(f"{seed}:recoloured")
    scenes = held_out_scenes(2 * count, seed + 1, pairs=0.0)
    sources, others = scenes[:count], scenes[count:]
    drawings = [render(scene) for scene in sources]
    little = draw(again, [plain_caption(_recoloured(scene, rng)) for scene in sources], seed, image=drawings, strength=0.3)
    kept = (overlap(figure(a), figure(b)) >= 0.7 for a, b in zip(drawings, little, strict=True))
    yield Row.of("image to image, strength 0.3: layout kept (IoU 0.7)", kept, 0.9)
    much = draw(again, [plain_caption(scene) for scene in others], seed, image=drawings, strength=0.9)
    verdicts = [judge(scene, picture) for scene, picture in zip(others, much, strict=True)]
    yield Row.of("image to image, strength 0.9: prompt followed", (v.colour and v.background for v in verdicts), 0.9)


def _recoloured(scene: Scene, rng: random.Random) -> Scene:
    """The same shape in a colour that was not in the picture."""
    colour = rng.choice([c for c in COLOURS if c not in (scene.background, scene.things[0].colour)])
    return replace(scene, things=(replace(scene.things[0], colour=colour),))


def _inpainting(pipeline: Any, count: int, seed: int) -> Iterator[Row]:
    """The shape's surroundings are masked, and another colour is asked for."""
    inpaint = StableDiffusionInpaintPipeline(**pipeline.components)
    inpaint.set_progress_bar_config(disable=True)
    rng = random.Random(f"{seed}:inpainting")
    scenes = [scene for scene in held_out_scenes(4 * count, seed + 2, pairs=0.0) if scene.things[0].size != "large"][:count]
    wanted = [_recoloured(scene, rng) for scene in scenes]
    drawings, masks = [render(scene) for scene in scenes], [_surroundings(scene) for scene in scenes]
    pictures = draw(inpaint, [plain_caption(scene) for scene in wanted], seed, image=drawings, mask_image=masks, strength=1.0)
    yield Row.of("inpainting: prompt followed inside the mask", (judge(s, p).colour for s, p in zip(wanted, pictures, strict=True)), 0.9)
    changes = [_change_outside(drawing, picture, mask) for drawing, picture, mask in zip(drawings, pictures, masks, strict=True)]
    yield Row.of("inpainting: outside changed by 2/255 at most", (change <= 2.0 for change in changes), 0.9)


def _surroundings(scene: Scene, side: int = 128) -> Image.Image:
    """A square around the thing, white on black, a little larger than it."""
    thing = scene.things[0]
    reach = (thing.radius + 0.05) * side
    x, y = side * (0.5 + thing.x), side * (0.5 + thing.y)
    mask = Image.new("L", (side, side))
    mask.paste(255, (round(x - reach), round(y - reach), round(x + reach), round(y + reach)))
    return mask


def _change_outside(before: Image.Image, after: Image.Image, mask: Image.Image) -> float:
    """Mean absolute difference, 0 to 255, of the pixels that were not masked."""
    difference = np.abs(np.asarray(before, dtype=np.float32) - np.asarray(after, dtype=np.float32))
    return float(difference[np.asarray(mask) == 0].mean())


def _edges(pipeline: Any, folder: Path, count: int, seed: int) -> Row:
    """The prompt names the colours; where and what the shape is, only the edges say."""
    rng = random.Random(f"{seed}:edges")
    controlnet = ControlNetModel.from_pretrained(folder / CONTROLNET, torch_dtype=torch.float32)
    guided = StableDiffusionControlNetPipeline(**pipeline.components, controlnet=controlnet)
    guided.set_progress_bar_config(disable=True)
    scenes = [moved(scene, rng) for scene in held_out_scenes(count, seed + 3, pairs=0.0)]
    prompts = [f"a {scene.things[0].colour} shape on a {scene.background} background" for scene in scenes]
    pictures = draw(guided, prompts, seed, image=[edges_of(render(scene)) for scene in scenes])
    fits = (overlap(figure(render(scene)), figure(picture)) >= 0.7 for scene, picture in zip(scenes, pictures, strict=True))
    return Row.of("ControlNet: the shape is where the edges are (IoU 0.7)", fits, 0.9)


def _outline_style(pipeline: Any, folder: Path, count: int, seed: int) -> Iterator[Row]:
    scenes = [scene for scene in held_out_scenes(3 * count, seed + 4, pairs=0.0) if scene.things[0].shape != "ring"][:count]
    prompts = [plain_caption(scene) for scene in scenes]
    plain = draw(pipeline, prompts, seed)
    pipeline.load_lora_weights(folder / LORA)
    try:
        styled = draw(pipeline, prompts, seed)
    finally:
        pipeline.unload_lora_weights()
    outlines = (_is_outline(*pair) for pair in zip(styled, plain, strict=True))
    yield Row.of("LoRA: shapes become outlines", outlines, 0.8)
    yield Row.of("without the LoRA they are filled", (hollow_share(picture) < _HOLLOW for picture in plain), 0.95)


def _is_outline(styled: Image.Image, plain: Image.Image) -> bool:
    """It encloses background; or its line has a gap, but it covers no more than a part of what the same picture without the style does."""
    return hollow_share(styled) >= _HOLLOW or float(figure(styled).sum()) <= _INK * float(figure(plain).sum())
