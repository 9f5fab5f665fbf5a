"""The models the gateway offers, and what each of them can do.

Read from the `tandem` key of the model list. A fact the gateway does not know stays None here:
it is shown as nothing, never as "no".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

ModelKind = Literal["chat", "image"]


@dataclass(frozen=True)
class Deployment:
    """One place a model may run. state: ready, stopped, starting, stopping, failed, hosted or unavailable."""

    upstream: str = ""
    local: bool = False
    state: str = "ready"
    progress: float | None = None
    stage: str | None = None
    reason: str | None = None


@dataclass(frozen=True)
class ImageFacts:
    default_size: str = "1024x1024"
    size_multiple: int = 16
    min_side: int = 64
    max_side: int = 2048
    max_n: int = 1
    num_inference_steps: int = 28
    max_num_inference_steps: int = 100
    guidance_scale: float | None = None


@dataclass(frozen=True)
class ModelCard:
    name: str
    kind: ModelKind = "chat"
    description: str = ""
    demo: bool = False
    input_modalities: tuple[str, ...] | None = None
    tools: bool | None = None
    reasoning: bool | None = None
    thinking: bool | None = None  # whether it thinks when nobody says
    context_length: int | None = None
    deployments: tuple[Deployment, ...] = ()
    image: ImageFacts | None = None

    @property
    def sees(self) -> bool | None:
        """Whether pictures may be attached; None when nobody knows."""
        return None if self.input_modalities is None else "image" in self.input_modalities

    @property
    def serving(self) -> Deployment | None:
        """The deployment that would answer, or is on its way to: the first that is not out of order."""
        usable = [one for one in self.deployments if one.state not in ("failed", "unavailable")]
        return next(iter(usable or self.deployments), None)


@dataclass(frozen=True)
class Progress:
    """What a waiting person sees. fraction: 0..1, or None when nobody can tell."""

    text: str
    fraction: float | None = None


def card_of(model_id: str, facts: Mapping[str, Any]) -> ModelCard:
    """The card of one model object; `facts` is its `tandem` key, empty when another gateway answers."""
    kind: ModelKind = "image" if facts.get("kind") == "image" else "chat"
    modalities = facts.get("input_modalities")
    return ModelCard(
        name=model_id,
        kind=kind,
        description=facts.get("description") or "",
        demo=bool(facts.get("demo")),
        input_modalities=None if modalities is None else tuple(modalities),
        tools=facts.get("tools"),
        reasoning=facts.get("reasoning"),
        thinking=facts.get("thinking"),
        context_length=facts.get("context_length"),
        deployments=tuple(Deployment(**_known(Deployment, one)) for one in facts.get("deployments") or ()),
        image=ImageFacts(**_known(ImageFacts, facts.get("image") or {})) if kind == "image" else None,
    )


def _known(shape: type[Deployment] | type[ImageFacts], facts: Mapping[str, Any]) -> dict[str, Any]:
    """Only the keys this version of the app shows: a newer gateway may say more."""
    return {key: value for key, value in facts.items() if key in shape.__dataclass_fields__}


def badges_of(card: ModelCard) -> list[tuple[str, str]]:
    """(label, colour) of each thing worth knowing before picking the model."""
    badges = [("demo model", "violet")] if card.demo else []
    badges += [("images", "primary")] if card.kind == "image" else []
    abilities = {"vision": card.sees, "tools": card.tools, "reasoning": card.reasoning}
    badges += [(label, "blue") for label, able in abilities.items() if able and card.kind == "chat"]
    if (serving := card.serving) is not None:
        badges.append(("local", "gray") if serving.local else ("hosted", "gray"))
        badges += [state] if (state := _state_badge(serving)) else []
    return badges


def _state_badge(deployment: Deployment) -> tuple[str, str] | None:
    match deployment.state:
        case "ready":
            return ("ready", "green")
        case "starting":
            return (f"loading{_percent(deployment.progress)}", "orange")
        case "stopped" | "stopping":
            return ("starts on demand", "gray")
        case "failed" | "unavailable":
            return (deployment.state, "red")
    return None


def _percent(progress: float | None) -> str:
    return "" if progress is None else f" {round(progress * 100)} %"


def waiting_for(card: ModelCard) -> Progress:
    """Why the first token of this model has not come yet."""
    serving = card.serving
    if serving is None or serving.state in ("ready", "hosted"):
        return Progress(f"Waiting for {card.name}")
    if serving.state == "starting":
        stage = f": {serving.stage}" if serving.stage else ""
        return Progress(f"Loading {card.name}{_percent(serving.progress)}{stage}", serving.progress)
    if serving.state in ("stopped", "stopping"):
        return Progress(f"Starting {card.name}")
    return Progress(f"{card.name} is {serving.state}{': ' + serving.reason if serving.reason else ''}")


def sizes_of(image: ImageFacts) -> list[str]:
    """The sizes on offer, the default first: squares, and both orientations of 3:2, all of which the model can make."""
    width, height = (int(side) for side in image.default_size.split("x"))
    base = max(width, height)
    squares = [(side, side) for side in (base // 2, base, base * 2)]
    landscapes = [(long, long * 2 // 3) for long in (base, base * 3 // 2)]
    shapes = squares + landscapes + [(high, wide) for wide, high in landscapes]
    fitting = [(_snap(wide, image), _snap(high, image)) for wide, high in shapes]
    names = [f"{wide}x{high}" for wide, high in fitting if image.min_side <= min(wide, high) and max(wide, high) <= image.max_side]
    return list(dict.fromkeys([image.default_size, *names]))


def _snap(side: int, image: ImageFacts) -> int:
    return round(side / image.size_multiple) * image.size_multiple
