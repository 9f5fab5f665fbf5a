"""Measure the demo chat model with plain transformers, greedy: its answers are judged by required and forbidden facts."""

from __future__ import annotations

import json
import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoTokenizer, Qwen2VLImageProcessorPil, Qwen3_5ForConditionalGeneration

from local_models.demo import chat_data, outside
from local_models.demo.captions import plain_caption
from local_models.demo.chat_tokenizer import IMAGE
from local_models.demo.example import Example, Message, answered
from local_models.demo.measured import Row
from local_models.demo.sums import small_sum
from local_models.demo.tandem_facts import Topic, load_topics
from local_models.demo.world import Scene, held_out_scenes, ordered, render

Note = Callable[[str], None]
Judge = Callable[[str], bool]
LONGEST_ANSWER = 200
_BATCH = 32


@dataclass(frozen=True)
class Case:
    """A request, and what the visible part of its answer must fulfil. picture: instead of one rendered from the example's scene."""

    example: Example
    is_right: Judge
    picture: Image.Image | None = None


def measure(folder: Path, image_folder: Path, share: float, seed: int, note: Note) -> Iterator[Row]:
    """share: of all held-out questions, and of 100 generated ones of each kind."""
    chat = Chat(folder)
    for subject, least, cases in _groups(image_folder, share, random.Random(f"{seed}:chat")):
        texts = chat.answers([case.example for case in cases], [case.picture for case in cases])
        verdicts = [case.is_right(visible(text)) for case, text in zip(cases, texts, strict=True)]
        for case, text, verdict in zip(cases, texts, verdicts, strict=True):
            if not verdict:
                note(f"  {case.example.question!r} got {text!r}")
        yield Row.of(subject, verdicts, least)


