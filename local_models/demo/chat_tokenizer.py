"""A small byte-level BPE tokenizer with Qwen's split rule and special tokens, learnt from the synthetic conversations."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import Qwen2Tokenizer

from local_models.demo import chat_data, outside
from local_models.demo.tandem_facts import load_topics

VOCABULARY = 2048
PAD, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
VISION_START, VISION_END, IMAGE, VIDEO = "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"
SPECIAL = (PAD, TURN_START, TURN_END, VISION_START, VISION_END, IMAGE, VIDEO)
# These stay visible when special tokens are skipped, as in Qwen's own tokenizer: parsers look for them.
MARKERS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
TEMPLATE = Path(__file__).with_name("chat_template.jinja")
_SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def build_tokenizer(seed: int = 0, samples: int = 6000) -> Any:
    """A Qwen2Tokenizer of VOCABULARY tokens whose special tokens come last."""
    plain = Tokenizer(models.BPE())
    plain.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated")
    plain.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    plain.decoder = decoders.ByteLevel()
    size = VOCABULARY - len(SPECIAL) - len(MARKERS)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False, min_frequency=2)
    plain.train_from_iterator(_corpus(seed, samples), trainer)
    learnt = json.loads(plain.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=learnt["vocab"],
        merges=[tuple(pair) for pair in learnt["merges"]],
        unk_token=PAD,
        eos_token=TURN_END,
        pad_token=PAD,
        model_max_length=2048,
    )
    tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken(token, special=True, normalized=False) for token in SPECIAL]})
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in MARKERS])
    tokenizer.chat_template = TEMPLATE.read_text(encoding="utf-8")
    return tokenizer


def _corpus(seed: int, samples: int) -> Iterable[str]:
    rng = random.Random(f"{seed}:tokenizer")
    for topic in (*load_topics("tandem"), *load_topics("small_talk")):
        yield from (topic.answer, topic.answer, *topic.questions, chat_data.topic_reasoning(topic))
    for _ in range(samples):
        example = rng.choice((chat_data.known_example, chat_data.skill_example))(rng)
        yield example.question
        yield outside.question(rng)
        yield json.dumps(example.tools) if rng.random() < 0.1 else ""
    yield TEMPLATE.read_text(encoding="utf-8")
