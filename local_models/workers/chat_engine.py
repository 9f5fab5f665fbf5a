"""The chat model and its decode loop: one prompt in, events out, token by token.

Runs in the engine thread only. The loop is ours rather than `generate` so that a job can be left between two tokens, and
several answers to one prompt share its prefill. The model builds its own cache, which for Qwen3.5 holds attention keys
and the states of the Gated DeltaNet layers: it can be copied and continued, never cut back.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.utils import logging as transformers_logging

from local_models.workers.chat_prompt import EncodedImages, Prompt
from local_models.workers.checkpoint import read_json_file, weight_bytes
from local_models.workers.errors import ApiError, LoadError
from local_models.workers.qwen_output import CALL, THINK_END
from local_models.workers.sampling import Sampler, SamplingParams, ThinkingBudget
from local_models.workers.torch_device import ONE_THREAD_BYTES, choose_device, choose_dtype, cores, use_threads

PREFILL_CHUNK = 512
VISION_MODEL_TYPES = frozenset({"qwen3_5", "qwen3_5_moe", "qwen3_vl", "qwen3_vl_moe"})
# Marks that the output parser reads, in case a tokenizer calls them special.
KEPT_TOKENS = ("<think>", "</think>", "<tool_call>", "</tool_call>")

Report = Callable[[str, float], None]
Check = Callable[[], None]


@dataclass
class Prefilled:
    """A prompt the model has read: its cache, and the logits of what comes next."""

    cache: Any
    logits: torch.Tensor


class QwenImageEncoder:
    """Pictures to patches for the vision tower, with the image processor that needs no torchvision.

    max_tokens: of all images of a prompt together; larger ones are scaled down further than the checkpoint asks for, so
    that a photo leaves room for the words.
    """

    def __init__(self, processor: Any, image_token_id: int, max_tokens: int) -> None:
        self._processor = processor
        self._max_tokens = max_tokens
        self.image_token_id = image_token_id

    def encode(self, images: Sequence[Image.Image]) -> EncodedImages:
        pixels_per_token = (self._processor.patch_size * self._processor.merge_size) ** 2
        size = pixel_bounds(self._processor.size, self._max_tokens // len(images) * pixels_per_token)
        encoded = self._processor(images=list(images), size=size, return_tensors="pt")
        grids = encoded["image_grid_thw"]
        counts = [int(grid.prod()) // self._processor.merge_size**2 for grid in grids]
        return EncodedImages(encoded["pixel_values"], grids, counts)


class ChatEngine:
    """A loaded chat model. Build it with `load`."""

    def __init__(self, network: Any, tokenizer: Any, images: QwenImageEncoder | None, folder: Path) -> None:
        self.tokenizer = tokenizer
        self.images = images
        self._network = network
        self._device = network.device
        text_config = network.config.get_text_config()
        self.context_length = int(getattr(text_config, "max_position_embeddings", 0) or tokenizer.model_max_length)
        generation = read_json_file(folder / "generation_config.json")
        self._sampling = default_sampling(generation)
        self.end_ids = end_ids(generation.get("eos_token_id"), text_config.eos_token_id, tokenizer.eos_token_id)
        self._hidden_ids = frozenset(
            token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special and token.content not in KEPT_TOKENS
        )
        self.tokens_generated = 0

    def decode(self, token_ids: Sequence[int]) -> str:
        shown = [token_id for token_id in token_ids if token_id not in self._hidden_ids]
        text: str = self.tokenizer.decode(shown, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    def sampler(self, given: dict[str, float | int], seed: int | None, prompt: Prompt, thinking_budget: int | None = None) -> Sampler:
        """given: what the request sets; the checkpoint's own defaults fill the rest. seed None: a fresh one.

        thinking_budget: most tokens of a thought that the prompt has opened. Raises ApiError where the model has no token to close it.
        """
        generator = torch.Generator(self._device)
        generator.manual_seed(int.from_bytes(os.urandom(7)) if seed is None else seed % 2**63)
        budget = self._budget(thinking_budget) if prompt.thinking and thinking_budget is not None else None
        return Sampler(sampling_params({**self._sampling, **given}), generator, frozenset(prompt.token_ids), budget=budget)

    def _budget(self, tokens: int) -> ThinkingBudget:
        closing, calling = (self.tokenizer(mark, add_special_tokens=False)["input_ids"] for mark in (THINK_END, CALL))
        if len(closing) != 1:
            raise ApiError(
                f"This model has no token of its own for {THINK_END}, so a thought cannot be cut short; leave 'thinking_token_budget' out.",
                param="thinking_token_budget",
                code="unsupported_value",
            )
        return ThinkingBudget(tokens, closing[0], frozenset([*closing, *(calling if len(calling) == 1 else ()), *self.end_ids]))

    @torch.inference_mode()
    def prefill(self, prompt: Prompt, check: Check) -> Prefilled:
        """Read the prompt; `check` is asked between chunks and may raise."""
        self._forget_positions()
        ids = torch.tensor([prompt.token_ids], device=self._device)
        if prompt.images is not None:
            check()
            return self._forward(ids, None, self._image_inputs(ids, prompt.images))
        cache, logits = None, None
        for start in range(0, ids.shape[1], PREFILL_CHUNK):
            check()
            read = self._forward(ids[:, start : start + PREFILL_CHUNK], cache, {})
            cache, logits = read.cache, read.logits
        if logits is None:
            raise ApiError("The prompt is empty; send a message with text.", param="messages", code="invalid_value")
        return Prefilled(cache, logits)

    @torch.inference_mode()
    def tokens(self, read: Prefilled, sampler: Sampler, limit: int) -> Iterator[int]:
        """At most `limit` tokens, the one that ends the answer included. Uses up the cache."""
        cache, logits = read.cache, read.logits
        for count in range(limit):
            token_id = sampler.pick(logits)
            self.tokens_generated += 1
            yield token_id
            if token_id in self.end_ids:
                return
            if count + 1 < limit:
                logits = self._forward(torch.tensor([[token_id]], device=self._device), cache, {}).logits

    def copy_of(self, read: Prefilled) -> Prefilled:
        return Prefilled(copy.deepcopy(read.cache), read.logits)

    def warm_up(self) -> None:
        """One short answer, so that the first request does not pay for lazy initialisation."""
        prompt = Prompt(self.tokenizer("Hello", add_special_tokens=False)["input_ids"], max_new_tokens=2, thinking=False)
        for _ in self.tokens(self.prefill(prompt, lambda: None), self.sampler({}, 0, prompt), 2):
            pass
        self.tokens_generated = 0

    def _forward(self, ids: torch.Tensor, cache: Any, extra: dict[str, Any]) -> Prefilled:
        out = self._network(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1, **extra)
        return Prefilled(out.past_key_values, out.logits[0, -1])

    def _image_inputs(self, ids: torch.Tensor, images: EncodedImages) -> dict[str, Any]:
        assert self.images is not None
        return {
            "pixel_values": images.pixel_values.to(self._device, self._network.dtype),
            "image_grid_thw": images.image_grid_thw.to(self._device),
            "mm_token_type_ids": (ids == self.images.image_token_id).int(),
        }

    def _forget_positions(self) -> None:
        """The model keeps the last image prompt's position offset, and would apply it to a text prompt that follows."""
        if hasattr(self._network.model, "rope_deltas"):
            self._network.model.rope_deltas = None


