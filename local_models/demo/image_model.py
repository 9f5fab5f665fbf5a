"""The architecture of demo-image: a Stable Diffusion pipeline small enough for a repository.

Every part is a plain diffusers or transformers class, so that `DiffusionPipeline.from_pretrained` loads the directory without our code.
"""

from __future__ import annotations

import inspect
import itertools
import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, ControlNetModel, DPMSolverMultistepScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from local_models.demo import latents
from local_models.demo.captions import vocabulary

NATIVE_SIDE = 128
PROMPT_LENGTH = 32
TEXT_WIDTH = 128
PREVIEW_FILE = "preview.json"
CONTROLNET, LORA = "controlnet-edges", "lora-outline"  # folders beside the pipeline's own
START_TOKEN, END_TOKEN = "<|startoftext|>", "<|endoftext|>"

_PUNCTUATION = (",", ".", ":", ";", "!", "?", "-", "'", '"', "(", ")")
_CHARACTERS = tuple("abcdefghijklmnopqrstuvwxyz0123456789")
_END_OF_WORD = "</w>"
_CONTROLNET_OPTIONS = inspect.signature(ControlNetModel).parameters


def write_tokenizer_files(folder: Path) -> None:
    """vocab.json and merges.txt in which each caption word is one token and any other word is spelt letter by letter."""
    symbols = [START_TOKEN, END_TOKEN, *_CHARACTERS, *_PUNCTUATION]
    symbols += [symbol + _END_OF_WORD for symbol in (*_CHARACTERS, *_PUNCTUATION)]
    merges: list[tuple[str, str]] = []
    for word in vocabulary():
        # A merge only ever comes after those of earlier words, so earlier words stay whole.
        pieces = _merge([*word[:-1], word[-1] + _END_OF_WORD], merges)
        while len(pieces) > 1:
            merges.append((pieces[0], pieces[1]))
            symbols.append(pieces[0] + pieces[1])
            pieces = [pieces[0] + pieces[1], *pieces[2:]]
    folder.mkdir(parents=True, exist_ok=True)
    table = {symbol: index for index, symbol in enumerate(dict.fromkeys(symbols))}
    (folder / "vocab.json").write_text(json.dumps(table), encoding="utf-8")
    lines = ["#version: 0.2", *(f"{left} {right}" for left, right in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def build_tokenizer(folder: Path) -> Any:
    """The CLIPTokenizer; folder receives its two files."""
    write_tokenizer_files(folder)
    table = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    merges = [tuple(line.split(" ")) for line in (folder / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]]
    return CLIPTokenizer(vocab=table, merges=merges, model_max_length=PROMPT_LENGTH)


def build_text_encoder(tokenizer: Any) -> Any:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=4 * TEXT_WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=PROMPT_LENGTH,
        projection_dim=TEXT_WIDTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def build_vae() -> Any:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        latent_channels=latents.CHANNELS,
        norm_num_groups=8,
        sample_size=NATIVE_SIDE,
        mid_block_add_attention=False,
        scaling_factor=1.0,
        force_upcast=False,
    )


def build_unet() -> Any:
    """Attention only where the picture is 8 x 8; the pooled prompt is in the time embedding and so reaches all layers."""
    return UNet2DConditionModel(
        sample_size=NATIVE_SIDE // latents.FACTOR,
        in_channels=latents.CHANNELS,
        out_channels=latents.CHANNELS,
        down_block_types=("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DCrossAttn",
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        block_out_channels=(32, 64, 128),
        layers_per_block=1,
        attention_head_dim=4,
        norm_num_groups=16,
        cross_attention_dim=TEXT_WIDTH,
        addition_embed_type="text",
        addition_embed_type_num_heads=4,
    )


def build_controlnet(unet: Any) -> Any:
    """For edges: a copy of the UNet's first half, told by a picture of the pipeline's size, which two halvings bring to the latents'."""
    shared = {name: value for name, value in unet.config.items() if name in _CONTROLNET_OPTIONS and not name.startswith("_")}
    controlnet = ControlNetModel(**shared, conditioning_embedding_out_channels=(16, 32, 64))
    controlnet.load_state_dict(unet.state_dict(), strict=False)
    return controlnet


def build_scheduler() -> Any:
    """Zero terminal signal-to-noise ratio: flat backgrounds of any brightness need it (Lin et al. 2023)."""
    return DPMSolverMultistepScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        steps_offset=1,  # means nothing to trailing steps; diffusers warns of anything else
    )


def build_pipeline(folder: Path, seed: int = 0) -> Any:
    """An untrained pipeline. folder receives the tokenizer's files."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer(folder / "tokenizer")
    return assemble(tokenizer, build_text_encoder(tokenizer), build_vae(), build_unet())


def assemble(tokenizer: Any, text_encoder: Any, vae: Any, unet: Any) -> Any:
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def save_pipeline(pipeline: Any, folder: Path) -> None:
    """Write the directory with half-precision weights, which loaders cast to the dtype they are asked for, and the preview decoder."""
    pipeline.to(torch.float16)
    pipeline.save_pretrained(folder, safe_serialization=True)
    (folder / PREVIEW_FILE).write_text(json.dumps(latents.preview_factors()) + "\n", encoding="utf-8")
    make_readable(folder)


def make_readable(folder: Path) -> None:
    """By everybody: safetensors are written for their owner only."""
    for file in folder.rglob("*.safetensors"):
        file.chmod(0o644)


def save_controlnet(controlnet: Any, folder: Path) -> None:
    controlnet.to(torch.float16).save_pretrained(folder, safe_serialization=True)
    make_readable(folder)


def _merge(pieces: list[str], merges: list[tuple[str, str]]) -> list[str]:
    """Byte-pair encoding of one word: the earliest merge that applies, until none does."""
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    while True:
        found = [(ranks[pair], i) for i, pair in enumerate(itertools.pairwise(pieces)) if pair in ranks]
        if not found:
            return pieces
        _, i = min(found)
        pieces = [*pieces[:i], pieces[i] + pieces[i + 1], *pieces[i + 2 :]]
