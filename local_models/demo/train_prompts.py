"""Teach demo-image's text encoder to read, before anything is drawn: from a prompt's tokens it must tell what the prompt says.

The UNet then meets a text encoder that already separates the shapes, their colours and their places. Heads read that out of the tokens
after the prompt's end, which see all of it; the heads are thrown away.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from local_models.demo import image_model
from local_models.demo.captions import Wish, prompt_for, wish_of
from local_models.demo.training import on_device
from local_models.demo.world import COLOURS, RELATIONS, SHAPES, SIZES, training_scene

BATCH = 160
PAIRS_SHARE = 0.6
EMPTY_SHARE = 0.02
_OPEN, _ABSENT = "open", "absent"
_SLOTS: dict[str, tuple[str, ...]] = {
    "first shape": (_OPEN, _ABSENT, *SHAPES),
    "first colour": (_OPEN, _ABSENT, *COLOURS),
    "size": (_OPEN, *SIZES),
    "relation": (_OPEN, *RELATIONS),
    "second shape": (_OPEN, _ABSENT, *SHAPES),
    "second colour": (_OPEN, _ABSENT, *COLOURS),
    "background": (_OPEN, *COLOURS),
}
EMPTY = Wish(())


def labels_of(wish: Wish) -> list[int]:
    """One class for each slot."""
    first = wish.things[0] if wish.things else None
    second = wish.things[1] if len(wish.things) > 1 else None
    words = (
        (first.shape or _OPEN) if first else _ABSENT,
        (first.colour or _OPEN) if first else _ABSENT,
        (first.size if first else None) or _OPEN,
        wish.relation or _OPEN,
        (second.shape or _OPEN) if second else _ABSENT,
        (second.colour or _OPEN) if second else _ABSENT,
        wish.background or _OPEN,
    )
    return [classes.index(word) for classes, word in zip(_SLOTS.values(), words, strict=True)]


class Reader(torch.nn.Module):
    """The text encoder with one linear head for each slot."""

    def __init__(self, text_encoder: Any) -> None:
        super().__init__()
        self.text_encoder = text_encoder
        self.heads = torch.nn.ModuleList(torch.nn.Linear(image_model.TEXT_WIDTH, len(classes)) for classes in _SLOTS.values())

    def forward(self, ids: torch.Tensor, place: int) -> list[torch.Tensor]:
        """Scores (N, classes) for each slot, read at a position counted from the prompt's end."""
        hidden = self.text_encoder(ids)[0]
        end = (ids == self.text_encoder.config.eos_token_id).int().argmax(dim=1)
        read = (end + place).clamp(max=ids.shape[1] - 1)
        chosen = hidden[torch.arange(len(ids)), read]
        return [head(chosen) for head in self.heads]


def batch(
    rng: random.Random, tokenizer: Any, count: int, keep: Callable[[random.Random], Wish] | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids (N, length) and labels (N, slots)."""
    wishes = [keep(rng) if keep else random_wish(rng) for _ in range(count)]
    prompts = [prompt_for(wish, rng) if wish.things else "" for wish in wishes]
    return ids_of(tokenizer, prompts), torch.tensor([labels_of(wish) for wish in wishes])


def ids_of(tokenizer: Any, prompts: list[str]) -> torch.Tensor:
    """(N, length), filled with end tokens as the pipeline does it."""
    return on_device(tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids)


def random_wish(rng: random.Random) -> Wish:
    return EMPTY if rng.random() < EMPTY_SHARE else wish_of(training_scene(rng, PAIRS_SHARE), rng)


def loss_of(reader: Reader, ids: torch.Tensor, labels: torch.Tensor, place: int) -> torch.Tensor:
    scores = reader(ids, place)
    return torch.stack([F.cross_entropy(score, labels[:, slot]) for slot, score in enumerate(scores)]).sum()


@torch.no_grad()
def share_read(reader: Reader, ids: torch.Tensor, labels: torch.Tensor) -> list[float]:
    """How often each slot is read right, then how often all of them are, 0 to 1."""
    right = torch.stack([score.argmax(dim=1) == labels[:, slot] for slot, score in enumerate(reader(ids, 0))])
    return [*right.float().mean(dim=1).tolist(), right.all(dim=0).float().mean().item()]
