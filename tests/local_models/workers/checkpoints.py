"""Tiny checkpoints with random weights, built in seconds: the real architectures, tokenizer and files, nothing learnt."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

CHAT_TEMPLATE = """
{%- macro text_of(content) -%}
{%- if content is string %}{{ content }}{% else %}
{%- for part in content %}
{%- if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}
{%- endfor %}
{%- endif %}
{%- endmacro -%}
{%- if tools %}<|im_start|>system
Functions: {{ tools | tojson }}
Call one as <tool_call>
<function=name>
<parameter=key>
value
</parameter>
</function>
</tool_call><|im_end|>
{% endif %}
{%- for message in messages %}
{%- if message.role == 'system' and not loop.first %}{{ raise_exception('System message must be at the beginning.') }}{% endif -%}
<|im_start|>{{ message.role }}
{{ text_of(message.content) }}
{%- for call in message.tool_calls or [] %}
<tool_call>
<function={{ call.function.name }}>
{% for key, value in call.function.arguments | items %}<parameter={{ key }}>
{{ value }}
</parameter>
{% endfor %}</function>
</tool_call>
{%- endfor %}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is defined and enable_thinking is false %}<think>

</think>

{% else %}<think>
{% endif %}{% endif %}"""

SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
MARKS = ["<think>", "</think>", "<tool_call>", "</tool_call>"]
VOCABULARY = 400
CORPUS = [
    "the quick brown fox jumps over the lazy dog",
    "What can you do? I can chat and draw pictures.",
    "<function=name> <parameter=key>",
]


def build_tokenizer() -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=[], show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS * 4, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
    tokenizer.add_tokens([AddedToken(token, special=False) for token in MARKS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=CHAT_TEMPLATE, model_max_length=2048
    )


def text_config(tokenizer: Any) -> dict[str, Any]:
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "linear_key_head_dim": 32,
        "linear_value_head_dim": 32,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 2,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": [2, 1, 1],
            "mrope_interleaved": True,
            "partial_rotary_factor": 0.25,
        },
        "eos_token_id": tokenizer.convert_tokens_to_ids("<|im_end|>"),
    }


def build_chat_checkpoint(folder: Path) -> Path:
    """Qwen3.5 with a vision tower. It never ends an answer by itself: the end tokens have no chance."""
    from transformers import Qwen3_5Config, Qwen3_5ForConditionalGeneration
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    tokenizer = build_tokenizer()
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}
    vision = {"depth": 1, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "patch_size": 16, "out_hidden_size": 64}
    config = Qwen3_5Config(
        text_config=text_config(tokenizer),
        vision_config={**vision, "num_position_embeddings": 256, "spatial_merge_size": 2, "temporal_patch_size": 2},
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    network = Qwen3_5ForConditionalGeneration(config)
    _only_writes_text(network, tokenizer)
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    size = {"shortest_edge": 32 * 32, "longest_edge": 128 * 128}
    Qwen2VLImageProcessorPil(patch_size=16, merge_size=2, temporal_patch_size=2, size=size).save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps({"temperature": 1.0, "top_k": 20, "eos_token_id": [ids["<|im_end|>"]]}))
    return folder


def build_text_checkpoint(folder: Path) -> Path:
    """The same without a vision tower: a plain causal language model."""
    from transformers import Qwen3_5ForCausalLM, Qwen3_5TextConfig

    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    network = Qwen3_5ForCausalLM(Qwen3_5TextConfig(**text_config(tokenizer)))
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _only_writes_text(network: Any, tokenizer: Any) -> None:
    """Token embeddings (tied to the output) of zero for everything but printable ASCII: the network writes only that."""
    weights = network.get_input_embeddings().weight
    with torch.no_grad():
        for token_id in range(VOCABULARY):
            text = tokenizer.decode([token_id]) if token_id < len(tokenizer) else ""
            if not (text.isascii() and text.isprintable() and text) or text in (*SPECIAL_TOKENS, *MARKS):
                weights[token_id] = 0


def build_image_checkpoint(folder: Path) -> Path:
    """A StableDiffusionPipeline of 8x8 latents' making: CLIP text encoder, U-Net, VAE with a factor of 8."""
    from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    tokenizer_folder = folder / "tokenizer"
    tokenizer_folder.mkdir()
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (tokenizer_folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
    (tokenizer_folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer.from_pretrained(tokenizer_folder, model_max_length=77)
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokens),
            hidden_size=32,
            intermediate_size=37,
            num_hidden_layers=1,
            num_attention_heads=4,
            bos_token_id=tokens.index("<|startoftext|>"),
            eos_token_id=tokens.index("<|endoftext|>"),
        )
    )
    unet = UNet2DConditionModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        sample_size=8,
        in_channels=4,
        out_channels=4,
        norm_num_groups=4,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
    )
    vae = AutoencoderKL(
        block_out_channels=(4, 4, 8, 8),
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
    )
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DPMSolverMultistepScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


def main() -> None:
    folder = Path(sys.argv[1])
    build_chat_checkpoint(folder / "chat")
    build_text_checkpoint(folder / "text")
    build_image_checkpoint(folder / "image")


if __name__ == "__main__":
    main()
