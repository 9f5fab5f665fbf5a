"""What a Qwen3.5 brings by its id, and what a configuration makes of it."""

from __future__ import annotations

from typing import Any

import pytest

from config.qwen import qwen_facts
from config.schema import ModelSpec

LARGE = {"temperature": 1.0, "top_p": 0.95, "top_k": 20, "min_p": 0.0, "presence_penalty": 1.5, "repetition_penalty": 1.0}


def model(upstream_model: str = "Qwen/Qwen3.5-9B", **more: Any) -> ModelSpec:
    return ModelSpec.model_validate({"name": "a", "kind": "chat", "deployments": [{"upstream": "u", "model": upstream_model}], **more})


@pytest.mark.parametrize(
    ("name", "thinks"),
    [
        ("Qwen/Qwen3.5-9B", True),
        ("qwen/qwen3.5-9b:free", True),
        ("RedHatAI/Qwen3.5-9B-FP8-dynamic", True),
        ("./models/qwen3_5-4b-awq", True),
        ("Qwen/Qwen3.5-35B-A3B", True),
        ("Qwen/Qwen3.5-0.8B", False),
        ("Qwen/Qwen3.5-2B", False),
    ],
)
def test_the_family_is_known_by_its_ids(name: str, thinks: bool) -> None:
    facts = qwen_facts(name)
    assert facts is not None
    assert facts.thinks is thinks
    assert facts.thinking == LARGE
    silent = (0.7, 0.8, 1.5) if thinks else (1.0, 1.0, 2.0)
    assert tuple(facts.no_thinking[key] for key in ("temperature", "top_p", "presence_penalty")) == silent


@pytest.mark.parametrize("name", ["Qwen/Qwen3-8B", "Qwen/Qwen3.5-9B-Base", "builtin:demo", "org/not-qwen3.5-9b", "Qwen3.5-9B/other", ""])
def test_nothing_else_is_taken_for_one(name: str) -> None:
    assert qwen_facts(name) is None


def test_a_configuration_goes_over_the_card_key_by_key() -> None:
    spec = model(sampling={"thinking": {"temperature": 0.6, "presence_penalty": None}, "no_thinking": {"frequency_penalty": 0.1}})
    thinking = {name: value for name, value in LARGE.items() if name != "presence_penalty"} | {"temperature": 0.6}
    assert spec.sampling.thinking.given() == thinking
    assert spec.sampling.no_thinking.given()["frequency_penalty"] == 0.1
    assert spec.sampling.no_thinking.given()["top_p"] == 0.8


@pytest.mark.parametrize("spec", [model(sampling=False), model("builtin:demo"), model("builtin:demo", sampling=False)])
def test_sampling_can_be_switched_off_and_unknown_models_have_none(spec: ModelSpec) -> None:
    assert spec.sampling.thinking.given() == spec.sampling.no_thinking.given() == {}


def test_any_model_can_have_its_own() -> None:
    assert model("org/other", sampling={"no_thinking": {"top_k": 5}}).sampling.no_thinking.given() == {"top_k": 5}


@pytest.mark.parametrize("sampling", [3, True, {"thinking": 3}, {"thoughts": {}}, {"thinking": {"top_z": 1}}, {"thinking": {"top_p": 2}}])
def test_what_is_no_sampling_is_told_by_the_schema(sampling: Any) -> None:
    with pytest.raises(ValueError, match="validation error"):
        model(sampling=sampling)


def test_pictures_have_no_sampling() -> None:
    with pytest.raises(ValueError, match="'sampling' belongs to kind: chat"):
        model(kind="image", sampling={})


@pytest.mark.parametrize(
    ("spec", "thinks"),
    [
        (model(), True),
        (model("Qwen/Qwen3.5-0.8B", reasoning=True), False),
        (model("Qwen/Qwen3.5-0.8B", thinking=True), True),
        (model(thinking=False), False),
        (model(reasoning=False), False),
        (model("org/other", reasoning=True), True),
        (model("org/other"), None),
    ],
)
def test_what_a_model_does_by_itself(spec: ModelSpec, thinks: bool | None) -> None:
    assert spec.thinks is thinks
