"""Reading fields that several families' config.json share."""

from collections.abc import Mapping
from typing import Any

from models.errors import UnsupportedModelError


def eos_token_ids(raw: Mapping[str, Any]) -> tuple[int, ...]:
    """`eos_token_id` as it occurs in the wild: absent, one id, or a list of ids."""
    value = raw.get("eos_token_id")
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list) else (int(value),)


def require(raw: Mapping[str, Any], field: str, allowed: tuple[Any, ...]) -> None:
    """Refuse a checkpoint that sets an option to a value that is not implemented (absent counts as allowed)."""
    if field in raw and raw[field] not in allowed:
        raise UnsupportedModelError(
            f"config.json: {field} = {raw[field]!r} is not supported; supported: {', '.join(map(repr, allowed))}"
        )


def rope_theta(raw: Mapping[str, Any]) -> float:
    """The rotary base, from `rope_parameters` or from the older `rope_theta` and `rope_scaling`."""
    parameters = raw.get("rope_parameters") or {}
    scaling = raw.get("rope_scaling") or {}
    for source in (parameters, scaling):
        kind = source.get("rope_type", source.get("type", "default"))
        if kind != "default":
            raise UnsupportedModelError(f"config.json: rope type {kind!r} is not supported; supported: 'default'")
    return float(parameters.get("rope_theta", raw.get("rope_theta", 10_000.0)))


def number(value: Any) -> float:
    """A JSON number; infinities are written as {"__float__": "Infinity"}, because JSON has none."""
    return float(value["__float__"] if isinstance(value, Mapping) else value)
