"""The decode loop says what transformers' own `generate` says, token for token, and a scripted model is read right."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from local_models.workers.chat_request import parse_chat_request
from tests.local_models.workers.test_chat_server import data_url

if TYPE_CHECKING:
    from local_models.workers.chat_engine import ChatEngine

TEXT: list[Any] = ["Hi", "a long prompt, read in more than one chunk " * 40]
IMAGES = [{"type": "image_url", "image_url": {"url": data_url(*size)}} for size in ((96, 64), (64, 128))]


@pytest.fixture(scope="module")
def engine(checkpoints: Path) -> ChatEngine:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers' own, at import
        from local_models.workers import chat_engine
    return chat_engine.load(checkpoints / "chat", "cpu", "auto", lambda stage, done: None)


@pytest.mark.parametrize("content", [*TEXT, [*IMAGES, {"type": "text", "text": "Compare."}], "Hi after the images"])
def test_greedy_tokens_are_those_of_generate(engine: ChatEngine, content: Any) -> None:
    import torch

    from local_models.workers.chat_prompt import PromptBuilder

    prompts = PromptBuilder(engine.tokenizer, engine.images, context_length=engine.context_length, model_name="tiny")
    body = {"model": "tiny", "messages": [{"role": "user", "content": content}], "temperature": 0}
    request = parse_chat_request(body, "tiny")
    prompt = prompts.build(request)
    read = engine.prefill(prompt, lambda: None)
    again = engine.copy_of(read)
    written = list(engine.tokens(read, engine.sampler(dict(request.sampling), None, prompt), 24))

    ids = torch.tensor([prompt.token_ids])
    network = engine._network
    network.model.rope_deltas = None
    images = engine._image_inputs(ids, prompt.images) if prompt.images else {}
    whole = network.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False, **images)
    assert written == whole[0, ids.shape[1] :].tolist()
    network.model.rope_deltas = None if not prompt.images else network.model.rope_deltas
    assert list(engine.tokens(again, engine.sampler(dict(request.sampling), None, prompt), 24)) == written


def test_special_tokens_are_not_text_but_marks_are(engine: ChatEngine) -> None:
    ids = engine.tokenizer("<|im_start|>a<think>b</think><|im_end|>", add_special_tokens=False)["input_ids"]
    assert engine.decode(ids) == "a<think>b</think>"


def test_an_image_becomes_as_many_tokens_as_its_patches(engine: ChatEngine) -> None:
    assert engine.images is not None
    encoded = engine.images.encode([Image.new("RGB", (96, 64)), Image.new("RGB", (1000, 1000))])
    assert encoded.token_counts == [6, 16]


def test_images_leave_half_the_context_to_the_words(engine: ChatEngine) -> None:
    from local_models.workers.chat_engine import QwenImageEncoder

    assert engine.images is not None
    narrow = QwenImageEncoder(engine.images._processor, engine.images.image_token_id, max_tokens=20)
    assert sum(narrow.encode([Image.new("RGB", (500, 500))] * 2).token_counts) <= 20
