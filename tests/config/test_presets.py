"""Known image models bring their defaults; whatever a configuration says goes over them."""

from __future__ import annotations

from typing import Any

import pytest

from config import loader
from config.presets import IMAGE_PRESETS
from config.schema import ImageSpec, ModelSpec

KLEIN = "black-forest-labs/FLUX.2-klein-4B"


def image(model: str, **more: Any) -> ImageSpec:
    spec = ModelSpec.model_validate({"name": "a", "kind": "image", "deployments": [{"upstream": "u", "model": model}], **more})
    assert spec.image is not None
    return spec.image


@pytest.mark.parametrize("model", list(IMAGE_PRESETS))
def test_every_preset_fits_the_schema(model: str) -> None:
    assert image(model).model_dump(include=set(IMAGE_PRESETS[model])) == IMAGE_PRESETS[model]


def test_a_known_model_needs_no_words() -> None:
    assert (image(KLEIN).num_inference_steps, image(KLEIN).guidance_scale) == (4, 1.0)
    assert image("owner/unknown") == ImageSpec()


def test_the_configuration_goes_over_the_preset() -> None:
    spec = image(KLEIN, image={"num_inference_steps": 8})
    assert (spec.num_inference_steps, spec.guidance_scale) == (8, 1.0)


@pytest.mark.parametrize("profile", loader.profile_names())
def test_the_profiles_agree_with_the_presets(profile: str) -> None:
    for model in loader.load(profile, None, {}).models:
        preset = IMAGE_PRESETS.get(model.deployments[0].model)
        if preset is not None:
            assert model.image is not None
            assert model.image.model_dump(include=set(preset)) == preset


@pytest.mark.parametrize(
    "more", [{"image": 3}, {"image": None}, {"deployments": []}, {"deployments": 3}, {"deployments": [3]}, {"kind": 3}]
)
def test_a_wrong_model_is_told_by_the_schema_and_not_by_the_presets(more: dict[str, Any]) -> None:
    data = {"name": "a", "kind": "image", "deployments": [{"upstream": "u", "model": KLEIN}], **more}
    if more == {"image": None}:
        assert ModelSpec.model_validate(data).image == image(KLEIN)
        return
    with pytest.raises(ValueError, match="validation error"):
        ModelSpec.model_validate(data)
