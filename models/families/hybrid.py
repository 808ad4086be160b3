"""What the hybrid families share: which layer has which mixer, the fields of Mamba-2, the names of their tensors."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from models.config import Mamba2Spec
from models.families.fields import num_layers, number, positive, size

# What attention's parameters begin with; all others of a mixer are those of the recurrent one.
_ATTENTION = re.compile(r"([qkvo]_proj|gate_proj|[qk]_norm)\.")
LAYER_KINDS = {
    "attention": "attention",
    "full_attention": "attention",
    "mamba": "recurrent",
    "mamba2": "recurrent",
    "linear_attention": "recurrent",
}


def layer_kinds(raw: Mapping[str, Any], fields: Sequence[str], default: Callable[[int], bool]) -> list[bool]:
    """Which layers attend: those that the first of `fields` there is says, else those whose number `default` picks.

    Raises:
        ValueError: a kind is unknown, or their number is wrong.
    """
    count = num_layers(raw)
    for field in fields:
        kinds = raw.get(field)
        if kinds is None:
            continue
        if not isinstance(kinds, list) or len(kinds) != count:
            raise ValueError(f"{field} must name {count} layers, as num_hidden_layers says")
        if wrong := sorted({str(kind) for kind in kinds} - set(LAYER_KINDS)):
            raise ValueError(f"{field}: {', '.join(wrong)}: none of {', '.join(LAYER_KINDS)}")
        return [LAYER_KINDS[kind] == "attention" for kind in kinds]
    return [default(index) for index in range(count)]


def read_mamba2(raw: Mapping[str, Any], inner_size: int | None = None, **options: Any) -> Mamba2Spec:
    """The `mamba_*` fields; `inner_size` where it is not that of `mamba_expand`, `options` are further fields.

    Raises:
        ValueError: the heads do not make up the inner size.
    """
    if inner_size is None:
        inner_size = size(raw, "mamba_expand", 2) * size(raw, "hidden_size")
    num_heads = size(raw, "mamba_n_heads")
    automatic = raw.get("mamba_d_head", "auto") == "auto"
    head_dim = inner_size // num_heads if automatic else size(raw, "mamba_d_head")
    if num_heads * head_dim != inner_size:
        raise ValueError(f"mamba_n_heads * mamba_d_head = {num_heads} * {head_dim} must be {inner_size}")
    low, high = raw.get("time_step_limit") or (0.0, float("inf"))
    proj_bias = bool(raw.get("mamba_proj_bias", False))
    options.setdefault("out_bias", proj_bias)
    return Mamba2Spec(
        num_heads=num_heads,
        head_dim=head_dim,
        state_size=size(raw, "mamba_d_state"),
        num_groups=size(raw, "mamba_n_groups", 1),
        conv_kernel=size(raw, "mamba_d_conv", 4),
        conv_bias=bool(raw.get("mamba_conv_bias", True)),
        proj_bias=proj_bias,
        chunk_size=size(raw, "mamba_chunk_size", 256),
        norm_eps=positive(raw["rms_norm_eps"], "rms_norm_eps"),
        time_step_limit=(number(low), number(high)),
        **options,
    )


def mixer_name(leaf: str, recurrent: str) -> str:
    """`q_proj.weight` -> `self_attn.q_proj.weight`; `conv_weight` -> `mamba.conv1d.weight`."""
    if _ATTENTION.match(leaf):
        return f"self_attn.{leaf}"
    return f"{recurrent}." + leaf.replace("conv_", "conv1d.")


def tensor_names(
    renamed: Mapping[str, str], rename_mlp: Callable[[str], str] | None = None, *, recurrent: str = "mamba"
) -> Callable[[str], str]:
    """How our parameters are called in a checkpoint of Llama's layout with two kinds of mixers.

    Args:
        renamed: our beginnings of names outside of mixers and MLPs -> the checkpoint's. rename_mlp: what stands behind
            `mlp.` -> the whole rest of the name; by default as it is. recurrent: the recurrent mixer's name.
    """
    whole = {"embedding.": "model.embed_tokens.", "norm.": "model.norm.", "head.": "lm_head.", **renamed}

    def tensor_name(parameter: str) -> str:
        found = re.match(r"layers\.\d+\.", parameter)
        layer = found.group() if found else ""
        part, _, leaf = parameter[len(layer) :].partition(".")
        if part == "mixer":
            rest = mixer_name(re.sub(r"^(attention|recurrent)\.", "", leaf), recurrent)
        elif part == "mlp" and rename_mlp is not None:
            rest = rename_mlp(leaf)
        else:
            rest = whole.get(f"{part}.", f"{part}.") + leaf
        return (f"model.{layer}" if layer else "") + rest

    return tensor_name