class Chat:
    """The chat model, greedy. Requests of the same length are answered together, so that none is padded."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self._model: Any = Qwen3_5ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
        self._processor: Any = Qwen2VLImageProcessorPil.from_pretrained(folder)
        self._image_id: int = self._tokenizer.convert_tokens_to_ids(IMAGE)

    def answers(self, examples: list[Example], pictures: list[Image.Image | None] | None = None) -> list[str]:
        """Everything after each prompt, reasoning and tool calls included, special tokens left out."""
        shown = pictures or [None] * len(examples)
        shown = [picture or (render(e.picture) if e.picture else None) for e, picture in zip(examples, shown, strict=True)]
        return self.replies(
            [e.prompt_messages() for e in examples], [list(e.tools) for e in examples], [e.thinking for e in examples], shown
        )

    def answer(self, example: Example) -> str:
        return self.answers([example])[0]

    def replies(
        self, conversations: list[list[Message]], tools: list[list[Any]], thinking: list[bool], pictures: list[Image.Image | None]
    ) -> list[str]:
        requests = [self._request(*request) for request in zip(conversations, tools, thinking, pictures, strict=True)]
        alike: dict[tuple[int, bool], list[int]] = defaultdict(list)
        for place, (ids, seen) in enumerate(requests):
            alike[len(ids), bool(seen)].append(place)
        texts = [""] * len(requests)
        for places in alike.values():
            for start in range(0, len(places), _BATCH):
                part = places[start : start + _BATCH]
                for place, text in zip(part, self._generate([requests[place] for place in part]), strict=True):
                    texts[place] = text
        return texts

    def _request(
        self, messages: list[Message], tools: list[Any], thinking: bool, picture: Image.Image | None
    ) -> tuple[list[int], dict[str, torch.Tensor]]:
        prompt = self._tokenizer.apply_chat_template(
            messages, tools=tools or None, tokenize=False, add_generation_prompt=True, enable_thinking=thinking
        )
        seen: dict[str, torch.Tensor] = {}
        if picture:
            seen = dict(self._processor([picture], return_tensors="pt"))
            tokens = int(seen["image_grid_thw"][0].prod()) // self._processor.merge_size**2
            prompt = prompt.replace(IMAGE, IMAGE * tokens)
        return self._tokenizer(prompt).input_ids, seen

    @torch.no_grad()
    def _generate(self, requests: list[tuple[list[int], dict[str, torch.Tensor]]]) -> list[str]:
        ids = torch.tensor([ids for ids, _ in requests])
        seen = {name: torch.cat([given[name] for _, given in requests]) for name in requests[0][1]}
        if seen:
            seen["mm_token_type_ids"] = (ids == self._image_id).int()
        output = self._model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), **seen, do_sample=False, max_new_tokens=LONGEST_ANSWER
        )
        texts: list[str] = self._tokenizer.batch_decode(output[:, ids.shape[1] :], skip_special_tokens=True)
        return texts


def visible(text: str) -> str:
    return text.split("</think>")[-1]


def tool_prompt(text: str) -> str | None:
    """What generate_image is called with, if the text is that call and nothing else."""
    found = re.fullmatch(
        r"\s*<tool_call>\s*<function=generate_image>\s*<parameter=prompt>\n(.*)\n</parameter>\s*</function>\s*</tool_call>\s*", text, re.S
    )
    return found[1] if found else None


def _groups(image_folder: Path, share: float, rng: random.Random) -> Iterator[tuple[str, float, list[Case]]]:
    """(subject, least share of right answers, cases)."""
    count = max(10, round(100 * share))
    topics = load_topics("tandem")
    for thinking in (False, True):
        asked = [_about(topic, question, thinking) for topic in topics for question in topic.held_out]
        yield f"Tandem, new phrasings{', thinking' if thinking else ''}", 0.9, _some(asked, share, rng)
    talk = [_about(topic, question, False) for topic in load_topics("small_talk") for question in topic.held_out]
    yield "small talk, new phrasings", 0.8, _some(talk, share, rng)
    strange = [
        Case(Example(q, "", "", thinking=i % 2 == 0), _holds("small demo model", "larger")) for i, q in enumerate(outside.held_out())
    ]
    yield "outside its world: says so", 0.9, strange
    for thinking in (True, False):
        sums = [answered(small_sum(rng), thinking) for _ in range(count)]
        yield f"sums{', thinking' if thinking else ''}", 0.95, [Case(e, _holds(e.answer.split(" So ")[-1])) for e in sums]
    scenes = held_out_scenes(count, 2, pairs=0.3)
    calls = [replace(chat_data.draw_with_tool(rng, scene), thinking=i % 2 == 0) for i, scene in enumerate(scenes)]
    yield "tool call with the right prompt", 0.95, [Case(e, _calls_with(e.tool_prompt)) for e in calls]
    plain = [replace(chat_data.draw_without_tool(rng, scene), thinking=i % 2 == 0) for i, scene in enumerate(scenes)]
    yield "drawing without a tool: image mode and the prompt", 0.9, [Case(e, _holds(e.answer)) for e in plain]
    after = [replace(chat_data.after_tool(rng), thinking=i % 2 == 0) for i in range(count // 2)]
    yield "after the tool's result: says what came of it", 0.9, [Case(e, _holds(e.answer)) for e in after]
    yield from _about_pictures(image_folder, count, rng)
    yield from _in_form(count, topics, rng)


def _about_pictures(image_folder: Path, count: int, rng: random.Random) -> Iterator[tuple[str, float, list[Case]]]:
    from local_models.demo.evaluate_image import draw, load_image

    singles, pairs = held_out_scenes(count, 3, pairs=0.0), held_out_scenes(count // 2, 3, pairs=1.0)
    pairs = [ordered(scene) for scene in pairs]
    scenes = singles + pairs
    yield "pictures: colour and shape of each thing", 0.9, [_look(scene) for scene in scenes]
    yield "pictures: background", 0.9, [_ask(scene, "What colour is the background?", _holds(scene.background)) for scene in singles]
    relations = [_ask(s, "What is in this picture?", _holds(f" {s.relation} ")) for s in pairs]
    yield "pictures: relation", 0.9, relations
    few = singles[: count // 2]
    drawn = draw(load_image(image_folder), [plain_caption(scene) for scene in few], 5)
    yield "pictures by demo-image: colour and shape", 0.85, [replace(_look(s), picture=p) for s, p in zip(few, drawn, strict=True)]


def _in_form(count: int, topics: tuple[Topic, ...], rng: random.Random) -> Iterator[tuple[str, float, list[Case]]]:
    scenes = [ordered(scene) for scene in held_out_scenes(count // 2, 4, pairs=0.3)]
    asked = [Case(chat_data.in_json(rng, topics, kept=True), _is_json) for _ in range(count // 2)]
    asked += [_ask(scene, "Describe the picture. Answer as JSON.", _is_json) for scene in scenes]
    yield "JSON when asked for: it parses", 1.0, asked
    facts = [_ask(scene, "What is in this picture? Answer as JSON.", _is(json.dumps(chat_data.picture_facts(scene)))) for scene in scenes]
    yield "JSON of a picture: all of it right", 0.8, facts
    words = [_ask(s, "What shape is it? Answer in one word.", _is(s.things[0].shape)) for s in scenes if not s.relation]
    words += [_ask(s, "What colour is the background? One word, please.", _is(s.background)) for s in scenes]
    yield "one word when asked for: the right one", 0.9, words


def _about(topic: Topic, question: str, thinking: bool) -> Case:
    return Case(Example(question, topic.answer, "", thinking=thinking), topic.is_answered_by)


def _look(scene: Scene) -> Case:
    return _ask(scene, "What is in this picture?", _holds(*(f"{thing.colour} {thing.shape}" for thing in scene.things)))


def _ask(scene: Scene, question: str, is_right: Judge) -> Case:
    return Case(Example(question, "", "", picture=scene, thinking=False), is_right)


def _holds(*facts: str) -> Judge:
    return lambda text: all(fact.lower() in text.lower() for fact in facts)


def _is(answer: str) -> Judge:
    return lambda text: text.strip().rstrip(".").lower() == answer.lower()


def _calls_with(prompt: str | None) -> Judge:
    return lambda text: tool_prompt(text) == prompt


def _is_json(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


def _some(cases: list[Case], share: float, rng: random.Random) -> list[Case]:
    return rng.sample(cases, max(1, round(share * len(cases))))
