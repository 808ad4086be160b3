"""SmolLM3: Llama's layers, every fourth of them without positions."""

from collections.abc import Mapping
from typing import Any

from models.config import LayerSpec, ModelConfig
from models.families.fields import num_layers, size
from models.families.rope import read_rope
from models.families.transformer import (
    head_dim_of,
    read_attention,
    read_mlp,
    read_model,
    read_window,
    read_windows,
    scores_of,
)

DEFAULT_THETA, DEFAULT_INTERVAL = 2_000_000.0, 4


def read_config(raw: Mapping[str, Any]) -> ModelConfig:
    head_dim = head_dim_of(raw)
    rope, mlp = read_rope(raw, head_dim, theta=DEFAULT_THETA), read_mlp(raw)
    count = num_layers(raw)
    interval = size(raw, "no_rope_layer_interval", DEFAULT_INTERVAL)
    rotated = raw.get("no_rope_layers") or [(number + 1) % interval != 0 for number in range(count)]
    if len(rotated) < count:
        raise ValueError(f"no_rope_layers names {len(rotated)} layers, num_hidden_layers is {count}")
    window = read_window(raw, used=bool(raw.get("use_sliding_window", False)))
    windows = read_windows(raw, window, lambda number: window is not None and not rotated[number])
    layers = [
        LayerSpec(read_attention(raw, head_dim=head_dim, rope=rope.spec if turns else None, scores=scores), mlp)
        for turns, scores in zip(rotated, scores_of(windows), strict=False)
    ]
    return read_model(raw, "SmolLM3ForCausalLM", layers, max_positions=rope.max_positions, tied=True)
