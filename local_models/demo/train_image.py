"""Train demo-image: the autoencoder on the fixed latents, and the UNet together with its text encoder. Neither needs the other.

    python -m local_models.demo.train_image --work DIR [--stage vae|unet|all] [--minutes N] [--out DIR]

Held-out scenes (`world.is_held_out`) are never drawn here; evaluate.py draws nothing else.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from local_models.demo import image_model
from local_models.demo.captions import caption
from local_models.demo.latents import CHANNELS, latents_of
from local_models.demo.training import Average, Budget, Run, learning_rate
from local_models.demo.world import Scene, render, training_scene

VAE_STEPS, VAE_PEAK_RATE, VAE_NOISE = 3000, 1.5e-3, 0.15
UNET_STEPS, UNET_PEAK_RATE = 6000, 8e-4
EMPTY_PROMPT_SHARE = 0.1
PAIRS_SHARE = 0.2
LOG_VARIANCE = -9.0
NOISY_SHARE = 0.75  # below 1: more of the noisy timesteps, where the shape is decided

_SIZES = {(128, 128): 0.84, (64, 64): 0.04, (96, 96): 0.04, (128, 96): 0.02, (96, 128): 0.02, (192, 192): 0.03, (256, 256): 0.01}
_BATCH_LATENTS = 32 * 16 * 16
_BATCH_MOST = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="checkpoints and encoded pictures; the same folder again resumes")
    parser.add_argument("--out", type=Path, help="pipeline directory to write when done")
    parser.add_argument("--stage", choices=("vae", "unet", "all"), default="all")
    parser.add_argument("--steps", type=int, help="budget of each stage in steps")
    parser.add_argument("--minutes", type=float, help="budget of each stage in minutes of wall time")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    if options.stage in ("vae", "all"):
        train_vae(options.work, Budget(options.steps or VAE_STEPS, options.minutes), options.seed)
    if options.stage in ("unet", "all"):
        train_unet(options.work, Budget(options.steps or UNET_STEPS, options.minutes), options.seed)
    if options.out:
        export(options.work, options.out)


def pixels_of(scenes: list[Scene], width: int, height: int) -> torch.Tensor:
    """(N, 3, height, width), -1 to 1."""
    stack = np.stack([np.asarray(render(scene, width, height)) for scene in scenes])
    return torch.from_numpy(stack).permute(0, 3, 1, 2).float() / 127.5 - 1.0


def train_vae(work: Path, budget: Budget, seed: int) -> None:
    """The encoder learns the fixed latents, the decoder to draw from them, with some of the noise that a UNet leaves."""
    vae = image_model.build_vae().train()
    optimizer = torch.optim.AdamW(vae.parameters(), lr=VAE_PEAK_RATE, betas=(0.9, 0.99), weight_decay=1e-4)
    run = Run("vae", work / "vae.pt", budget, {"model": vae, "optimizer": optimizer})
    for step in run:
        rng = random.Random(f"{seed}:{step}")
        torch.manual_seed(rng.getrandbits(32))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(VAE_PEAK_RATE, run.fraction)
        pictures = _vae_batch(rng)
        wanted = latents_of(pictures)
        noise = VAE_NOISE * torch.rand(len(wanted), 1, 1, 1) * torch.randn_like(wanted)
        restored = vae.decode(wanted + noise).sample
        loss = F.l1_loss(restored, pictures) + 0.5 * F.mse_loss(restored, pictures)
        loss = loss + F.mse_loss(vae.encode(pictures).latent_dist.mean, wanted)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        run.log(float(loss.detach()))


def _vae_batch(rng: random.Random) -> torch.Tensor:
    """Cut-outs train the convolutions at a quarter of the price; whole pictures teach the group norms their statistics."""
    whole = rng.random() < 0.3
    scenes = [training_scene(rng) for _ in range(4 if whole else 12)]
    if whole:
        return pixels_of(scenes, 128, 128)
    if rng.random() < 0.15:
        return pixels_of(scenes, 64, 64)
    x, y = 8 * rng.randrange(0, 8), 8 * rng.randrange(0, 8)
    return pixels_of(scenes, 128, 128)[:, :, y : y + 72, x : x + 72].contiguous()


def train_unet(work: Path, budget: Budget, seed: int) -> None:
    tokenizer = image_model.build_tokenizer(work / "tokenizer")
    text_encoder = image_model.build_text_encoder(tokenizer).train()
    unet = image_model.build_unet().train()
    models = torch.nn.ModuleDict({"unet": unet, "text_encoder": text_encoder})
    average = Average(models, decay=0.995)
    optimizer = torch.optim.AdamW(models.parameters(), lr=UNET_PEAK_RATE, betas=(0.9, 0.99), weight_decay=1e-3)
    run = Run("unet", work / "unet.pt", budget, {"models": models, "average": average, "optimizer": optimizer})
    signal, noise = _schedule()
    for step in run:
        rng = random.Random(f"{seed}:{step}")
        torch.manual_seed(rng.getrandbits(32))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(UNET_PEAK_RATE, run.fraction)
        latents, prompts = _unet_batch(rng)
        loss = _v_loss(unet, text_encoder, tokenizer, latents, prompts, signal, noise)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(models.parameters(), 1.0)
        optimizer.step()
        average.update()
        run.log(float(loss.detach()))


def _unet_batch(rng: random.Random) -> tuple[torch.Tensor, list[str]]:
    width, height = rng.choices(list(_SIZES), list(_SIZES.values()))[0]
    count = min(_BATCH_MOST, _BATCH_LATENTS * image_model.LATENT_FACTOR**2 // (width * height))
    scenes = [training_scene(rng, PAIRS_SHARE) for _ in range(count)]
    prompts = ["" if rng.random() < EMPTY_PROMPT_SHARE else caption(scene, rng) for scene in scenes]
    return latents_of(pixels_of(scenes, width, height)), prompts


def _schedule() -> tuple[torch.Tensor, torch.Tensor]:
    """Share of signal and of noise at each of the scheduler's timesteps."""
    kept = image_model.build_scheduler().alphas_cumprod
    return kept.sqrt(), (1.0 - kept).sqrt()


