"""The layout of the first Mamba and Mamba-2 checkpoints, whose config.json names no architecture."""

from collections.abc import Mapping
from typing import Any

from models.config import LayerSpec, Mamba1Spec, Mamba2Spec, ModelConfig
from models.families.fields import eos_token_ids, num_layers, number, refuse_unknown, require, size
from models.families.mamba import step_rank
from models.families.mamba2 import tensor_name as tensor_name_today

ARCHITECTURE = "MambaLMHeadModel"
NORM_EPS = 1e-5
HEAD_DIM, STATE_1, STATE_2, CHUNK = 64, 16, 128, 256  # what an `ssm_cfg` leaves out
_FIELDS_1 = frozenset({"layer", "d_state", "d_conv", "expand", "dt_rank", "conv_bias", "bias"})
_FIELDS_2 = _FIELDS_1 - {"dt_rank"} | {"headdim", "ngroups", "chunk_size", "dt_limit"}


def is_original(raw: Mapping[str, Any]) -> bool:
    """Whether a config.json is of this layout."""
    return "architectures" not in raw and "d_model" in raw and "ssm_cfg" in raw


def read_config(raw: Mapping[str, Any]) -> ModelConfig:
    """Mamba or Mamba-2, whichever `ssm_cfg` names."""
    require(raw, "rms_norm", (True,))
    require(raw, "attn_layer_idx", (None, []))
    require(raw, "d_intermediate", (None, 0))
    hidden_size, fields = size(raw, "d_model"), dict(raw["ssm_cfg"])
    require(fields, "layer", ("Mamba1", "Mamba2"))
    mixer = _mamba2(fields, hidden_size) if fields.get("layer") == "Mamba2" else _mamba1(fields, hidden_size)
    multiple = size(raw, "pad_vocab_size_multiple", 8)
    return ModelConfig(
        architecture=ARCHITECTURE,
        hidden_size=hidden_size,
        vocab_size=-(-size(raw, "vocab_size") // multiple) * multiple,
        layers=(LayerSpec(mixer, None),) * num_layers(raw, "n_layer"),
        norm_eps=NORM_EPS,
        tie_embeddings=bool(raw.get("tie_embeddings", True)),
        max_positions=None,
        eos_token_ids=eos_token_ids(raw),
        residual_in_float32=bool(raw.get("residual_in_fp32", False)),
    )


def _mamba1(fields: Mapping[str, Any], hidden_size: int) -> Mamba1Spec:
    refuse_unknown(fields, _FIELDS_1, "ssm_cfg of Mamba1")
    return Mamba1Spec(
        inner_size=size(fields, "expand", 2) * hidden_size,
        state_size=size(fields, "d_state", STATE_1),
        step_rank=step_rank(fields, "dt_rank", hidden_size),
        conv_kernel=size(fields, "d_conv", 4),
        conv_bias=bool(fields.get("conv_bias", True)),
        proj_bias=bool(fields.get("bias", False)),
    )


def _mamba2(fields: Mapping[str, Any], hidden_size: int) -> Mamba2Spec:
    refuse_unknown(fields, _FIELDS_2, "ssm_cfg of Mamba2")
    inner_size, head_dim = size(fields, "expand", 2) * hidden_size, size(fields, "headdim", HEAD_DIM)
    if inner_size % head_dim:
        raise ValueError(f"ssm_cfg: expand * d_model = {inner_size} is no multiple of headdim = {head_dim}")
    low, high = fields.get("dt_limit") or (0.0, float("inf"))
    return Mamba2Spec(
        num_heads=inner_size // head_dim,
        head_dim=head_dim,
        state_size=size(fields, "d_state", STATE_2),
        num_groups=size(fields, "ngroups", 1),
        conv_kernel=size(fields, "d_conv", 4),
        conv_bias=bool(fields.get("conv_bias", True)),
        proj_bias=bool(fields.get("bias", False)),
        out_bias=bool(fields.get("bias", False)),
        chunk_size=size(fields, "chunk_size", CHUNK),
        norm_eps=NORM_EPS,
        time_step_limit=(number(low), number(high)),
    )


def tensor_name(parameter: str) -> str:
    """As in transformers' layout, but for the embedding."""
    return tensor_name_today(parameter).replace(".embeddings.", ".embedding.")
