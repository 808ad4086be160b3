"""What the transformer families share: the fields of their config.json and the names of their tensors."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from models.config import AttentionSpec, ExpertsSpec, LayerSpec, MLPSpec, ModelConfig, RopeSpec, RouterSpec, ScoreSpec
from models.families.family import Layout
from models.families.fields import eos_token_ids, num_layers, positive, require, size

MAX_EXPERTS = 1 << 14
MAX_HEAD_DIM = 1 << 16  # a typing error must not fill the memory with frequencies
PRE_NORMS = {"mixer_norm.": "input_layernorm.", "mlp_norm.": "post_attention_layernorm."}
POST_NORMS = {"mixer_post_norm.": "post_attention_layernorm.", "mlp_post_norm.": "post_feedforward_layernorm."}
BOTH_NORMS = {"mixer_norm.": "input_layernorm.", "mlp_norm.": "pre_feedforward_layernorm.", **POST_NORMS}
_NAMES = {
    "embedding.": "model.embed_tokens.",
    "norm.": "model.norm.",
    "head.": "lm_head.",
    "mixer.": "self_attn.",
    "mlp.": "mlp.",
}


def head_dim_of(raw: Mapping[str, Any], default: int | None = None) -> int:
    """`head_dim`, else the family's own default, else the hidden size over the heads."""
    if default is None:
        default = size(raw, "hidden_size") // size(raw, "num_attention_heads")
    head_dim = size(raw, "head_dim", default)
    if not 0 < head_dim <= MAX_HEAD_DIM:
        raise ValueError(f"heads of {head_dim} entries are not between 1 and {MAX_HEAD_DIM}")
    return head_dim


def read_attention(
    raw: Mapping[str, Any],
    *,
    head_dim: int,
    rope: RopeSpec | None,
    qkv_bias: bool | None = None,
    biased: bool = False,
    grouped: bool = True,
    **options: Any,
) -> AttentionSpec:
    """Heads and biases; `options` are further fields of the spec.

    Args:
        qkv_bias: the family's own; without it `attention_bias` is for all projections, or `biased` where it is absent.
        grouped: whether a config.json must say how many key/value heads there are, and does not mean as many as
            queries.
    """
    require(raw, "attention_bias", (False, True) if qkv_bias is None else (False,))
    bias = bool(raw.get("attention_bias", biased))
    num_heads = size(raw, "num_attention_heads")
    if grouped and "num_key_value_heads" not in raw:
        raise KeyError("num_key_value_heads")
    num_kv_heads = size(raw, "num_key_value_heads", num_heads)
    if num_heads % num_kv_heads:
        raise ValueError(f"num_attention_heads = {num_heads} is no multiple of num_key_value_heads = {num_kv_heads}")
    return AttentionSpec(
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        rope=rope,
        qkv_bias=bias if qkv_bias is None else qkv_bias,
        out_bias=bias,
        **options,
    )


def read_mlp(raw: Mapping[str, Any]) -> MLPSpec:
    """The gated MLP with SiLU; `mlp_bias` where the family has it."""
    require(raw, "hidden_act", ("silu", "swish"))
    require(raw, "mlp_bias", (False, True))
    return MLPSpec(size(raw, "intermediate_size"), bias=bool(raw.get("mlp_bias", False)))


def read_experts(
    raw: Mapping[str, Any],
    *,
    intermediate_size: int,
    renormalise: bool,
    shared: MLPSpec | None = None,
    shared_gate: bool = False,
) -> ExpertsSpec:
    """A mixture of gated MLPs with SiLU. How many there are has two names, of which transformers writes either."""
    require(raw, "hidden_act", ("silu", "swish"))
    count = "num_experts" if "num_experts" in raw else "num_local_experts"
    num_experts, top_k = size(raw, count), size(raw, "num_experts_per_tok")
    if num_experts > MAX_EXPERTS:
        raise ValueError(f"{count} = {num_experts} is more than {MAX_EXPERTS}")
    if top_k > num_experts:
        raise ValueError(f"num_experts_per_tok = {top_k} is more than {count} = {num_experts}")
    return ExpertsSpec(RouterSpec(num_experts, top_k, renormalise), MLPSpec(intermediate_size), shared, shared_gate)


