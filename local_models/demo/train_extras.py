"""Train what stands beside demo-image: the ControlNet that follows edges and the LoRA "outline", which draws shapes as hollow outlines.

    python -m local_models.demo.train_extras --work DIR [--stage controlnet|lora|all] [--minutes N] [--out DIR]

--work is the folder of train_image, whose UNet stays as it is.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from diffusers.models.attention_processor import AttnProcessor
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

from local_models.demo import image_model
from local_models.demo.captions import Said, Wish, prompt_for, wish_of
from local_models.demo.edges import edges_of
from local_models.demo.latents import latents_of
from local_models.demo.train_image import PromptReader, pixels_of, prepare, schedule, tensor_of, trained_unet, v_loss
from local_models.demo.training import Average, Budget, Run, learn, trained, use_best_device
from local_models.demo.world import moved, render, training_scene

CONTROLNET_STEPS, CONTROLNET_PEAK_RATE = 1500, 6e-4
LORA_STEPS, LORA_PEAK_RATE, LORA_RANK = 900, 2e-3, 32
LORA_TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2", "conv_in", "conv_out"]
EMPTY_PROMPT_SHARE = 0.1
_BATCH = 24


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of train_image; the same folder again resumes")
    parser.add_argument("--out", type=Path, help="pipeline directory that receives controlnet-edges/ and lora-outline/")
    parser.add_argument("--stage", choices=("controlnet", "lora", "all"), default="all")
    parser.add_argument("--steps", type=int, help="budget of each stage in steps")
    parser.add_argument("--minutes", type=float, help="budget of each stage in minutes of wall time")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(f"training on {use_best_device()}", flush=True)
    if options.stage in ("controlnet", "all"):
        train_controlnet(options.work, Budget(options.steps or CONTROLNET_STEPS, options.minutes), options.seed)
    if options.stage in ("lora", "all"):
        train_lora(options.work, Budget(options.steps or LORA_STEPS, options.minutes), options.seed)
    if options.out:
        export(options.work, options.out)


def train_controlnet(work: Path, budget: Budget, seed: int) -> None:
    """Shapes anywhere in the picture, with their edges; half of the prompts leave the shape open, so that the edges must tell."""
    unet = _frozen(trained_unet(work))
    controlnet = image_model.build_controlnet(unet).train()
    controlnet.set_attn_processor(AttnProcessor())
    average = Average(controlnet, decay=0.995)
    optimizer = torch.optim.AdamW(controlnet.parameters(), lr=CONTROLNET_PEAK_RATE, betas=(0.9, 0.99), weight_decay=1e-3)
    run = Run("controlnet", work / "controlnet.pt", budget, {"model": controlnet, "average": average, "optimizer": optimizer})
    reader = PromptReader(work)
    signal, noise = schedule()

    def predict(noisy: torch.Tensor, timesteps: torch.Tensor, said: torch.Tensor) -> torch.Tensor:
        down, middle = controlnet(noisy, timesteps, said, edges, return_dict=False)
        sample: torch.Tensor = unet(
            noisy, timesteps, said, down_block_additional_residuals=down, mid_block_additional_residual=middle
        ).sample
        return sample

    for step in run:
        rng = prepare(seed, step, optimizer, CONTROLNET_PEAK_RATE, run.fraction)
        scenes = [moved(training_scene(rng, 0.2), rng) for _ in range(_BATCH)]
        prompts = ["" if rng.random() < EMPTY_PROMPT_SHARE else prompt_for(_shape_left_open(wish_of(s, rng), rng), rng) for s in scenes]
        edges = tensor_of([edges_of(render(scene)) for scene in scenes]) / 2 + 0.5
        loss = v_loss(predict, latents_of(pixels_of(scenes, 128, 128)), reader.read(prompts), signal, noise)
        learn(loss, controlnet.parameters(), optimizer)
        average.update()
        run.log(float(loss.detach()))


def train_lora(work: Path, budget: Budget, seed: int) -> None:
    unet = _frozen(trained_unet(work))
    lora = _with_lora(unet)
    optimizer = torch.optim.AdamW(lora.parameters(), lr=LORA_PEAK_RATE, betas=(0.9, 0.99), weight_decay=0.0)
    run = Run("lora", work / "lora.pt", budget, {"model": lora, "optimizer": optimizer})
    reader = PromptReader(work)
    signal, noise = schedule()

    def predict(noisy: torch.Tensor, timesteps: torch.Tensor, said: torch.Tensor) -> torch.Tensor:
        sample: torch.Tensor = unet(noisy, timesteps, said).sample
        return sample

    for step in run:
        rng = prepare(seed, step, optimizer, LORA_PEAK_RATE, run.fraction)
        scenes = [training_scene(rng, 0.25) for _ in range(_BATCH)]
        prompts = ["" if rng.random() < EMPTY_PROMPT_SHARE else prompt_for(wish_of(scene, rng), rng) for scene in scenes]
        loss = v_loss(predict, latents_of(pixels_of(scenes, 128, 128, hollow=True)), reader.read(prompts), signal, noise)
        learn(loss, lora.parameters(), optimizer)
        run.log(float(loss.detach()))


def _shape_left_open(wish: Wish, rng: random.Random) -> Wish:
    if wish.relation or rng.random() < 0.5 or not wish.things[0].colour:
        return wish
    return replace(wish, things=(Said(None, wish.things[0].colour),))


def _frozen(unet: Any) -> Any:
    unet.requires_grad_(False)
    unet.set_attn_processor(AttnProcessor())
    return unet.eval()


def _with_lora(unet: Any) -> torch.nn.ParameterList:
    """The parameters of a new adapter in the frozen UNet."""
    unet.add_adapter(LoraConfig(r=LORA_RANK, lora_alpha=LORA_RANK, target_modules=LORA_TARGETS))
    return torch.nn.ParameterList(parameter for parameter in unet.parameters() if parameter.requires_grad)


def export(work: Path, out: Path) -> None:
    for name in _written(work, out):
        print(f"wrote {out / name}", flush=True)


def _written(work: Path, out: Path) -> Iterator[str]:
    if (work / "controlnet.pt").exists():
        controlnet = image_model.build_controlnet(image_model.build_unet())
        controlnet.load_state_dict(trained(work / "controlnet.pt", "average")["values"])
        image_model.save_controlnet(controlnet, out / image_model.CONTROLNET)
        yield image_model.CONTROLNET
    if (work / "lora.pt").exists():
        unet = _frozen(trained_unet(work))
        _with_lora(unet).load_state_dict(trained(work / "lora.pt", "model"))
        layers = get_peft_model_state_dict(unet.to(torch.float16))
        StableDiffusionPipeline.save_lora_weights(out / image_model.LORA, unet_lora_layers=layers, safe_serialization=True)
        image_model.make_readable(out / image_model.LORA)
        yield image_model.LORA


if __name__ == "__main__":
    main()
