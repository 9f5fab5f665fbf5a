"""Measure both demo models on what training never saw and print one table.

    python -m local_models.demo.evaluate [--prompts 200] [--chat DIR] [--image DIR] [--only chat|image]

Pictures are judged by checker.py, answers by required facts; decoding is greedy.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from local_models.demo import chat_data, outside
from local_models.demo.build import WEIGHTS
from local_models.demo.captions import phrase, plain_caption
from local_models.demo.chat_data import Example
from local_models.demo.chat_tokenizer import IMAGE
from local_models.demo.checker import Verdict, judge
from local_models.demo.tandem_facts import load_topics
from local_models.demo.world import Scene, is_held_out, random_scene, render

STEPS, GUIDANCE = 8, 3.0
_BATCH = 8


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    subject: str
    right: int
    asked: int

    def __str__(self) -> str:
        return f"{self.subject:<44} {self.right:>4} of {self.asked:<4} {self.right / max(1, self.asked):7.1%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=200, help="pictures to draw, and questions of each generated kind")
    parser.add_argument("--chat", type=Path, default=WEIGHTS / "demo")
    parser.add_argument("--image", type=Path, default=WEIGHTS / "demo-image")
    parser.add_argument("--only", choices=("chat", "image"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--show-mistakes", action="store_true")
    options = parser.parse_args()
    if options.only != "chat":
        pipeline = load_image(options.image)
        for row in measure_image(pipeline, options.prompts, options.seed):
            print(row, flush=True)
    if options.only != "image":
        chat = Chat(options.chat)
        for row in measure_chat(chat, options.prompts, options.seed, options.show_mistakes):
            print(row, flush=True)


def held_out_scenes(count: int, seed: int, pairs: float) -> list[Scene]:
    rng = random.Random(f"{seed}:held out")
    scenes: Iterator[Scene] = (random_scene(rng, pairs) for _ in iter(int, 1))
    return [scene for scene, _ in zip((s for s in scenes if is_held_out(s)), range(count), strict=False)]


def load_image(folder: Path) -> Any:
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(pipeline: Any, prompts: list[str], seed: int, side: int = 128) -> list[Image.Image]:
    generators = [torch.Generator().manual_seed(seed + i) for i in range(len(prompts))]
    result = pipeline(prompts, num_inference_steps=STEPS, guidance_scale=GUIDANCE, height=side, width=side, generator=generators)
    pictures: list[Image.Image] = result.images
    return pictures


def measure_image(pipeline: Any, count: int, seed: int) -> Iterator[Row]:
    """One thing in plain words, one thing in free words, two things."""
    rng = random.Random(f"{seed}:phrases")
    singles = held_out_scenes(count // 2, seed, pairs=0.0)
    pairs = held_out_scenes(count - count // 2, seed, pairs=1.0)
    yield from _rows("one shape, plain", _verdicts(pipeline, singles, [plain_caption(scene) for scene in singles], seed))
    yield from _rows("one shape, free words", _verdicts(pipeline, singles, [phrase(scene, rng, complete=True) for scene in singles], seed))
    yield from _rows("two shapes, free words", _verdicts(pipeline, pairs, [phrase(scene, rng, complete=True) for scene in pairs], seed))


def _verdicts(pipeline: Any, scenes: list[Scene], prompts: list[str], seed: int) -> list[Verdict]:
    verdicts: list[Verdict] = []
    for start in range(0, len(scenes), _BATCH):
        pictures = draw(pipeline, prompts[start : start + _BATCH], seed + start)
        verdicts += [judge(scene, picture) for scene, picture in zip(scenes[start:], pictures, strict=False)]
        _progress("drawing", start + len(pictures), len(scenes))
    return verdicts


def _rows(subject: str, verdicts: list[Verdict]) -> Iterator[Row]:
    yield Row(f"{subject}: colour", sum(v.colour for v in verdicts), len(verdicts))
    yield Row(f"{subject}: background", sum(v.background for v in verdicts), len(verdicts))
    yield Row(f"{subject}: shape", sum(v.shape for v in verdicts), len(verdicts))
    related = [v.relation for v in verdicts if v.relation is not None]
    if related:
        yield Row(f"{subject}: relation", sum(related), len(related))


class Chat:
    """The shipped chat model, greedy, one question at a time."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer, Qwen2VLImageProcessorPil, Qwen3_5ForConditionalGeneration

        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self._model: Any = Qwen3_5ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
        self._processor: Any = Qwen2VLImageProcessorPil.from_pretrained(folder)
        self._image_id: int = self._tokenizer.convert_tokens_to_ids(IMAGE)

    @torch.no_grad()
    def answer(self, example: Example, max_new_tokens: int = 200) -> str:
        """Everything after the prompt, reasoning and tool calls included, special tokens left out."""
        picture = render(example.picture, 128) if example.picture else None
        return self.reply(example.prompt_messages(), list(example.tools), example.thinking, picture, max_new_tokens)

    def reply(
        self,
        messages: list[chat_data.Message],
        tools: list[dict[str, Any]],
        thinking: bool,
        picture: Image.Image | None = None,
        max_new_tokens: int = 200,
    ) -> str:
        prompt = self._tokenizer.apply_chat_template(
            messages, tools=tools or None, tokenize=False, add_generation_prompt=True, enable_thinking=thinking
        )
        seen: dict[str, Any] = {}
        if picture:
            seen = dict(self._processor([picture], return_tensors="pt"))
            tokens = int(seen["image_grid_thw"][0].prod()) // self._processor.merge_size**2
            prompt = prompt.replace(IMAGE, IMAGE * tokens)
        ids = self._tokenizer(prompt, return_tensors="pt").input_ids
        if picture:
            seen["mm_token_type_ids"] = (ids == self._image_id).int()
        output = self._model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), **seen, do_sample=False, max_new_tokens=max_new_tokens
        )
        text: str = self._tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)
        return text