def read_window(raw: Mapping[str, Any], default: int | None = None, *, used: bool = True) -> int | None:
    """How many tokens a layer with a window sees; None where `sliding_window` is null, absent or not to be used."""
    if raw.get("sliding_window", default) is None or not used:
        return None
    return size(raw, "sliding_window", default)


def read_windows(raw: Mapping[str, Any], window: int | None, default: Callable[[int], bool]) -> list[int | None]:
    """Each layer's window: of those that `layer_types` calls sliding, else of those whose number `default` picks.

    Raises:
        ValueError: a layer type is unknown, their number is wrong, or a layer slides over a window that is not given.
    """
    count = num_layers(raw)
    types = raw.get("layer_types")
    if types is None:
        sliding = [default(number) for number in range(count)]
    elif len(types) != count:
        raise ValueError(f"layer_types names {len(types)} layers, num_hidden_layers is {count}")
    elif wrong := sorted(set(types) - {"sliding_attention", "full_attention"}):
        raise ValueError(f"layer_types: {wrong} is neither sliding_attention nor full_attention")
    else:
        sliding = [kind == "sliding_attention" for kind in types]
    if any(sliding) and (not isinstance(window, int) or window < 1):
        raise ValueError(f"some layers are sliding_attention, but sliding_window is {window!r}")
    return [window if slides else None for slides in sliding]


def scores_of(windows: Sequence[int | None], **options: Any) -> list[ScoreSpec]:
    return [ScoreSpec(window=window, **options) for window in windows]


def read_model(
    raw: Mapping[str, Any],
    architecture: str,
    layers: Sequence[LayerSpec],
    *,
    max_positions: int,
    tied: bool = False,
    **options: Any,
) -> ModelConfig:
    """The fields of the whole model; `tied` is what an absent `tie_word_embeddings` means, `options` are others."""
    return ModelConfig(
        architecture=architecture,
        hidden_size=size(raw, "hidden_size"),
        vocab_size=size(raw, "vocab_size"),
        layers=tuple(layers),
        norm_eps=positive(raw["rms_norm_eps"], "rms_norm_eps"),
        tie_embeddings=bool(raw.get("tie_word_embeddings", tied)),
        max_positions=max_positions,
        eos_token_ids=eos_token_ids(raw),
        **options,
    )


def expert_names(leaf: str) -> str:
    """`experts.up_proj` -> `experts.{expert}.up_proj.weight`, one tensor for each expert; `router.` -> `gate.`."""
    return re.sub(r"^experts\.(.*)$", r"experts.{expert}.\1.weight", leaf).replace("router.", "gate.")


def tensor_names(norms: Mapping[str, str]) -> Callable[[str], str]:
    """How our parameters are called in a checkpoint whose layers have these norms.

    `layers.3.mixer.q_proj.weight` -> `model.layers.3.self_attn.q_proj.weight`.
    """
    renamed = {**_NAMES, **norms}

    def tensor_name(parameter: str) -> str:
        layer = re.match(r"layers\.\d+\.", parameter)
        rest = parameter[layer.end() :] if layer else parameter
        part, _, leaf = rest.partition(".")
        if part == "mlp":
            leaf = expert_names(leaf)
        return (f"model.{layer.group()}" if layer else "") + renamed[f"{part}."] + leaf

    return tensor_name


llama_tensor_name = tensor_names(PRE_NORMS)


def with_stacked_experts(layout: Layout) -> tuple[Layout, ...]:
    """A layout with a tensor for each expert's matrix, and those with one for the matrices of all, either way round."""

    def tensor_name(parameter: str) -> str:
        name = layout.tensor_name(parameter)
        return re.sub(r"experts\.\{expert\}\.(?:(gate|up)|down)_proj\.weight$", _stacked, name)

    stacked = replace(layout, tensor_name=tensor_name)
    return layout, stacked, replace(stacked, transposed=("experts.gate_up_proj", "experts.down_proj"))


def _stacked(found: re.Match[str]) -> str:
    return "experts.gate_up_proj" if found[1] else "experts.down_proj"
