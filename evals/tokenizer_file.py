"""A tokenizer on this machine, to count by where no endpoint does."""

from pathlib import Path

from tokenizers import Tokenizer

from evals.config import ConfigError

FILE_NAME = "tokenizer.json"


def find_tokenizer(name: str) -> Path | None:
    """The file of that name, or in a directory of that name."""
    path = Path(name).expanduser()
    return next((file for file in (path, path / FILE_NAME) if file.is_file()), None)


def open_tokenizer(option: str, name: str) -> Tokenizer:
    """Args:
        option: by which it was named.
    Raises:
        ConfigError: there is none, or it cannot be read.
    """
    file = find_tokenizer(name)
    if file is None:
        raise ConfigError(f"{option}: {name} is no {FILE_NAME}, nor has it one")
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:
        # tokenizers has no class of its own for what it cannot read.
        raise ConfigError(f"{option}: {file} cannot be read: {error}") from error