def _v_loss(
    unet: Any, text_encoder: Any, tokenizer: Any, latents: torch.Tensor, prompts: list[str], signal: torch.Tensor, noise: torch.Tensor
) -> torch.Tensor:
    count = len(prompts)
    spread = (torch.arange(count) + torch.rand(count)) / count
    timesteps = (1000 * spread**NOISY_SHARE).long().clamp(max=999)[torch.randperm(count)]
    a, b = (values[timesteps].view(-1, 1, 1, 1) for values in (signal, noise))
    drawn = torch.randn_like(latents)
    ids = tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    predicted = unet(a * latents + b * drawn, timesteps, text_encoder(ids)[0]).sample
    return F.mse_loss(predicted, a * drawn - b * latents)


def _trained_vae(work: Path) -> Any:
    """Its latents hardly vary for one picture: the half of the encoder's output that says how much is set to next to nothing."""
    vae = image_model.build_vae()
    vae.load_state_dict(torch.load(work / "vae.pt", weights_only=True)["parts"]["model"])
    with torch.no_grad():
        vae.quant_conv.weight[CHANNELS:] = 0.0
        vae.quant_conv.bias[CHANNELS:] = LOG_VARIANCE
    return vae.eval()


def export(work: Path, out: Path) -> None:
    """Write the pipeline directory from the checkpoints, the averaged weights where there are some."""
    tokenizer = image_model.build_tokenizer(work / "tokenizer")
    models = torch.nn.ModuleDict({"unet": image_model.build_unet(), "text_encoder": image_model.build_text_encoder(tokenizer)})
    models.load_state_dict(torch.load(work / "unet.pt", weights_only=True)["parts"]["average"]["values"])
    pipeline = image_model.assemble(tokenizer, models["text_encoder"], _trained_vae(work), models["unet"])
    image_model.save_pipeline(pipeline, out)
    print(f"wrote {out}", flush=True)


if __name__ == "__main__":
    main()
