"""Train demo-image: the autoencoder on rendered scenes, the UNet together with its text encoder, then the decoder once more.

    python -m local_models.demo.train_image --work DIR [--stage vae|unet|decoder|all] [--minutes N] [--out DIR]

Held-out scenes (`world.is_held_out`) are never drawn here; evaluate.py draws nothing else.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from local_models.demo import image_model
from local_models.demo.captions import caption
from local_models.demo.training import Average, Budget, Run, learning_rate
from local_models.demo.world import Scene, render, training_scene

VAE_STEPS, VAE_PEAK_RATE = 2400, 2e-3
UNET_STEPS, UNET_PEAK_RATE = 3000, 8e-4
DECODER_STEPS, DECODER_PEAK_RATE, DECODER_NOISE = 1500, 1e-3, 0.1
EMPTY_PROMPT_SHARE = 0.1
PAIR_WEIGHT = 0.4
NOISY_SHARE = 0.65  # below 1: more of the noisy timesteps, where the shape is decided
SMALL_FIRST_SHARE = 0.42  # words are learnt on small pictures, at a quarter of the price

POOLS: dict[tuple[int, int], int] = {
    (128, 128): 6000,
    (64, 64): 1200,
    (96, 96): 400,
    (128, 96): 120,
    (96, 128): 120,
    (192, 192): 100,
    (256, 256): 30,
}
_SMALL_FIRST = {(64, 64): 0.85, (96, 96): 0.05, (128, 128): 0.1}
_NATIVE_MOSTLY = {(128, 128): 0.86, (64, 64): 0.03, (96, 96): 0.04, (128, 96): 0.02, (96, 128): 0.02, (192, 192): 0.02, (256, 256): 0.01}
_BATCH_LATENTS = 32 * 16 * 16
_BATCH_MOST = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="checkpoints and encoded pictures; the same folder again resumes")
    parser.add_argument("--out", type=Path, help="pipeline directory to write when done")
    parser.add_argument("--stage", choices=("vae", "unet", "decoder", "all"), default="all")
    parser.add_argument("--steps", type=int, help="budget of each stage in steps")
    parser.add_argument("--minutes", type=float, help="budget of each stage in minutes of wall time")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    if options.stage in ("vae", "all"):
        train_vae(options.work, Budget(options.steps or VAE_STEPS, options.minutes), options.seed)
    if options.stage in ("unet", "all"):
        train_unet(options.work, Budget(options.steps or UNET_STEPS, options.minutes), options.seed)
    if options.stage in ("decoder", "all"):
        train_decoder(options.work, Budget(options.steps or DECODER_STEPS, options.minutes), options.seed)
    if options.out:
        export(options.work, options.out)


def pixels_of(scenes: list[Scene], width: int, height: int) -> torch.Tensor:
    """(N, 3, height, width), -1 to 1."""
    stack = np.stack([np.asarray(render(scene, width, height)) for scene in scenes])
    return torch.from_numpy(stack).permute(0, 3, 1, 2).float() / 127.5 - 1.0


def train_vae(work: Path, budget: Budget, seed: int) -> None:
    vae = image_model.build_vae().train()
    optimizer = torch.optim.AdamW(vae.parameters(), lr=VAE_PEAK_RATE, betas=(0.9, 0.99), weight_decay=1e-4)
    run = Run("vae", work / "vae.pt", budget, {"model": vae, "optimizer": optimizer})
    for step in run:
        rng = random.Random(f"{seed}:{step}")
        torch.manual_seed(rng.getrandbits(32))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(VAE_PEAK_RATE, run.fraction)
        pictures = _vae_batch(rng, full=rng.random() < (0.06 if run.fraction < 0.85 else 0.5))
        latents = vae.encode(pictures).latent_dist
        restored = vae.decode(latents.sample()).sample
        loss = F.l1_loss(restored, pictures) + 0.5 * F.mse_loss(restored, pictures) + 1e-6 * latents.kl().mean()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        run.log(float(loss.detach()))
    _whiten(vae, seed)
    torch.save(vae.state_dict(), work / "vae-final.pt")


def _vae_batch(rng: random.Random, full: bool) -> torch.Tensor:
    """Cut-outs train the convolutions at a quarter of the price; whole pictures teach the group norms their statistics."""
    scenes = [training_scene(rng) for _ in range(4 if full else 16)]
    if full:
        return pixels_of(scenes, 128, 128)
    if rng.random() < 0.3:
        return pixels_of(scenes, 64, 64)
    x, y = rng.randrange(0, 65), rng.randrange(0, 65)
    return pixels_of(scenes, 128, 128)[:, :, y : y + 64, x : x + 64].contiguous()


@torch.no_grad()
def _whiten(vae: Any, seed: int) -> None:
    """Fold an affine map into the two 1x1 convolutions at the latents, so that these have mean 0 and unit covariance."""
    rng = random.Random(f"{seed}:whiten")
    pictures = pixels_of([training_scene(rng) for _ in range(256)], 128, 128)
    latents = torch.cat([vae.encode(batch).latent_dist.mean for batch in torch.split(pictures, 32)])
    rows = latents.permute(1, 0, 2, 3).flatten(1)
    mean = rows.mean(dim=1)
    values, vectors = torch.linalg.eigh(torch.cov(rows))
    whiten = vectors @ torch.diag(values.rsqrt()) @ vectors.T
    colour = vectors @ torch.diag(values.sqrt()) @ vectors.T
    channels = len(mean)
    encoder, decoder = vae.quant_conv, vae.post_quant_conv
    weight = encoder.weight[:, :, 0, 0]
    encoder.weight[:channels, :, 0, 0] = whiten @ weight[:channels]
    encoder.bias[:channels] = whiten @ (encoder.bias[:channels] - mean)
    encoder.weight[channels:] = 0.0
    encoder.bias[channels:] = -9.0  # log variance of the posterior: nearly none
    weight = decoder.weight[:, :, 0, 0].clone()
    decoder.bias += weight @ mean
    decoder.weight[:, :, 0, 0] = weight @ colour


def train_decoder(work: Path, budget: Budget, seed: int) -> None:
    """Sharpen the decoder alone, on latents with a little noise as the UNet leaves it. The UNet's work stays valid."""
    vae = _trained_vae(work).train()
    learnt = torch.nn.ModuleList([vae.decoder, vae.post_quant_conv])
    optimizer = torch.optim.AdamW(learnt.parameters(), lr=DECODER_PEAK_RATE, betas=(0.9, 0.99), weight_decay=1e-4)
    run = Run("decoder", work / "decoder.pt", budget, {"model": vae, "optimizer": optimizer})
    for step in run:
        rng = random.Random(f"{seed}:decoder:{step}")
        torch.manual_seed(rng.getrandbits(32))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(DECODER_PEAK_RATE, run.fraction)
        latents, pictures = _decoder_batch(vae, rng)
        noise = DECODER_NOISE * torch.rand(len(latents), 1, 1, 1) * torch.randn_like(latents)
        restored = vae.decode(latents + noise).sample
        loss = F.l1_loss(restored, pictures) + 0.5 * F.mse_loss(restored, pictures)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(learnt.parameters(), 1.0)
        optimizer.step()
        run.log(float(loss.detach()))
    torch.save(vae.state_dict(), work / "vae-final.pt")


