"""Words for scenes: prompts in many phrasings for the image model, one-sentence descriptions for the chat model.

A caption may leave a colour, a size or the background open; what it does say is always true of the scene.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from local_models.demo.world import OPPOSITE, Relation, Scene, Size, Thing

COLOUR_WORDS: dict[str, tuple[str, ...]] = {
    "red": ("red", "crimson", "scarlet"),
    "orange": ("orange",),
    "yellow": ("yellow", "golden"),
    "green": ("green", "emerald"),
    "cyan": ("cyan", "turquoise", "aqua"),
    "blue": ("blue", "navy"),
    "purple": ("purple", "violet"),
    "pink": ("pink", "rose"),
    "brown": ("brown",),
    "gray": ("gray", "grey"),
    "white": ("white",),
    "black": ("black",),
}
SHAPE_WORDS: dict[str, tuple[str, ...]] = {
    "circle": ("circle", "disc", "disk", "ball", "dot"),
    "square": ("square", "box"),
    "triangle": ("triangle",),
    "star": ("star",),
    "diamond": ("diamond", "rhombus"),
    "heart": ("heart",),
    "cross": ("cross", "plus"),
    "ring": ("ring", "donut", "hoop"),
}
SIZE_WORDS: dict[str, tuple[str, ...]] = {
    "small": ("small", "little", "tiny"),
    "medium": ("medium", "medium-sized"),
    "large": ("large", "big", "huge"),
}
RELATION_WORDS: dict[Relation, tuple[str, ...]] = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above", "over", "on top of"),
    "below": ("below", "under", "beneath"),
    "inside": ("inside", "in", "within"),
}
ANY_SHAPE = ("shape", "thing", "object", "something", "figure", "form")
OPENINGS = (
    "draw", "draw me", "paint", "make", "please draw", "show me", "create", "generate", "a picture of", "an image of", "picture of",
    "image of", "a drawing of", "a painting of", "a photo of", "i want", "can you draw",
)  # fmt: skip
EXTRAS = (
    "please",
    "simple",
    "flat",
    "nice",
    "clean",
    "minimal",
    "bright",
    "coloured",
    "colored",
    "with",
    "and",
    "style",
    "art",
    "icon",
)


@dataclass(frozen=True)
class Said:
    """What a prompt says of one shape; None is left open."""

    shape: str | None
    colour: str | None
    size: Size | None = None


@dataclass(frozen=True)
class Wish:
    """What a prompt says. Of two things, which both have shape and colour, the left, the upper or the inner one comes first."""

    things: tuple[Said, ...]
    background: str | None = None
    relation: Relation | None = None


def wish_of(scene: Scene, rng: random.Random, complete: bool = False) -> Wish:
    """Something that the scene fulfils. complete: leaves neither shape nor colour nor background open."""
    background = scene.background if complete or rng.random() > 0.14 else None
    if scene.relation:
        first, second = (Said(thing.shape, thing.colour) for thing in scene.things)
        if scene.relation in ("right of", "below"):
            return Wish((second, first), background, OPPOSITE[scene.relation])
        return Wish((first, second), background, scene.relation)
    thing = scene.things[0]
    says_size = rng.random() < (0.7 if thing.size != "medium" else 0.15)
    shape: str | None = thing.shape
    colour: str | None = thing.colour
    if not complete:
        left_open = rng.random()
        colour = None if left_open < 0.08 else colour
        shape = None if 0.08 < left_open < 0.16 else shape
        if left_open > 0.98:
            return Wish((Said(None, colour),))
    return Wish((Said(shape, colour, thing.size if says_size else None),), background)


def caption(scene: Scene, rng: random.Random) -> str:
    """A prompt that the scene fulfils, in one of many phrasings."""
    return prompt_for(wish_of(scene, rng), rng)


def prompt_for(wish: Wish, rng: random.Random) -> str:
    """One of many ways to ask for it, with words around it that mean nothing."""
    text = phrase_for(wish, rng)
    if rng.random() < 0.25:
        text = f"{rng.choice(OPENINGS)} {text}"
    return _noise(text, rng)


def phrase(scene: Scene, rng: random.Random, complete: bool = False) -> str:
    """What a caption says about the scene, without an opening. complete: leaves nothing open but the size."""
    return phrase_for(wish_of(scene, rng, complete), rng)


def phrase_for(wish: Wish, rng: random.Random) -> str:
    body = _pair_phrase(wish, rng) if wish.relation else _thing_phrase(wish.things[0], rng)
    return _with_background(body, wish.background, rng) if wish.background else body


def plain_caption(scene: Scene) -> str:
    """The canonical prompt: "a red circle left of a blue square on a white background"."""
    first = _plain_thing(scene.things[0], scene.relation is None)
    if scene.relation:
        first = f"{first} {scene.relation} {_plain_thing(scene.things[1], False)}"
    return f"{first} on {article(scene.background)} background"


def vocabulary() -> list[str]:
    """Every word a caption can hold, sorted."""
    tables = (
        COLOUR_WORDS.values(),
        SHAPE_WORDS.values(),
        SIZE_WORDS.values(),
        RELATION_WORDS.values(),
        (ANY_SHAPE, OPENINGS, EXTRAS, _FILLERS),
    )
    phrases = [phrase for table in tables for words in table for phrase in words]
    return sorted({word for phrase in phrases for word in phrase.replace("-", " ").split()})


_FILLERS = ("a an the on of is background backdrop colour color against there one single shown has its behind field size in that",)


def _thing_phrase(said: Said, rng: random.Random) -> str:
    colour = _word(COLOUR_WORDS, said.colour, rng, 0.5) if said.colour else ""
    size = rng.choice(SIZE_WORDS[said.size]) if said.size else ""
    if said.shape is None:
        shape = "" if colour and rng.random() < 0.3 else rng.choice(ANY_SHAPE)
    else:
        shape = _word(SHAPE_WORDS, said.shape, rng, 0.4)
    form = rng.random()
    if form < 0.12 and colour and shape:
        return ", ".join(word for word in rng.sample([colour, shape, size], 3) if word)
    if form < 0.2 and colour and shape:
        return f"{article(' '.join(filter(None, (size, shape))))} that is {colour}"
    words = [size, colour] if rng.random() < 0.85 else [colour, size]
    phrase = " ".join(filter(None, (*words, shape)))
    return article(phrase) if shape and rng.random() < 0.8 else phrase


def _pair_phrase(wish: Wish, rng: random.Random) -> str:
    first, second = wish.things
    relation = wish.relation
    assert relation is not None
    if relation in OPPOSITE and rng.random() < 0.5:
        first, second, relation = second, first, OPPOSITE[relation]
    names = [_pair_member(said, rng) for said in (first, second)]
    return f"{names[0]} {rng.choice(RELATION_WORDS[relation])} {names[1]}"


def _pair_member(said: Said, rng: random.Random) -> str:
    assert said.colour is not None
    assert said.shape is not None
    return article(f"{_word(COLOUR_WORDS, said.colour, rng, 0.3)} {_word(SHAPE_WORDS, said.shape, rng, 0.25)}")


def _word(table: dict[str, tuple[str, ...]], name: str, rng: random.Random, synonyms: float) -> str:
    return rng.choice(table[name]) if rng.random() < synonyms else name


def _with_background(body: str, background: str, rng: random.Random) -> str:
    colour = rng.choice(COLOUR_WORDS[background]) if rng.random() < 0.35 else background
    before = (f"{colour} background, {body}", f"on {article(colour)} background {body}", f"on {colour}: {body}")
    after = (
        f"{body} on {article(colour)} background",
        f"{body} on {article(colour)} background",
        f"{body} on {article(colour)} background",
        f"{body} on {colour}",
        f"{body}, {colour} background",
        f"{body} with {article(colour)} background",
        f"{body} against {colour}",
        f"{body}, on {colour}",
        f"{body}. the background is {colour}",
        f"{body} on {article(colour)} backdrop",
    )
    return rng.choice(before) if rng.random() < 0.15 else rng.choice(after)


def _noise(text: str, rng: random.Random) -> str:
    """Now and then a word that means nothing here, so that unknown words do little harm."""
    roll = rng.random()
    if roll < 0.06:
        return f"{text}, {rng.choice(EXTRAS)}"
    if roll < 0.1:
        word = "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(3, 8)))
        return f"{text} {word}" if rng.random() < 0.5 else f"{word} {text}"
    return text


def _plain_thing(thing: Thing, says_size: bool) -> str:
    size = thing.size if says_size and thing.size != "medium" else ""
    return article(" ".join(filter(None, (size, thing.colour, thing.shape))))


def article(phrase: str) -> str:
    return f"{'an' if phrase[:1] in 'aeiou' else 'a'} {phrase}"
