"""Train demo-image in stages: the text encoder learns to read, the autoencoder to draw fixed latents, the UNet to draw what was read.

    python -m local_models.demo.train_image --work DIR [--stage text|vae|unet|all] [--minutes N] [--out DIR]

Held-out scenes (`world.is_held_out`) are never drawn here; evaluate.py draws nothing else.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import AttnProcessor
from PIL import Image

from local_models.demo import image_model, train_prompts
from local_models.demo.captions import caption, wish_of
from local_models.demo.latents import CHANNELS, FACTOR, latents_of
from local_models.demo.training import Average, Budget, Run, half_precision, learn, learning_rate, on_device, trained, use_best_device
from local_models.demo.world import Scene, is_held_out, random_scene, render, training_scene

TEXT_STEPS, TEXT_PEAK_RATE = 3000, 1.5e-3
VAE_STEPS, VAE_PEAK_RATE, VAE_NOISE = 4000, 2e-3, 0.1
HOLLOW_SHARE = 0.15  # of the autoencoder's pictures: outlines, which the LoRA draws
UNET_STEPS, UNET_PEAK_RATE = 8000, 1e-3
EMPTY_PROMPT_SHARE = 0.1
PAIRS_SHARE, INSIDE_SHARE = 0.5, 0.4
LOG_VARIANCE = -9.0
NOISY_SHARE = 0.75  # below 1: more of the noisy timesteps, where the shape is decided

# Small pictures first: a step sees four times as many of them, and what is learnt of colours and places holds in any size.
_SIZES_FIRST = {(64, 64): 0.6, (96, 96): 0.25, (128, 128): 0.15}
_SIZES_LAST = {
    (128, 128): 0.72, (64, 64): 0.07, (96, 96): 0.07, (160, 160): 0.03, (192, 192): 0.03, (256, 256): 0.02, (128, 96): 0.02,
    (96, 128): 0.02, (192, 128): 0.01, (128, 192): 0.01,
}  # fmt: skip
_SMALL_FIRST = 0.35  # of the budget
_BATCH_LATENTS = 32 * 32 * 32
_BATCH_MOST = 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="checkpoints; the same folder again resumes")
    parser.add_argument("--out", type=Path, help="pipeline directory to write when done")
    parser.add_argument("--stage", choices=("text", "vae", "unet", "all"), default="all")
    parser.add_argument("--steps", type=int, help="budget of each stage in steps")
    parser.add_argument("--minutes", type=float, help="budget of each stage in minutes of wall time")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    print(f"training on {use_best_device()}", flush=True)
    if options.stage in ("text", "all"):
        train_text(options.work, Budget(options.steps or TEXT_STEPS, options.minutes), options.seed)
    if options.stage in ("vae", "all"):
        train_vae(options.work, Budget(options.steps or VAE_STEPS, options.minutes), options.seed)
    if options.stage in ("unet", "all"):
        train_unet(options.work, Budget(options.steps or UNET_STEPS, options.minutes), options.seed)
    if options.out:
        export(options.work, options.out)


def pixels_of(scenes: list[Scene], width: int, height: int, hollow: bool = False) -> torch.Tensor:
    """(N, 3, height, width), -1 to 1."""
    return tensor_of([render(scene, width, height, hollow) for scene in scenes])


def tensor_of(pictures: list[Image.Image]) -> torch.Tensor:
    """(N, 3, height, width), -1 to 1, of RGB pictures of one size."""
    stack = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures]))
    return on_device(stack).permute(0, 3, 1, 2).float() / 127.5 - 1.0


def train_text(work: Path, budget: Budget, seed: int) -> None:
    tokenizer = image_model.build_tokenizer(work / "tokenizer")
    reader = train_prompts.Reader(image_model.build_text_encoder(tokenizer)).train()
    optimizer = torch.optim.AdamW(reader.parameters(), lr=TEXT_PEAK_RATE, betas=(0.9, 0.98), weight_decay=1e-2)
    run = Run("text", work / "text.pt", budget, {"model": reader, "optimizer": optimizer})
    for step in run:
        rng = prepare(seed, step, optimizer, TEXT_PEAK_RATE, run.fraction)
        ids, labels = train_prompts.batch(rng, tokenizer, train_prompts.BATCH)
        loss = train_prompts.loss_of(reader, ids, labels, place=rng.choice((0, 0, 1, 3, 8)))
        learn(loss, reader.parameters(), optimizer)
        run.log(float(loss.detach()))
    rng = random.Random(f"{seed}:held out")
    held_out = (scene for scene in (random_scene(rng, 0.5) for _ in iter(int, 1)) if is_held_out(scene))
    ids, labels = train_prompts.batch(rng, tokenizer, 1000, lambda rng: wish_of(next(held_out), rng))
    print(
        "read right of held-out prompts, slot by slot, then whole:",
        [f"{share:.1%}" for share in train_prompts.share_read(reader, ids, labels)],
    )


def prepare(seed: int, step: int, optimizer: torch.optim.Optimizer, peak: float, fraction: float) -> random.Random:
    """The step's generator, with torch seeded from it and the learning rate set."""
    rng = random.Random(f"{seed}:{step}")
    torch.manual_seed(rng.getrandbits(32))
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(peak, fraction)
    return rng


