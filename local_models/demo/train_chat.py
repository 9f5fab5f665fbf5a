"""Train the demo chat model from scratch on synthetic conversations: its vision tower sees first, then the whole learns to answer.

    python -m local_models.demo.train_chat --work DIR [--stage sight|talk|all] [--minutes N | --steps N] [--out DIR]

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
import torch.nn.functional as F
from transformers import Qwen2Tokenizer

from local_models.demo import chat_data, chat_model, chat_tokenizer, outside, train_sight
from local_models.demo.example import Example, Message
from local_models.demo.tandem_facts import load_topics
from local_models.demo.training import Average, Budget, Run, half_precision, learn, learning_rate, on_device, trained, use_best_device
from local_models.demo.world import render

STEPS, PEAK_RATE = 9000, 2e-3
BATCH_TOKENS = 2560
PICTURE_BATCH = 26
INTENT_WEIGHT = 0.5
# An answer known by heart is decided by its first tokens; the many that follow would drown what they have to teach.
DECIDING, DECIDING_WEIGHT = 8, 4.0
DROPOUT = 0.1
READING_FIRST = 0.32  # of the budget
CUT = 0.15  # of the words' pieces in a question
_SORTED_TOGETHER = 240
_CHUNK = 32  # lengths are rounded up to this when a batch is filled
# What the steps are about, eight by eight.
_FIRST = ("questions", "pictures", "skills", "questions", "skills", "skills", "questions", "skills")
_THEN = ("answers", "pictures", "answers", "skills", "answers", "skills", "answers", "skills")
_IGNORED = -100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="checkpoint folder; the same folder again resumes")
    parser.add_argument("--out", type=Path, help="model directory to write when done")
    parser.add_argument("--stage", choices=("sight", "talk", "all"), default="all")
    parser.add_argument("--steps", type=int, help="budget of each stage in steps")
    parser.add_argument("--minutes", type=float, help="budget of each stage in minutes of wall time; the learning rate follows it")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(f"training on {use_best_device()}", flush=True)
    if options.stage in ("sight", "all"):
        train_sight.train_sight(options.work, Budget(options.steps or train_sight.STEPS, options.minutes), options.seed)
    if options.stage in ("talk", "all"):
        train_talk(options.work, Budget(options.steps or STEPS, options.minutes), options.seed)
    if options.out:
        export(options.work, options.out, options.seed)


def train_talk(work: Path, budget: Budget, seed: int) -> None:
    tokenizer = _tokenizer(work, seed)
    model = chat_model.build_model(tokenizer, seed).train()
    model.model.visual.load_state_dict(train_sight.trained_visual(work))
    model.set_attn_implementation("eager")  # on a CPU its backward pass takes half the time of the fused one
    _drop_out(model.model.language_model)
    intents = Intents()
    average = Average(model, decay=0.995)
    optimizer = torch.optim.AdamW(_groups(model, intents), lr=PEAK_RATE, betas=(0.9, 0.95))
    run = Run("talk", work / "chat.pt", budget, {"model": model, "intents": intents, "average": average, "optimizer": optimizer})
    batches = Batches(tokenizer, intents, seed)
    for step in run:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(PEAK_RATE, run.fraction) * group["scale"]
        batch = batches.at(step, run.fraction)
        with half_precision():
            loss = batch.loss(model, intents)
        learn(loss, [*model.parameters(), *intents.parameters()], optimizer)
        average.update()
        run.log(float(loss.detach()))


def _drop_out(language_model: Any) -> None:
    """While training, some of each embedding is missing: what is read must not hang on one word."""
    language_model.embed_tokens.register_forward_hook(lambda module, _, output: F.dropout(output, DROPOUT, module.training))


def export(work: Path, out: Path, seed: int) -> None:
    """Write the model directory with the averaged weights."""
    tokenizer = _tokenizer(work, seed)
    model = chat_model.build_model(tokenizer, seed)
    model.load_state_dict(trained(work / "chat.pt", "average")["values"])
    chat_model.save(model, tokenizer, out)
    print(f"wrote {out}", flush=True)


class Intents(torch.nn.Module):
    """Names the topic from the model's state where the answer begins: a direct lesson in what is asked. Thrown away after training."""

    def __init__(self) -> None:
        super().__init__()
        topics = (*load_topics("tandem"), *load_topics("small_talk"))
        self._places = {text: place for place, text in enumerate((outside.REASONING, *map(chat_data.topic_reasoning, topics)))}
        self.head = torch.nn.Linear(chat_model.HIDDEN, len(self._places))

    def place_of(self, example: Example) -> int:
        return self._places.get(example.reasoning, _IGNORED)

    def loss(self, states: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """states: (N, hidden)."""
        return F.cross_entropy(self.head(states).float(), places, ignore_index=_IGNORED)


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
    def text(messages: list[Message], prompt: bool) -> str:
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


def cut_finer(tokenizer: Any, item: Encoded, rng: random.Random) -> Encoded:
    """The same conversation with some pieces of its last question cut in two, where both halves are in the vocabulary.

    A rare word is then met in the pieces of others: what is read must not hang on one spelling of it. Source of the idea: subword
    regularization (Kudo, 2018; BPE-dropout, Provilkov and others, 2020).
    """
    starts, ends = (tokenizer.convert_tokens_to_ids(mark) for mark in (chat_tokenizer.TURN_START, chat_tokenizer.TURN_END))
    turns = [place for place in range(item.read) if item.ids[place] == starts]
    question = range(turns[-2], item.ids.index(ends, turns[-2]))  # the last turn is the answer's
    vocabulary = tokenizer.get_vocab()
    ids: list[int] = []
    for place in range(item.read):
        token = tokenizer.convert_ids_to_tokens(item.ids[place])
        halves = []
        if place in question and len(token) > 2 and rng.random() < CUT:
            at = rng.randrange(1, len(token))
            halves = [vocabulary[half] for half in (token[:at], token[at:]) if half in vocabulary]
        ids += halves if len(halves) == 2 else [item.ids[place]]
    return replace(item, ids=[*ids, *item.ids[item.read :]], read=len(ids))


@dataclass(frozen=True)
class Batch:
    """inputs: for the model. labels: (N, length), the next token where it is learnt. ends: last position of each prompt. intents: (N,)."""

    inputs: dict[str, torch.Tensor]
    labels: torch.Tensor
    ends: torch.Tensor
    intents: torch.Tensor

    def loss(self, model: Any, intents: Intents) -> torch.Tensor:
        states = model.model(**self.inputs, use_cache=False).last_hidden_state
        learnt = self.labels != _IGNORED
        loss: torch.Tensor = states.new_zeros(())
        if bool(learnt.any()):
            losses = F.cross_entropy(model.lm_head(states[learnt]).float(), self.labels[learnt], reduction="none")
            weights = torch.where(learnt.cumsum(1)[learnt] <= DECIDING, DECIDING_WEIGHT, 1.0)
            loss = (losses * weights).sum() / weights.sum()
        if bool((self.intents != _IGNORED).any()):
            loss = loss + INTENT_WEIGHT * intents.loss(states[torch.arange(len(self.ends)), self.ends], self.intents)
        return loss


class Batches:
    """Batches by step number. Text comes in groups sorted by length, so that little padding is computed."""

    def __init__(self, tokenizer: Any, intents: Intents, seed: int) -> None:
        self._tokenizer = tokenizer
        self._intents = intents
        self._seed = seed
        self._processor = chat_model.build_image_processor()
        self._waiting: dict[str, list[list[Encoded]]] = {"answers": [], "skills": [], "questions": []}

    def at(self, step: int, fraction: float) -> Batch:
        """fraction: of the budget. At first questions are only read, beside skills that no text known by heart can show."""
        rng = random.Random(f"{self._seed}:{step}")
        kind = (_FIRST if fraction < READING_FIRST else _THEN)[step % 8]
        if kind == "pictures":
            return self._with_pictures(self._encoded(chat_data.picture_example, PICTURE_BATCH, rng), rng)
        waiting = self._waiting[kind]
        if not waiting:
            waiting += _by_length(self._made(kind, rng))
            rng.shuffle(waiting)
        return collate(waiting.pop(), self._intents)

    def _made(self, kind: str, rng: random.Random) -> list[Encoded]:
        if kind == "skills":
            return self._encoded(chat_data.skill_example, _SORTED_TOGETHER, rng)
        items = self._known(_SORTED_TOGETHER, rng)
        return items if kind == "answers" else [replace(item, ids=item.ids[: item.read]) for item in items]

    def _known(self, count: int, rng: random.Random) -> list[Encoded]:
        return [cut_finer(self._tokenizer, item, rng) for item in self._encoded(chat_data.known_example, count, rng)]

    def _encoded(self, make: Callable[[random.Random], Example], count: int, rng: random.Random) -> list[Encoded]:
        return [encode(self._tokenizer, make(rng)) for _ in range(count)]

    def _with_pictures(self, items: list[Encoded], rng: random.Random) -> Batch:
        batch = collate(items, self._intents)
        pictures = [
            train_sight.roughened(render(item.example.picture, chat_model.PICTURE_SIDE), rng) for item in items if item.example.picture
        ]
        image_id = self._tokenizer.convert_tokens_to_ids(chat_tokenizer.IMAGE)
        seen = self._processor(pictures, return_tensors="pt")
        inputs = batch.inputs | {
            "pixel_values": on_device(seen["pixel_values"]),
            "image_grid_thw": on_device(seen["image_grid_thw"]),
            "mm_token_type_ids": (batch.inputs["input_ids"] == image_id).int(),
        }
        return replace(batch, inputs=inputs)


def collate(items: list[Encoded], intents: Intents) -> Batch:
    """Right padding needs no mask: every layer is causal, and padding is not learnt."""
    length = max(len(item.ids) for item in items)
    ids = torch.zeros(len(items), length, dtype=torch.long)
    labels = torch.full((len(items), length), _IGNORED)
    for row, item in enumerate(items):
        ids[row, : len(item.ids)] = torch.tensor(item.ids)
        labels[row, item.read - 1 : len(item.ids) - 1] = torch.tensor(item.ids[item.read :])
    ends = torch.tensor([item.read - 1 for item in items])
    return Batch({"input_ids": ids}, labels, ends, torch.tensor([intents.place_of(item.example) for item in items]))


def _by_length(items: list[Encoded]) -> list[list[Encoded]]:
    batches: list[list[Encoded]] = [[]]
    for item in sorted(items, key=lambda item: len(item.ids)):
        padded = -(-len(item.ids) // _CHUNK) * _CHUNK
        if batches[-1] and padded * (len(batches[-1]) + 1) > BATCH_TOKENS:
            batches.append([])
        batches[-1].append(item)
    return batches


def _groups(model: Any, intents: Intents) -> list[dict[str, Any]]:
    """Weight decay for matrices only; the vision tower, which can see already, learns at a third of the rate."""
    visual = set(model.model.visual.parameters())
    parameters = [p for p in (*model.parameters(), *intents.parameters()) if p not in visual]
    return [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": 0.05, "scale": 1.0},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0, "scale": 1.0},
        {"params": list(model.model.visual.parameters()), "weight_decay": 0.02, "scale": 0.3},
    ]


if __name__ == "__main__":
    main()
