"""Which of a checkpoint's files hold its weights. Without torch, for what only looks at checkpoints."""

import json
from collections.abc import Collection
from pathlib import Path

from models.errors import WeightsError

INDEX, WHOLE, SUFFIX = "model.safetensors.index.json", "model.safetensors", ".safetensors"


def weight_names(directory: Path, present: Collection[str]) -> list[str]:
    """What a checkpoint's index names, or model.safetensors, or else whatever is there.

    So a second copy in another layout, as `consolidated.safetensors`, is passed over.

    Args:
        present: names of all files, of which the index, if among them, lies in the directory.
    Raises:
        WeightsError: the index cannot be read.
    """
    if INDEX not in present:
        return [WHOLE] if WHOLE in present else sorted(name for name in present if name.endswith(SUFFIX))
    index = directory / INDEX
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        if wrong := [name for name in names if not isinstance(name, str)]:
            raise TypeError(f"{wrong[0]!r} is no file name")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(f"{index} is not a shard index: {error!r}") from error
    return sorted(names)
