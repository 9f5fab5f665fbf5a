"""The architecture of the demo chat model: Qwen3.5 (hybrid layers and vision tower), small enough for a repository."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, Qwen2VLImageProcessorPil, Qwen3_5Config, Qwen3_5ForConditionalGeneration
from transformers.models.qwen3_5.configuration_qwen3_5 import Qwen3_5VisionConfig
from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5VisionModel

from local_models.demo.chat_tokenizer import IMAGE, PAD, TURN_END, VIDEO, VISION_END, VISION_START

CONTEXT_LENGTH = 2048
HIDDEN = 192
_FIRST_DECAY = (0.3, 0.05, 0.005)  # of each head's memory, per token
PATCH, MERGE = 16, 2
PICTURE_SIDE = 96
PICTURE_PIXELS = PICTURE_SIDE * PICTURE_SIDE
PICTURE_TOKENS = PICTURE_PIXELS // (PATCH * MERGE) ** 2


def build_config(tokenizer: Any) -> Any:
    """linear_*_head_dim: 32 would break vLLM's kernels, 64 does not."""
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in (IMAGE, VIDEO, VISION_START, VISION_END, TURN_END, PAD)}
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": HIDDEN,
        "intermediate_size": 3 * HIDDEN,
        "num_hidden_layers": 4,
        "layer_types": ["linear_attention", "full_attention", "linear_attention", "full_attention"],
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "linear_key_head_dim": 64,
        "linear_value_head_dim": 64,
        "linear_num_key_heads": 3,
        "linear_num_value_heads": 3,
        "max_position_embeddings": CONTEXT_LENGTH,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.5,
            "mrope_section": [6, 5, 5],
            "mrope_interleaved": True,
        },
        "tie_word_embeddings": True,
        "pad_token_id": ids[PAD],
        "eos_token_id": ids[TURN_END],
    }
    return Qwen3_5Config(
        text_config=text,
        vision_config=vision_config(),
        image_token_id=ids[IMAGE],
        video_token_id=ids[VIDEO],
        vision_start_token_id=ids[VISION_START],
        vision_end_token_id=ids[VISION_END],
        tie_word_embeddings=True,
    )


def vision_config() -> dict[str, Any]:
    return {
        "depth": 3,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_heads": 4,
        "patch_size": PATCH,
        "spatial_merge_size": MERGE,
        "temporal_patch_size": 2,
        "out_hidden_size": HIDDEN,
        "num_position_embeddings": 36,
    }


def build_model(tokenizer: Any, seed: int = 0) -> Any:
    """Untrained. Its linear attention remembers from the start: transformers' own first decay forgets a token within the next one."""
    torch.manual_seed(seed)
    model = Qwen3_5ForConditionalGeneration(build_config(tokenizer))
    decay = torch.tensor(_FIRST_DECAY)
    with torch.no_grad():
        for module in model.modules():
            if hasattr(module, "dt_bias"):
                module.A_log.zero_()
                module.dt_bias.copy_(torch.log(torch.expm1(decay)))
    return model


def build_visual(seed: int = 0) -> Any:
    """The vision tower alone. Its first weights are larger than transformers', which are meant for wider layers: it learns much sooner."""
    torch.manual_seed(seed)
    visual = Qwen3_5VisionModel._from_config(Qwen3_5VisionConfig(**vision_config()))
    for name, module in visual.named_modules():
        if isinstance(module, torch.nn.Linear):
            adds_to_stream = name.endswith(("proj", "fc2"))
            torch.nn.init.normal_(module.weight, std=(0.5 if adds_to_stream else 1.0) * module.in_features**-0.5)
        if isinstance(module, torch.nn.Embedding):
            torch.nn.init.normal_(module.weight, std=0.2)
    return visual


def build_image_processor() -> Any:
    """Brings any picture to about 96 x 96 pixels: 9 tokens for a square one."""
    return Qwen2VLImageProcessorPil(
        patch_size=PATCH,
        merge_size=MERGE,
        temporal_patch_size=2,
        size={"shortest_edge": PICTURE_PIXELS, "longest_edge": PICTURE_PIXELS},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )


def generation_config(tokenizer: Any) -> Any:
    return GenerationConfig(
        do_sample=True,
        temperature=0.3,
        top_p=0.8,
        top_k=20,
        eos_token_id=[tokenizer.convert_tokens_to_ids(TURN_END), tokenizer.convert_tokens_to_ids(PAD)],
        pad_token_id=tokenizer.convert_tokens_to_ids(PAD),
    )


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write the directory in half precision, with the processor files that transformers and vLLM look for."""
    model.generation_config = generation_config(tokenizer)
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for file in folder.glob("*.safetensors"):
        file.chmod(0o644)
    image = build_image_processor().to_dict() | {"image_processor_type": "Qwen2VLImageProcessorFast", "processor_class": "Qwen3VLProcessor"}
    video = {key: value for key, value in image.items() if key != "image_processor_type"} | {
        "video_processor_type": "Qwen3VLVideoProcessor"
    }
    _write(folder / "preprocessor_config.json", image)
    _write(folder / "video_preprocessor_config.json", video)


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True, default=str) + "\n", encoding="utf-8")
