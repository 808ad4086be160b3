"""gpt-oss: attention with sinks, every second layer over a window, and a mixture of clamped MLPs in every layer."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from models.config import ClampSpec, ExpertsSpec, LayerSpec, ModelConfig
from models.families.family import Layout
from models.families.fields import positive, size
from models.families.rope import read_rope
from models.families.transformer import (
    head_dim_of,
    llama_tensor_name,
    read_attention,
    read_experts,
    read_model,
    read_window,
    read_windows,
    scores_of,
)

DEFAULT_HEAD_DIM, DEFAULT_WINDOW, DEFAULT_THETA = 64, 128, 150_000.0
DEFAULT_ROPE = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}
DEFAULT_SLOPE, DEFAULT_LIMIT = 1.702, 7.0


def read_config(raw: Mapping[str, Any]) -> ModelConfig:
    head_dim = head_dim_of(raw, DEFAULT_HEAD_DIM)
    fields = raw.get("rope_scaling") or raw.get("rope_parameters") or DEFAULT_ROPE
    rope = read_rope(raw, head_dim, theta=DEFAULT_THETA, fields=fields)
    windows = read_windows(raw, read_window(raw, DEFAULT_WINDOW), lambda number: number % 2 == 0)
    experts = _read_experts(raw)
    layers = [
        LayerSpec(
            read_attention(raw, head_dim=head_dim, rope=rope.spec, biased=True, scores=scores, sinks=True), experts
        )
        for scores in scores_of(windows)
    ]
    return read_model(raw, "GptOssForCausalLM", layers, max_positions=rope.max_positions)


def _read_experts(raw: Mapping[str, Any]) -> ExpertsSpec:
    experts = read_experts(raw, intermediate_size=size(raw, "intermediate_size"), renormalise=True)
    clamp = ClampSpec(
        positive(raw.get("swiglu_alpha", DEFAULT_SLOPE), "swiglu_alpha"),
        positive(raw.get("swiglu_limit", DEFAULT_LIMIT), "swiglu_limit"),
    )
    return replace(
        experts,
        router=replace(experts.router, bias=True),
        expert=replace(experts.expert, clamp=clamp),
        expert_biases=True,
    )


_EXPERTS = (
    (r"experts\.(?:gate|up)_proj$", "experts.gate_up_proj"),
    (r"experts\.(?:gate|up)_bias$", "experts.gate_up_proj_bias"),
    (r"experts\.down_bias$", "experts.down_proj_bias"),
)


def tensor_name(parameter: str) -> str:
    """As in Llama's layout, but for the mixture: gate and up projections share one tensor."""
    found = re.fullmatch(r"(layers\.\d+\.mlp\.)(.*)", parameter)
    if found is None:
        return llama_tensor_name(parameter)
    leaf = found[2]
    for pattern, name in _EXPERTS:
        leaf = re.sub(pattern, name, leaf)
    return f"model.{found[1]}{leaf}"


def row_order(name: str, config: ModelConfig) -> list[int] | None:
    """Rows of gate and up projections, which lie by turns, in the order of the projections."""
    if ".experts.gate_up_proj" not in name:
        return None
    mlp = config.layers[0].mlp
    assert isinstance(mlp, ExpertsSpec)
    num_rows = 2 * mlp.expert.intermediate_size
    return [*range(0, num_rows, 2), *range(1, num_rows, 2)]


MATRICES = ("experts.gate_up_proj", "experts.down_proj")
# As transformers writes them, and as they are published.
LAYOUTS = (
    Layout(tensor_name, row_order, transposed=MATRICES),
    Layout(tensor_name, row_order, packed=MATRICES),
)
