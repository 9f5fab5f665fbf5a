"""How vLLM lays out what it remembers: one pool of equal blocks, from which keys and values of tokens and states of sequences are taken.

Layers are put into groups of equal size; a block holds one page for each layer of a group. In a hybrid model the attention page is made as
large as a state, so that both fit the same block: that is why its blocks span hundreds of tokens. Pure.
Source: vLLM 0.32, platforms/interface.py `_align_hybrid_block_size`, v1/core/kv_cache_utils.py and v1/kv_cache_interface.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from local_models.shapes import FORMAT_BYTES, Shape

KERNEL_BLOCK, CPU_KERNEL_BLOCK = 16, 128  # tokens that the attention kernels take at least


@dataclass(frozen=True)
class CacheLayout:
    """Of one GPU. block_tokens: tokens in a block. state_blocks: blocks of a running sequence that do not depend on its length.

    kv_bytes: keys and values of one token. state_bytes: state of one sequence, as it is, without the pages' padding.
    """

    block_bytes: int
    block_tokens: int
    state_blocks: int
    token_groups: int
    kv_bytes: int
    state_bytes: int

    def blocks_for(self, tokens: int) -> int:
        """Blocks of one sequence of this length."""
        return self.state_blocks + self.token_groups * ceil(tokens / self.block_tokens)

    def tokens_in(self, blocks: int) -> int:
        """The longest sequence that fits into so many blocks; 0 when there is no room for its state."""
        return max(0, (blocks - self.state_blocks) // self.token_groups) * self.block_tokens


def cache_layout(
    shape: Shape,
    *,
    tensor_parallel: int,
    kv_format_bytes: int,
    format_bytes: int,
    prefix_caching: bool,
    drafts: int,
    kernel_block: int = KERNEL_BLOCK,
) -> CacheLayout:
    """format_bytes: of a number of the model as it runs. drafts: tokens that speculative decoding guesses ahead, 0 without it."""
    attention_layers = shape.attention_layers + (shape.mtp_layers or 1 if drafts else 0)
    # more GPUs than heads: each has one head, so some have the same
    token_page = 2 * max(1, shape.kv_heads // tensor_parallel) * shape.head_dim * kv_format_bytes
    state = _state_bytes(shape, tensor_parallel, format_bytes, drafts)
    if not state:
        size = attention_layers * token_page
        return CacheLayout(size * kernel_block, kernel_block, 0, 1, size, 0)
    block_tokens = kernel_block * ceil(state / (kernel_block * token_page))
    group = _group_size(attention_layers, shape.linear_layers)
    # with prefix caching a sequence has the state it computes and the one of its last whole block
    states = (2 if prefix_caching else 1) + drafts
    return CacheLayout(
        block_bytes=group * block_tokens * token_page,
        block_tokens=block_tokens,
        state_blocks=ceil(shape.linear_layers / group) * states,
        token_groups=ceil(attention_layers / group),
        kv_bytes=attention_layers * token_page,
        state_bytes=shape.linear_layers * state,
    )


def _state_bytes(shape: Shape, tensor_parallel: int, format_bytes: int, drafts: int) -> int:
    """State of one sequence in one layer: the recurrent one and the last inputs of the convolution."""
    linear = shape.linear
    if linear is None:
        return 0
    channels = 2 * linear.key_heads * linear.key_dim + linear.value_heads * linear.value_dim
    recurrent = linear.value_heads * linear.value_dim * linear.key_dim * FORMAT_BYTES.get(linear.state_format or "", format_bytes)
    return (recurrent + channels * (linear.conv_kernel - 1 + drafts) * format_bytes) // tensor_parallel


def _group_size(attention_layers: int, linear_layers: int) -> int:
    few, many = sorted((attention_layers, linear_layers))
    return many if many < 1.5 * few else few
