"""Reading fields that several families' config.json share."""

import math
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from models.errors import UnsupportedModelError

MAX_LAYERS = 10_000
MAX_SIZE = 1 << 40
# Options that change what a model computes, in one family or another.
CONSEQUENTIAL = frozenset({
    "attention_bias", "attn_logit_softcapping", "clip_qkv", "final_logit_softcapping", "layer_types", "mlp_bias",
    "no_rope_layers", "num_experts", "num_local_experts", "partial_rotary_factor", "query_pre_attn_scalar",
    "rope_local_base_freq", "rope_parameters", "rope_scaling", "sliding_window",
    "use_bidirectional_attention",
})  # fmt: skip


class ReadFields(Mapping[str, Any]):
    """A config.json that remembers which of its fields were asked for."""

    def __init__(self, raw: Mapping[str, Any]) -> None:
        self._raw = raw
        self._asked: set[str] = set()

    def __getitem__(self, field: str) -> Any:
        self._asked.add(field)
        return self._raw[field]

    def __iter__(self) -> Iterator[str]:
        return iter(self._raw)

    def __len__(self) -> int:
        return len(self._raw)

    def refuse_ignored(self, architecture: str) -> None:
        """Refuse a checkpoint that sets an option for which its family did not ask."""
        ignored = sorted(field for field in CONSEQUENTIAL - self._asked if self._raw.get(field))
        if ignored:
            raise UnsupportedModelError(f"config.json: {', '.join(ignored)}: not supported for {architecture}")


def size(raw: Mapping[str, Any], field: str, default: int | None = None) -> int:
    """A field that counts something: a whole number from one to 2**40; `default` where it is absent or null."""
    value = raw[field] if default is None else raw.get(field)
    if value is None and default is not None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_SIZE:
        raise ValueError(f"{field} must be a whole number from 1 to 2**40, not {value!r}")
    return value


def num_layers(raw: Mapping[str, Any], field: str = "num_hidden_layers") -> int:
    """How many layers, within what anyone has built: a typing error must not fill the memory with them."""
    count = size(raw, field)
    if count > MAX_LAYERS:
        raise ValueError(f"{field} = {count} is more than {MAX_LAYERS}")
    return count


def positive(value: Any, name: str) -> float:
    """A number greater than zero and finite."""
    number = float(value)
    if not 0.0 < number < math.inf:
        raise ValueError(f"{name} must be a number greater than 0, not {value!r}")
    return number


def eos_token_ids(raw: Mapping[str, Any]) -> tuple[int, ...]:
    """`eos_token_id` as it occurs in the wild: absent, one id, or a list of ids."""
    value = raw.get("eos_token_id")
    if value is None:
        return ()
    tokens = value if isinstance(value, list) else [value]
    if not all(type(token) is int for token in tokens):
        raise ValueError(f"eos_token_id must be a token id or a list of some, not {value!r}")
    return tuple(tokens)


def require(raw: Mapping[str, Any], field: str, allowed: tuple[Any, ...]) -> None:
    """Refuse a checkpoint that sets an option to a value that is not implemented (absent counts as allowed)."""
    if field in raw and raw[field] not in allowed:
        raise UnsupportedModelError(
            f"config.json: {field} = {raw[field]!r} is not supported; supported: {', '.join(map(repr, allowed))}"
        )


def refuse_quantized(raw: Mapping[str, Any], supported: Collection[str]) -> None:
    """Refuse weights in a number format that is not read, wherever in a config.json it is named.

    Args:
        supported: values of `quant_method` that the family reads.
    """
    places = {"": raw, "text_config.": raw.get("text_config")}
    for place, fields in places.items():
        for name in ("quantization_config", "compression_config"):
            quantized = fields.get(name) if isinstance(fields, Mapping) else None
            method = quantized.get("quant_method") if isinstance(quantized, Mapping) else quantized
            if quantized and method not in supported:
                formats = ", ".join(map(repr, supported)) or "none for this architecture"
                raise UnsupportedModelError(
                    f"config.json: {place}{name}: quant_method = {method!r} is not supported; supported: {formats}. "
                    "Weights in float64, float32, float16 or bfloat16 are read: take a checkpoint that is not quantized"
                )


def refuse_unknown(fields: Mapping[str, Any], known: Collection[str], what: str) -> None:
    """Refuse an object inside a config.json that has fields whose meaning is not known."""
    if unknown := sorted(set(fields) - set(known)):
        raise UnsupportedModelError(f"config.json: {what} with {', '.join(unknown)} is not supported")


def number(value: Any) -> float:
    """A JSON number; infinities are written as {"__float__": "Infinity"}, because JSON has none."""
    return float(value["__float__"] if isinstance(value, Mapping) else value)
