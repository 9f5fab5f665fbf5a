"""The options of a picture: size, steps, guidance, seed, what to leave out, how many."""

from __future__ import annotations

from typing import TypeVar

import streamlit as st

from chat_app.blocks import plain
from chat_app.catalog import ImageFacts, ModelCard, sizes_of
from chat_app.records import ImageRequest

MAX_SEED = 2**32 - 1
T = TypeVar("T")


def options_popover(card: ModelCard, image: ImageFacts) -> None:
    """Every widget has a key of its own for each model, and keeps its value while another mode is shown."""
    with st.popover(_summary(card, image), icon=":material/tune:", key="image-options"), st.container(width=400, gap="small"):
        st.pills(
            "Size",
            sizes_of(image),
            default=image.default_size,
            required=True,
            key=_key(card, "size"),
            format_func=lambda size: size.replace("x", "×"),
            persist_state="session",
        )
        st.slider(
            "Steps",
            1,
            image.max_num_inference_steps,
            image.num_inference_steps,
            key=_key(card, "steps"),
            persist_state="session",
            help="More steps take longer and show more detail.",
        )
        left, right = st.columns(2)
        left.number_input(
            "Guidance",
            0.0,
            30.0,
            image.guidance_scale,
            0.5,
            format="%.1f",
            key=_key(card, "guidance"),
            persist_state="session",
            placeholder="the model's own",
            help="How closely the picture follows the prompt.",
        )
        right.number_input("Pictures", 1, image.max_n, 1, 1, key=_key(card, "n"), persist_state="session", disabled=image.max_n == 1)
        left, right = st.columns(2, vertical_alignment="bottom")
        random = right.toggle("Random seed", True, key=_key(card, "random"), persist_state="session")
        left.number_input(
            "Seed",
            0,
            MAX_SEED,
            0,
            1,
            key=_key(card, "seed"),
            disabled=random,
            persist_state="session",
            help="The same seed with the same settings gives the same picture.",
        )
        st.text_input("Leave out", key=_key(card, "negative"), placeholder="What the picture should not show", persist_state="session")


def image_request(card: ModelCard, image: ImageFacts, prompt: str) -> ImageRequest:
    """The request as the options stand; what nobody touched is left to the model."""
    steps = _value(card, "steps", image.num_inference_steps)
    guidance = _value(card, "guidance", image.guidance_scale)
    return ImageRequest(
        model=card.name,
        prompt=prompt,
        size=_value(card, "size", image.default_size),
        n=_value(card, "n", 1),
        seed=None if _value(card, "random", True) else _value(card, "seed", 0),
        num_inference_steps=None if steps == image.num_inference_steps else steps,
        guidance_scale=None if guidance == image.guidance_scale else guidance,
        negative_prompt=_value(card, "negative", "").strip(),
    )


def _summary(card: ModelCard, image: ImageFacts) -> str:
    size = _value(card, "size", image.default_size).replace("x", "×")
    seed = "random seed" if _value(card, "random", True) else f"seed {_value(card, 'seed', 0)}"
    n = _value(card, "n", 1)
    parts = [size, f"{_value(card, 'steps', image.num_inference_steps)} steps", seed]
    return plain(" · ".join(parts + ([f"{n} pictures"] if n > 1 else [])))


def _value(card: ModelCard, name: str, default: T) -> T:
    value: T = st.session_state.get(_key(card, name), default)
    return value


def _key(card: ModelCard, name: str) -> str:
    return f"image-{name}-{card.name}"
