"""What is read from the model list, and how it is put to a person."""

from __future__ import annotations

import pytest

from chat_app.catalog import Deployment, ImageFacts, ModelCard, badges_of, card_of, sizes_of, waiting_for
from tests.chat_app.fake_gateway import deployment, model


def card(state: str, progress: float | None = None, stage: str | None = None, reason: str | None = None) -> ModelCard:
    told = deployment(state, progress=progress, stage=stage, reason=reason)
    return card_of("m", model("m", deployments=[told])["tandem"])


def test_everything_the_gateway_says_is_read() -> None:
    facts = model("m", "image", demo=True, description="d", newer_fact=1)["tandem"]
    facts["deployments"][0]["newer_fact"] = 1
    read = card_of("m", facts)
    assert (read.kind, read.demo, read.description) == ("image", True, "d")
    assert read.image == ImageFacts("128x128", 32, 64, 256, 4, 8, 50, 3.0)
    assert read.deployments == (Deployment("demo", True, "ready"),)


def test_a_model_of_another_gateway_is_a_chat_model_about_which_nothing_is_claimed() -> None:
    read = card_of("gpt", {})
    assert (read.kind, read.sees, read.tools, read.serving, read.image) == ("chat", None, None, None, None)
    assert badges_of(read) == []


def test_badges_say_what_is_known_and_never_no() -> None:
    read = card_of("m", model("m", demo=True, input_modalities=["text", "image"], tools=True, reasoning=False)["tandem"])
    assert [label for label, _ in badges_of(read)] == ["demo model", "vision", "tools", "local", "ready"]
    hosted = card_of("m", model("m", deployments=[deployment("hosted", local=False)])["tandem"])
    assert [label for label, _ in badges_of(hosted)] == ["hosted"]


@pytest.mark.parametrize(
    ("read", "text", "fraction"),
    [
        (card("ready"), "Waiting for m", None),
        (card("hosted"), "Waiting for m", None),
        (card("starting", progress=0.4, stage="reading weights"), "Loading m 40 %: reading weights", 0.4),
        (card("starting"), "Loading m", None),
        (card("stopped"), "Starting m", None),
        (card("failed", reason="out of memory"), "m is failed: out of memory", None),
        (card_of("m", {}), "Waiting for m", None),
    ],
)
def test_the_reason_for_a_wait(read: ModelCard, text: str, fraction: float | None) -> None:
    progress = waiting_for(read)
    assert (progress.text, progress.fraction) == (text, fraction)


def test_a_deployment_out_of_order_is_passed_over() -> None:
    both = [deployment("unavailable", local=False), deployment("starting")]
    read = card_of("m", model("m", deployments=both)["tandem"])
    assert read.serving == Deployment("demo", True, "starting")


@pytest.mark.parametrize(
    "image", [ImageFacts(), ImageFacts("128x128", 32, 64, 256), ImageFacts("512x512", 8, 256, 512), ImageFacts("768x512", 64, 64, 1024)]
)
def test_every_size_on_offer_can_be_made(image: ImageFacts) -> None:
    sizes = sizes_of(image)
    assert sizes[0] == image.default_size
    assert len(sizes) == len(set(sizes))
    for size in sizes[1:]:
        for side in map(int, size.split("x")):
            assert side % image.size_multiple == 0
            assert image.min_side <= side <= image.max_side