def measure_chat(chat: Chat, count: int, seed: int, show_mistakes: bool = False) -> Iterator[Row]:
    rng = random.Random(f"{seed}:chat")
    for subject, cases in _chat_cases(count, rng):
        right = 0
        for done, (example, required) in enumerate(cases, 1):
            text = chat.answer(example)
            good = is_right(text, example, required)
            right += good
            _progress(subject, done, len(cases))
            if show_mistakes and not good:
                print(f"\n  {example.question!r} wants {required}, got {text!r}", flush=True)
        yield Row(subject, right, len(cases))


Case = tuple[Example, tuple[str, ...]]


def _chat_cases(count: int, rng: random.Random) -> Iterator[tuple[str, list[Case]]]:
    """Named groups of questions, each with what the visible answer must contain."""
    topics = load_topics("tandem")
    for thinking in (False, True):
        asked = [(Example(q, t.answer, "", thinking=thinking), t.facts) for t in topics for q in t.held_out]
        yield f"Tandem, new phrasing{', thinking' if thinking else ''}", asked[: 2 * count]
    talk = [(Example(q, t.answer, "", thinking=False), t.facts) for t in load_topics("small_talk") for q in t.held_out]
    yield "small talk, new phrasing", talk
    yield (
        "outside its world",
        [(Example(q, "", "", thinking=i % 2 == 0), ("small demo model", "larger")) for i, q in enumerate(outside.HELD_OUT)],
    )
    for thinking in (True, False):
        sums = [chat_data.answered(chat_data.small_sum(rng), thinking) for _ in range(count)]
        yield f"sums{', thinking' if thinking else ''}", [(example, (example.answer.split(" So ")[-1],)) for example in sums]
    scenes = held_out_scenes(count // 2, 2, pairs=0.3)
    tools = [replace(chat_data.draw_with_tool(rng, scene), thinking=i % 2 == 0) for i, scene in enumerate(scenes)]
    yield "tool call with the right prompt", [(example, (example.tool_prompt or "",)) for example in tools]
    plain = [replace(chat_data.draw_without_tool(rng, scene), thinking=i % 2 == 0) for i, scene in enumerate(scenes)]
    yield "drawing without a tool: image mode", [(example, (example.answer,)) for example in plain]
    singles, pairs = held_out_scenes(count // 2, 3, pairs=0.0), held_out_scenes(count // 4, 3, pairs=1.0)
    yield "picture of one shape: colour, shape", [(_look(s), (f"{s.things[0].colour} {s.things[0].shape}",)) for s in singles]
    yield (
        "picture of one shape: background",
        [(_look(s), (f"on {'an' if s.background[0] in 'aeiou' else 'a'} {s.background}",)) for s in singles],
    )
    yield "picture of two shapes: colours, shapes", [(_look(s), tuple(f"{t.colour} {t.shape}" for t in s.things)) for s in pairs]


def _look(scene: Scene) -> Example:
    return Example("What is in this picture?", "", "", picture=scene, thinking=False)


def is_right(text: str, example: Example, required: Iterable[str]) -> bool:
    """Whether the visible part holds what is required; a tool call must have exactly the wanted prompt."""
    visible = text.split("</think>")[-1]
    if example.tool_prompt is not None:
        return tool_prompt(visible) == example.tool_prompt
    return all(fact.lower() in visible.lower() for fact in required)


def tool_prompt(text: str) -> str | None:
    found = re.fullmatch(
        r"\s*<tool_call>\s*<function=generate_image>\s*<parameter=prompt>\n(.*)\n</parameter>\s*</function>\s*</tool_call>\s*", text, re.S
    )
    return found[1] if found else None


def _progress(what: str, done: int, of: int) -> None:
    if sys.stderr.isatty():
        print(f"\r{what}: {done} of {of}   ", end="" if done < of else "\r", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
