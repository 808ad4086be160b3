"""The checkpoints that ship with the package: small, trained by scripts/train_embedded.py."""

from pathlib import Path

from models.errors import ModelError

PREFIX = "embedded:"
EMBEDDED: tuple[str, ...] = ("embedded:transformer", "embedded:mamba")


def embedded_directory(name: str) -> Path:
    """The directory of an embedded checkpoint, e.g. of `embedded:mamba`.

    Raises:
        ModelError: there is no embedded model of that name.
    """
    if name not in EMBEDDED:
        raise ModelError(f"there is no embedded model {name!r}; there are: {', '.join(EMBEDDED)}")
    return Path(__file__).parent / name.removeprefix(PREFIX)