def train_vae(work: Path, budget: Budget, seed: int) -> None:
    """The encoder learns the fixed latents, the decoder to draw from them, with some of the noise that a UNet leaves."""
    vae = image_model.build_vae().train()
    optimizer = torch.optim.AdamW(vae.parameters(), lr=VAE_PEAK_RATE, betas=(0.9, 0.99), weight_decay=1e-4)
    run = Run("vae", work / "vae.pt", budget, {"model": vae, "optimizer": optimizer})
    for step in run:
        rng = prepare(seed, step, optimizer, VAE_PEAK_RATE, run.fraction)
        pictures = _vae_batch(rng)
        wanted = latents_of(pictures)
        noise = VAE_NOISE * torch.rand(len(wanted), 1, 1, 1) * torch.randn_like(wanted)
        with half_precision():
            restored = vae.decode(wanted + noise).sample.float()
            found = vae.encode(pictures).latent_dist.mean.float()
        loss = F.l1_loss(restored, pictures) + 0.5 * F.mse_loss(restored, pictures) + F.mse_loss(found, wanted)
        learn(loss, vae.parameters(), optimizer)
        run.log(float(loss.detach()))


def _vae_batch(rng: random.Random) -> torch.Tensor:
    """Cut-outs train the convolutions at a quarter of the price; whole pictures teach the group norms their statistics."""
    whole = rng.random() < 0.3
    scenes = [training_scene(rng) for _ in range(4 if whole else 12)]
    hollow = rng.random() < HOLLOW_SHARE
    if whole:
        return pixels_of(scenes, 128, 128, hollow)
    if rng.random() < 0.15:
        return pixels_of(scenes, 64, 64, hollow)
    x, y = 8 * rng.randrange(0, 8), 8 * rng.randrange(0, 8)
    return pixels_of(scenes, 128, 128, hollow)[:, :, y : y + 72, x : x + 72].contiguous()


def train_unet(work: Path, budget: Budget, seed: int) -> None:
    """The text encoder stays as it is: what it has read reaches the UNet, which learns to draw it."""
    reader = PromptReader(work)
    unet = image_model.build_unet().train()
    unet.set_attn_processor(AttnProcessor())  # for so few positions faster than the fused kernel
    average = Average(unet, decay=0.998)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=UNET_PEAK_RATE, betas=(0.9, 0.99), weight_decay=1e-3)
    run = Run("unet", work / "unet.pt", budget, {"model": unet, "average": average, "optimizer": optimizer})
    signal, noise = schedule()
    for step in run:
        rng = prepare(seed, step, optimizer, UNET_PEAK_RATE, run.fraction)
        latents, prompts = _unet_batch(rng, run.fraction)
        loss = v_loss(lambda *given: unet(*given).sample, latents, reader.read(prompts), signal, noise)
        learn(loss, unet.parameters(), optimizer)
        average.update()
        run.log(float(loss.detach()))


