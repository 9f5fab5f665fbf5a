"""Train the demo chat model from scratch on synthetic conversations, one batch in five with pictures.

    python -m local_models.demo.train_chat --work DIR [--minutes N | --steps N] [--out local_models/demo/weights/demo]

Only the assistant's last turn is learnt; everything before it is read.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen2Tokenizer

from local_models.demo import chat_data, chat_model, chat_tokenizer
from local_models.demo.chat_data import Example
from local_models.demo.training import Budget, Run, learning_rate
from local_models.demo.world import render

STEPS, PEAK_RATE = 8000, 2e-3
BATCH_TOKENS = 2560
PICTURE_BATCH = 20
PICTURES_EVERY = 3
_SORTED_TOGETHER = 240
_CHUNK = 32  # lengths are rounded up to this when a batch is filled
_OPENINGS_SHARE = 0.65
_OPENING_TOKENS = 14
_IGNORED = -100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="checkpoint folder; the same folder again resumes")
    parser.add_argument("--out", type=Path, help="model directory to write when done")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--minutes", type=float, help="stop after this wall time; the learning rate follows it")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    train(options.work, Budget(options.steps, options.minutes), options.seed)
    if options.out:
        export(options.work, options.out, options.seed)


def train(work: Path, budget: Budget, seed: int) -> None:
    tokenizer = _tokenizer(work, seed)
    model = chat_model.build_model(tokenizer, seed).train()
    optimizer = torch.optim.AdamW(_groups(model), lr=PEAK_RATE, betas=(0.9, 0.95))
    run = Run("chat", work / "chat.pt", budget, {"model": model, "optimizer": optimizer})
    batches = Batches(tokenizer, seed)
    for step in run:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(PEAK_RATE, run.fraction)
        loss = model(**batches.at(step)).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        run.log(float(loss.detach()))


def export(work: Path, out: Path, seed: int) -> None:
    tokenizer = _tokenizer(work, seed)
    model = chat_model.build_model(tokenizer, seed)
    model.load_state_dict(torch.load(work / "chat.pt", weights_only=True)["parts"]["model"])
    chat_model.save(model, tokenizer, out)
    print(f"wrote {out}", flush=True)


def _tokenizer(work: Path, seed: int) -> Any:
    """Built once for each work folder: the weights mean nothing with another vocabulary."""
    folder = work / "tokenizer"
    if not folder.exists():
        chat_tokenizer.build_tokenizer(seed).save_pretrained(folder)
    tokenizer = Qwen2Tokenizer.from_pretrained(folder)
    tokenizer.chat_template = chat_tokenizer.TEMPLATE.read_text(encoding="utf-8")
    return tokenizer


@dataclass(frozen=True)
class Encoded:
    """input ids of a conversation; the first `read` of them are not learnt."""

    ids: list[int]
    read: int
    example: Example


def encode(tokenizer: Any, example: Example) -> Encoded:
    def text(messages: list[chat_data.Message], prompt: bool) -> str:
        tools = list(example.tools) or None
        rendered = tokenizer.apply_chat_template(
            messages, tools=tools, tokenize=False, add_generation_prompt=prompt, enable_thinking=example.thinking
        )
        expanded: str = rendered.replace(chat_tokenizer.IMAGE, chat_tokenizer.IMAGE * chat_model.PICTURE_TOKENS)
        return expanded

    prompt = text(example.prompt_messages(), True)
    whole = text(example.messages(), False)
    if not whole.startswith(prompt):
        raise ValueError(f"the template renders the prompt differently from the conversation: {prompt!r} and {whole!r}")
    read = tokenizer(prompt).input_ids
    learnt = tokenizer(whole[len(prompt) :].rstrip("\n")).input_ids
    return Encoded([*read, *learnt], len(read), example)


class Batches:
    """Batches by step number. Text comes in groups sorted by length, so that little padding is computed."""

    def __init__(self, tokenizer: Any, seed: int) -> None:
        self._tokenizer = tokenizer
        self._seed = seed
        self._processor = chat_model.build_image_processor()
        self._waiting: list[list[Encoded]] = []

    def at(self, step: int) -> dict[str, torch.Tensor]:
        rng = random.Random(f"{self._seed}:{step}")
        if step % PICTURES_EVERY == PICTURES_EVERY - 1:
            return self._with_pictures(self._encoded(chat_data.picture_example, PICTURE_BATCH, rng))
        if not self._waiting:
            self._waiting = _by_length(self._encoded(chat_data.text_example, _SORTED_TOGETHER, rng))
            rng.shuffle(self._waiting)
        return collate(self._waiting.pop())

    def _encoded(self, make: Callable[[random.Random], Example], count: int, rng: random.Random) -> list[Encoded]:
        return [_opening(encode(self._tokenizer, make(rng)), rng) for _ in range(count)]

    def _with_pictures(self, items: list[Encoded]) -> dict[str, torch.Tensor]:
        batch = collate(items)
        pictures = [render(item.example.picture, 128) for item in items if item.example.picture]
        image_id = self._tokenizer.convert_tokens_to_ids(chat_tokenizer.IMAGE)
        seen = self._processor(pictures, return_tensors="pt")
        return batch | {
            "pixel_values": seen["pixel_values"],
            "image_grid_thw": seen["image_grid_thw"],
            "mm_token_type_ids": (batch["input_ids"] == image_id).int(),
        }


def _opening(item: Encoded, rng: random.Random) -> Encoded:
    """Most texts known by heart lose their end: what must be learnt is which one to begin, and short sequences cost less."""
    if not item.example.by_heart or rng.random() > _OPENINGS_SHARE:
        return item
    kept = item.read + _OPENING_TOKENS * (2 if item.example.thinking else 1)
    return replace(item, ids=item.ids[:kept])


def collate(items: list[Encoded]) -> dict[str, torch.Tensor]:
    """Right padding needs no mask: every layer is causal, and padding is not learnt."""
    length = max(len(item.ids) for item in items)
    ids = torch.zeros(len(items), length, dtype=torch.long)
    labels = torch.full((len(items), length), _IGNORED)
    for row, item in enumerate(items):
        ids[row, : len(item.ids)] = torch.tensor(item.ids)
        labels[row, item.read : len(item.ids)] = torch.tensor(item.ids[item.read :])
    return {"input_ids": ids, "labels": labels}


def _by_length(items: list[Encoded]) -> list[list[Encoded]]:
    batches: list[list[Encoded]] = [[]]
    for item in sorted(items, key=lambda item: len(item.ids)):
        padded = -(-len(item.ids) // _CHUNK) * _CHUNK
        if batches[-1] and padded * (len(batches[-1]) + 1) > BATCH_TOKENS:
            batches.append([])
        batches[-1].append(item)
    return batches


def _groups(model: torch.nn.Module) -> list[dict[str, Any]]:
    """Weight decay for matrices only."""
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": 0.05},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]


if __name__ == "__main__":
    main()