def load(folder: Path, device: str, dtype: str, report: Report) -> ChatEngine:
    """Raises LoadError. report: stage and fraction done, from 0 to 1."""
    where = choose_device(device)
    use_threads(1 if weight_bytes(folder) < ONE_THREAD_BYTES else cores())
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if not tokenizer.chat_template:
        raise LoadError(f"the checkpoint {folder} has no chat template; use the instruction-tuned version of the model")
    checkpoint_dtype = config.get_text_config().dtype or config.dtype or torch.float32
    report("reading weights", 0.0)
    network = _network(folder, config, choose_dtype(dtype, where, checkpoint_dtype, weight_bytes(folder)), where, report)
    report("warming up", 0.95)
    engine = ChatEngine(network, tokenizer, _image_encoder(folder, config), folder)
    engine.warm_up()
    return engine


def _network(folder: Path, config: Any, dtype: torch.dtype, device: torch.device, report: Report) -> Any:
    kind = AutoModelForImageTextToText if config.model_type in VISION_MODEL_TYPES else AutoModelForCausalLM

    def counted(items: Sequence[Any]) -> Iterator[Any]:
        for index, item in enumerate(items):
            report("reading weights", 0.9 * index / len(items))
            yield item

    def progress_bar(factory: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return counted(list(args[0])) if args else factory(**{**kwargs, "disable": True})

    previous = transformers_logging.set_tqdm_hook(progress_bar)
    try:
        network, info = kind.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            device_map={"": device},
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    finally:
        transformers_logging.set_tqdm_hook(previous)
    if missing := sorted(info["missing_keys"]):
        raise LoadError(f"the checkpoint {folder} lacks {len(missing)} weights, the first is {missing[0]}; download it again")
    return network.eval()


def _image_encoder(folder: Path, config: Any) -> QwenImageEncoder | None:
    if config.model_type not in VISION_MODEL_TYPES:
        return None
    processor = Qwen2VLImageProcessorPil.from_pretrained(folder, local_files_only=True)
    return QwenImageEncoder(processor, config.image_token_id, config.get_text_config().max_position_embeddings // 2)


def pixel_bounds(size: Mapping[str, int], most: int) -> dict[str, int]:
    """The image processor's bounds (in pixels, whatever their names say), with at most `most` pixels."""
    longest = min(size["longest_edge"], most)
    return {"shortest_edge": min(size["shortest_edge"], longest), "longest_edge": longest}


def sampling_params(values: Mapping[str, float | int]) -> SamplingParams:
    return SamplingParams(**{name: int(value) if name == "top_k" else float(value) for name, value in values.items()})  # type: ignore[arg-type]  # top_k is the int


def default_sampling(generation: dict[str, Any]) -> dict[str, float | int]:
    """What the checkpoint's generation_config.json recommends, as vLLM applies it too."""
    names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
    return {name: generation[name] for name in names if isinstance(generation.get(name), int | float)}


def end_ids(*sources: int | Sequence[int] | None) -> frozenset[int]:
    """Every token that any part of the checkpoint calls the end of an answer."""
    return frozenset(token_id for source in sources if source is not None for token_id in ([source] if isinstance(source, int) else source))
