"""Questions as people type them: the same meaning in other words, with and without care."""

from __future__ import annotations

import random
import re
from collections.abc import Collection

_LITTLE = frozenset(
    [
        "a",
        "an",
        "the",
        "do",
        "does",
        "is",
        "are",
        "can",
        "could",
        "i",
        "my",
        "me",
        "you",
        "please",
        "to",
        "of",
        "it",
        "that",
        "there",
        "for",
        "in",
        "on",
        "would",
        "should",
        "will",
        "we",
    ]
)
_FORMS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        r"How (?:do|can) I (.*)\?",
        (
            "How can I {}?", "How do I {}?", "How would I {}?", "What must I do to {}?", "I want to {}", "I would like to {}", "How to {}?",
            "Can you tell me how to {}?", "Please explain how to {}", "Is it possible to {}?", "What is the way to {}?",
            "Show me how to {}",
            "What do I need to {}?", "Is there a way to {}?",
        ),
    ),
    (r"Can I (.*)\?", ("Is it possible to {}?", "May I {}?", "Could I {}?", "I want to {}", "Is there a way to {}?", "How do I {}?")),
    (
        r"What (?:is|are) (.*)\?",
        ("What's {}?", "Explain {}", "Tell me about {}", "Can you explain {}?", "What exactly is {}?", "Tell me what {} is"),
    ),
    (r"Which (.*)\?", ("What {}?", "Tell me which {}", "Can you say which {}?", "Which {}, please?")),
    (r"What (.*)\?", ("Which {}?", "Tell me what {}", "Can you tell me what {}?", "I want to know what {}")),
    (
        r"Where (?:is|are) (.*)\?",
        ("Where can I find {}?", "Where do I find {}?", "Where is {}?", "I cannot find {}", "Tell me where {} is"),
    ),
    (r"Where (.*)\?", ("Tell me where {}", "In which place {}?", "Can you say where {}?")),
    (r"Why (.*)\?", ("Tell me why {}", "For what reason {}?", "Explain why {}")),
    (r"I get a (.*)", ("I have a {}", "There is a {}", "It says {}", "The API answers {}", "My request gives {}", "I see a {}")),
    (r"Are you (.*)\?", ("Aren't you {}?", "So you are {}?", "You are {}, right?")),
)  # fmt: skip
_SYNONYMS = (
    ("picture", "image", "photo"),
    ("pictures", "images", "photos"),
    ("start", "launch", "run"),
    ("make", "create", "generate", "produce"),
    ("config", "configuration", "settings"),
    ("colours", "colors"),
    ("colour", "color"),
    ("key", "API key"),
    ("chat app", "web page", "chat page", "web app", "user interface"),
    ("answer", "reply", "response"),
    ("stop", "cancel", "abort", "interrupt"),
    ("command line", "terminal", "shell"),
    ("commands", "subcommands"),
    ("options", "flags", "switches"),
    ("GPU", "graphics card", "NVIDIA card"),
    ("use", "try", "have"),
    ("larger", "bigger", "better", "smarter"),
    ("reasoning", "thinking"),
    ("server", "API", "gateway"),
    ("computer", "machine", "laptop", "PC"),
    ("Tandem", "this program", "this tool"),
    ("find", "see", "get"),
    ("error", "status", "code"),
)
_PREFIXES = (
    "Hey, ",
    "Please tell me: ",
    "Hi, ",
    "I have a question: ",
    "Can you tell me: ",
    "Quick question: ",
    "Hello! ",
    "So, ",
    "Ok, ",
    "Tell me, ",
    "Sorry, ",
    "One more thing: ",
)
_SUFFIXES = (" please", " Thanks!", " Please explain.", " I am new here.", " I need to know.", " in Tandem?")


def vary(text: str, rng: random.Random, kept: Collection[str] = ()) -> str:
    """The same question as people type it: other words, case, punctuation, a word before or after, a word missing, a slip of the finger.

    kept: questions that must not come out, because the evaluation asks them.
    """
    asked = text
    if rng.random() < 0.35:
        text = _rephrased(text, rng)
    if rng.random() < 0.35:
        text = _with_synonyms(text, rng)
    if rng.random() < 0.2:
        text = _with_words_missing(text, rng)
    if rng.random() < 0.3:
        text = _with_words_lost(text, rng)
    if text in kept:
        text = asked
    if rng.random() < 0.12:
        text = rng.choice(_PREFIXES) + text
    if rng.random() < 0.3:
        text = text.lower()
    if rng.random() < 0.25:
        text = text.rstrip("?.!")
    if rng.random() < 0.06:
        text += rng.choice(_SUFFIXES)
    if rng.random() < 0.08 and len(text) > 8:
        i = rng.randrange(1, len(text) - 2)
        text = text[:i] + rng.choice((text[i + 1] + text[i], "", text[i] * 2)) + text[i + 2 :]
    return text


def _rephrased(text: str, rng: random.Random) -> str:
    """The question in other words where its form has some."""
    for pattern, forms in _FORMS:
        if found := re.fullmatch(pattern, text):
            return rng.choice(forms).format(found[1])
    return text


def _with_words_missing(text: str, rng: random.Random) -> str:
    """Without some of the words that carry little."""
    words = text.split()
    left = [word for word in words if word.lower() not in _LITTLE or rng.random() < 0.5]
    return " ".join(left or words)


def _with_words_lost(text: str, rng: random.Random) -> str:
    """Without one word in seven, whatever it means, and now and then with two words in each other's place."""
    words = text.split()
    if len(words) > 3:
        words = [word for word in words if rng.random() > 1 / 7] or words
    if len(words) > 3 and rng.random() < 0.3:
        place = rng.randrange(len(words) - 1)
        words[place : place + 2] = reversed(words[place : place + 2])
    return " ".join(words)


def _with_synonyms(text: str, rng: random.Random) -> str:
    for words in _SYNONYMS:
        pattern = r"\b(" + "|".join(words) + r")\b"
        if rng.random() < 0.6:
            other = rng.choice(words)
            text = re.sub(pattern, other, text)
    return text
