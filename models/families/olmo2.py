"""OLMo-2: norms after the mixer and after the MLP instead of before, queries and keys normalised over all heads."""

from collections.abc import Mapping
from typing import Any

from models.config import LayerSpec, ModelConfig
from models.families.fields import num_layers, require
from models.families.rope import read_rope
from models.families.transformer import POST_NORMS, head_dim_of, read_attention, read_mlp, read_model, tensor_names


def read_config(raw: Mapping[str, Any]) -> ModelConfig:
    require(raw, "mlp_bias", (False,))
    head_dim = head_dim_of(raw)
    rope = read_rope(raw, head_dim)
    attention = read_attention(raw, head_dim=head_dim, rope=rope.spec, grouped=False, qk_norm="projection")
    layers = (LayerSpec(attention, read_mlp(raw), norms="post"),) * num_layers(raw)
    return read_model(raw, "Olmo2ForCausalLM", layers, max_positions=rope.max_positions)


tensor_name = tensor_names(POST_NORMS)
