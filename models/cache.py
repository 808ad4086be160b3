"""The memory that a decoder's layers write to: one entry per layer, of the kind that its mixer declares."""

from dataclasses import dataclass

import torch
from torch import Tensor

from models.config import AttentionSpec, ModelConfig


@dataclass(frozen=True, slots=True)
class KVCache:
    """Keys and values of one attention layer, each (num_blocks, block_size, num_kv_heads, head_dim)."""

    keys: Tensor
    values: Tensor


@dataclass(frozen=True, slots=True)
class StateCache:
    """Recurrent state of one Mamba layer, float32, one row per state slot.

    conv_state: (num_state_slots, conv_size, conv_kernel - 1), the last inputs of the convolution.
    ssm_state: (num_state_slots, *state_shape): (num_heads, head_dim, state_size) in Mamba-2, (inner_size, state_size)
    in Mamba-1.
    """

    conv_state: Tensor
    ssm_state: Tensor


LayerCache = KVCache | StateCache


def allocate_caches(
    config: ModelConfig,
    *,
    num_blocks: int,
    block_size: int,
    num_state_slots: int,
    dtype: torch.dtype,
    device: torch.device,
) -> list[LayerCache]:
    """Allocate every layer's cache. The sizes are exactly what the layers' `cache_needs` declare."""
    caches: list[LayerCache] = []
    for layer in config.layers:
        mixer = layer.mixer
        if isinstance(mixer, AttentionSpec):
            shape = (num_blocks, block_size, mixer.num_kv_heads, mixer.head_dim)
            keys, values = (torch.zeros(shape, dtype=dtype, device=device) for _ in range(2))
            caches.append(KVCache(keys, values))
        else:
            conv = (num_state_slots, mixer.conv_size, mixer.conv_kernel - 1)
            ssm = (num_state_slots, *mixer.state_shape)
            conv_state, ssm_state = (torch.zeros(s, dtype=torch.float32, device=device) for s in (conv, ssm))
            caches.append(StateCache(conv_state, ssm_state))
    return caches