def _unet_batch(rng: random.Random, fraction: float) -> tuple[torch.Tensor, list[str]]:
    sizes = _SIZES_FIRST if fraction < _SMALL_FIRST else _SIZES_LAST
    width, height = rng.choices(list(sizes), list(sizes.values()))[0]
    count = min(_BATCH_MOST, _BATCH_LATENTS * FACTOR**2 // (width * height))
    scenes = [training_scene(rng, PAIRS_SHARE, INSIDE_SHARE) for _ in range(count)]
    prompts = ["" if rng.random() < EMPTY_PROMPT_SHARE else caption(scene, rng) for scene in scenes]
    return latents_of(pixels_of(scenes, width, height)), prompts


def schedule() -> tuple[torch.Tensor, torch.Tensor]:
    """Share of signal and of noise at each of the scheduler's timesteps."""
    kept = on_device(image_model.build_scheduler().alphas_cumprod)
    return kept.sqrt(), (1.0 - kept).sqrt()


def v_loss(
    predict: Callable[..., torch.Tensor], latents: torch.Tensor, said: torch.Tensor, signal: torch.Tensor, noise: torch.Tensor
) -> torch.Tensor:
    """How far predict(noisy latents, timesteps, said) is from the velocity. said: hidden states (N, length, width) of the prompts."""
    count = len(latents)
    spread = (torch.arange(count) + torch.rand(count)) / count
    timesteps = (1000 * spread**NOISY_SHARE).long().clamp(max=999)[torch.randperm(count)]
    a, b = (values[timesteps].view(-1, 1, 1, 1) for values in (signal, noise))
    drawn = torch.randn_like(latents)
    with half_precision():
        predicted = predict(a * latents + b * drawn, timesteps, said)
    return F.mse_loss(predicted.float(), a * drawn - b * latents)


def trained_text_encoder(work: Path, tokenizer: Any) -> Any:
    reader = train_prompts.Reader(image_model.build_text_encoder(tokenizer))
    reader.load_state_dict(trained(work / "text.pt", "model"))
    return reader.text_encoder.eval()


class PromptReader:
    """Prompts to the hidden states that the UNet is given."""

    def __init__(self, work: Path) -> None:
        self._tokenizer = image_model.build_tokenizer(work / "tokenizer")
        self._text_encoder = trained_text_encoder(work, self._tokenizer)

    @torch.no_grad()
    def read(self, prompts: list[str]) -> torch.Tensor:
        """(N, length, width)."""
        hidden: torch.Tensor = self._text_encoder(train_prompts.ids_of(self._tokenizer, prompts))[0]
        return hidden


def trained_unet(work: Path) -> Any:
    """With the averaged weights."""
    unet = image_model.build_unet()
    unet.load_state_dict(trained(work / "unet.pt", "average")["values"])
    return unet


def _trained_vae(work: Path) -> Any:
    """Its latents hardly vary for one picture: the half of the encoder's output that says how much is set to next to nothing."""
    vae = image_model.build_vae()
    vae.load_state_dict(trained(work / "vae.pt", "model"))
    with torch.no_grad():
        vae.quant_conv.weight[CHANNELS:] = 0.0
        vae.quant_conv.bias[CHANNELS:] = LOG_VARIANCE
    return vae.eval()


def export(work: Path, out: Path) -> None:
    """Write the pipeline directory from the checkpoints, the averaged weights of the UNet."""
    tokenizer = image_model.build_tokenizer(work / "tokenizer")
    pipeline = image_model.assemble(tokenizer, trained_text_encoder(work, tokenizer), _trained_vae(work), trained_unet(work))
    image_model.save_pipeline(pipeline, out)
    print(f"wrote {out}", flush=True)


if __name__ == "__main__":
    main()