def _decoder_batch(vae: Any, rng: random.Random) -> tuple[torch.Tensor, torch.Tensor]:
    """Whole pictures are encoded; of most, a window around the middle is decoded."""
    whole = rng.random() < 0.3
    pictures = pixels_of([training_scene(rng) for _ in range(4 if whole else 10)], 128, 128)
    with torch.no_grad():
        latents = vae.encode(pictures).latent_dist.mean
    if whole:
        return latents, pictures
    x, y, side = rng.randrange(0, 8), rng.randrange(0, 8), 9
    cut = slice(y * 8, (y + side) * 8), slice(x * 8, (x + side) * 8)
    return latents[:, :, y : y + side, x : x + side].contiguous(), pictures[:, :, cut[0], cut[1]].contiguous()


@dataclass(frozen=True)
class Pool:
    """Pictures of one size, already encoded: row i of latents is scene i."""

    scenes: list[Scene]
    latents: torch.Tensor

    def draw(self, count: int, rng: random.Random) -> list[int]:
        """Row numbers. Pairs come less often than they are here: single things, which are larger, teach the shapes."""
        weights = [PAIR_WEIGHT if scene.relation else 1.0 for scene in self.scenes]
        return rng.choices(range(len(self.scenes)), weights, k=count)


def encode_pools(vae: Any, work: Path, seed: int) -> dict[tuple[int, int], Pool]:
    """Encoding takes minutes, so the latents are kept in the work folder."""
    return {size: _encode_pool(vae, work / f"latents-{size[0]}x{size[1]}.pt", size, count, seed) for size, count in POOLS.items()}


@torch.no_grad()
def _encode_pool(vae: Any, kept: Path, size: tuple[int, int], count: int, seed: int) -> Pool:
    rng = random.Random(f"{seed}:{size}")
    scenes = [training_scene(rng) for _ in range(count)]
    if not kept.exists():
        parts = [vae.encode(pixels_of(scenes[i : i + 16], *size)).latent_dist.mean for i in range(0, count, 16)]
        torch.save(torch.cat(parts), kept)
        print(f"encoded {count} pictures of {size[0]}x{size[1]}", flush=True)
    return Pool(scenes, torch.load(kept, weights_only=True))


def train_unet(work: Path, budget: Budget, seed: int) -> None:
    vae = _trained_vae(work)
    tokenizer = image_model.build_tokenizer(work / "tokenizer")
    text_encoder = image_model.build_text_encoder(tokenizer).train()
    unet = image_model.build_unet().train()
    pools = encode_pools(vae, work, seed)
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
        latents, prompts = _unet_batch(pools, _SMALL_FIRST if run.fraction < SMALL_FIRST_SHARE else _NATIVE_MOSTLY, rng)
        loss = _v_loss(unet, text_encoder, tokenizer, latents, prompts, signal, noise)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(models.parameters(), 1.0)
        optimizer.step()
        average.update()
        run.log(float(loss.detach()))


def _unet_batch(
    pools: dict[tuple[int, int], Pool], mix: dict[tuple[int, int], float], rng: random.Random
) -> tuple[torch.Tensor, list[str]]:
    pool = pools[rng.choices(list(mix), list(mix.values()))[0]]
    size = min(_BATCH_MOST, _BATCH_LATENTS // (pool.latents.shape[2] * pool.latents.shape[3]))
    chosen = pool.draw(size, rng)
    prompts = ["" if rng.random() < EMPTY_PROMPT_SHARE else caption(pool.scenes[i], rng) for i in chosen]
    return pool.latents[chosen], prompts


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
    vae = image_model.build_vae()
    vae.load_state_dict(torch.load(work / "vae-final.pt", weights_only=True))
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
