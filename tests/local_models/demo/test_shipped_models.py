"""The directories in weights/ load with plain transformers and diffusers, are small, and do what the model cards say."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from local_models.demo import outside
from local_models.demo.build import WEIGHTS
from local_models.demo.captions import plain_caption
from local_models.demo.chat_data import picture_facts, tool_schema
from local_models.demo.checker import judge
from local_models.demo.evaluate_chat import Chat, tool_prompt
from local_models.demo.evaluate_image import draw, load_image
from local_models.demo.example import Example
from local_models.demo.world import held_out_scenes, ordered, single

pytestmark = [pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"), pytest.mark.usefixtures("one_thread")]
LARGEST_BYTES = 40_000_000
TOOL = tool_schema("generate_image", "Draw a picture", {"prompt": {"type": "string"}}, ["prompt"])


@pytest.fixture(scope="module")
def chat() -> Chat:
    return Chat(WEIGHTS / "demo")


@pytest.fixture(scope="module")
def pipeline() -> Any:
    return load_image(WEIGHTS / "demo-image")


def test_both_models_together_are_small() -> None:
    assert sum(file.stat().st_size for file in WEIGHTS.rglob("*") if file.is_file()) <= LARGEST_BYTES


def test_every_file_can_be_read_by_everybody() -> None:
    assert [file for file in WEIGHTS.rglob("*") if file.is_file() and not file.stat().st_mode & 0o044] == []


@pytest.mark.parametrize("thinking", [True, False])
@pytest.mark.parametrize(
    ("question", "facts"),
    [
        ("What can you do?", ("questions about Tandem", "describe simple pictures")),
        ("Hello", ("Hello",)),
        ("What is 12 + 7?", ("12 + 7 = 19",)),
        ("How do I add OpenRouter?", ("OPENROUTER_API_KEY", "--profile hosted")),
        ("Where is the key?", ("api_key",)),
        ("Draw a red circle", ("image mode", "a red circle")),
        ("Who won the world cup?", (outside.ANSWER,)),
    ],
)
def test_the_first_questions_of_a_stranger(chat: Chat, question: str, facts: tuple[str, ...], thinking: bool) -> None:
    text = chat.answer(Example(question, "", "", thinking=thinking))
    reasoning, found, visible = text.rpartition("</think>")
    assert bool(found and reasoning.strip()) == thinking, text
    assert [fact for fact in facts if fact not in visible] == [], text


@pytest.mark.parametrize("thinking", [True, False])
def test_asked_to_draw_it_calls_the_given_tool(chat: Chat, thinking: bool) -> None:
    text = chat.answer(Example("Draw a red circle on a blue background", "", "", tools=(TOOL,), thinking=thinking))
    assert tool_prompt(text.split("</think>")[-1]) == "a red circle on a blue background"


def test_the_reasoning_of_a_sum_has_its_steps(chat: Chat) -> None:
    assert "ones 2 + 7 = 9" in chat.answer(Example("What is 12 + 7?", "", "", thinking=True))


def test_it_sees_a_picture(chat: Chat) -> None:
    text = chat.answer(Example("What is in this picture?", "", "", picture=single("circle", "red", "blue"), thinking=False))
    assert text == "The picture shows a red circle on a blue background."


def test_it_sees_two_shapes_and_how_they_stand(chat: Chat) -> None:
    scene = next(scene for scene in held_out_scenes(20, 9, pairs=1.0) if scene.relation != "inside")
    text = chat.answer(Example("What is in this picture?", "", "", picture=scene, thinking=False))
    assert text == f"The picture shows {plain_caption(ordered(scene))}."


def test_it_answers_as_json_and_in_one_word(chat: Chat) -> None:
    scene = single("circle", "red", "blue")
    asked = {"Describe the picture. Answer as JSON.": json.dumps(picture_facts(scene)), "What shape is it? Answer in one word.": "circle"}
    assert [chat.answer(Example(question, "", "", picture=scene, thinking=False)) for question in asked] == list(asked.values())


def test_it_draws_what_is_asked_for(pipeline: Any) -> None:
    wishes = {
        "a red circle on a blue background": single("circle", "red", "blue"),
        "a green square on a white background": single("square", "green", "white"),
        "yellow star, black background": single("star", "yellow", "black"),
        "draw a purple triangle on pink": single("triangle", "purple", "pink"),
    }
    verdicts = [judge(scene, picture) for scene, picture in zip(wishes.values(), draw(pipeline, list(wishes), seed=0), strict=True)]
    assert [(v.colour, v.background, v.shape) for v in verdicts] == [(True, True, True)] * len(verdicts)


@pytest.mark.parametrize("side", [64, 96, 256])
def test_it_draws_in_other_sizes(pipeline: Any, side: int) -> None:
    (picture,) = draw(pipeline, ["a red circle on a blue background"], seed=0, side=side)
    assert picture.size == (side, side)
    assert judge(single("circle", "red", "blue"), picture).background


def test_latents_can_be_previewed_without_the_autoencoder(pipeline: Any) -> None:
    factors = json.loads((WEIGHTS / "demo-image" / "preview.json").read_text())
    prompt, generator = "a red circle on a blue background", torch.Generator().manual_seed(3)
    latents = pipeline(prompt, num_inference_steps=8, guidance_scale=3.0, generator=generator, output_type="latent").images
    preview = torch.einsum("nchw,cr->nrhw", latents, torch.tensor(factors["latent_rgb_factors"]))
    with torch.no_grad():
        whole = pipeline.vae.decode(latents).sample
    assert preview.shape == (1, 3, 32, 32)
    assert (preview - torch.nn.functional.avg_pool2d(whole, 4)).abs().mean() < 0.1  # of 2, the range of pixels


def test_the_same_seed_gives_the_same_pixels(pipeline: Any) -> None:
    first, second = (draw(pipeline, ["a red circle"], seed=5)[0].tobytes() for _ in range(2))
    assert first == second


def test_the_chat_directory_is_a_qwen3_5_checkpoint() -> None:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(WEIGHTS / "demo")
    assert config.architectures == ["Qwen3_5ForConditionalGeneration"]
    assert set(config.text_config.layer_types) == {"linear_attention", "full_attention"}
    assert config.text_config.linear_key_head_dim >= 64
    assert {file.name for file in Path(WEIGHTS / "demo").iterdir()} >= {
        "chat_template.jinja",
        "generation_config.json",
        "preprocessor_config.json",
        "video_preprocessor_config.json",
        "tokenizer.json",
        "model.safetensors",
    }
