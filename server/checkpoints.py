"""From an argument of the command line to a checkpoint: where it lies, and what is known of it without its weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from models.config import ModelConfig
from models.embedded import PREFIX, embedded_directory
from models.errors import ModelError
from models.families import read_config
from server.config import ConfigError
from server.generation_config import GenerationConfig, read_generation_config
from server.hub import HubModel, Snapshot, fetch_weights, open_snapshot, parse_hub_model
from server.tokenizer import ModelTokenizer

FORMS = "embedded:NAME, a directory, ORG/NAME of the Hugging Face Hub, or NAME= before one of these two"


@dataclass(frozen=True, slots=True)
class CheckpointOptions:
    """`revision`: branch, tag or commit of the models from the Hub that name none. `use_generation_config`: whether
    generation_config.json gives the sampling defaults.
    """

    revision: str | None = None
    use_generation_config: bool = True


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model before its engine. `snapshot`: its part of the Hub's cache, whose weights may not be there yet."""

    argument: str
    directory: Path
    snapshot: Snapshot | None
    config: ModelConfig
    tokenizer: ModelTokenizer
    generation: GenerationConfig


def resolve_models(arguments: Sequence[str], options: CheckpointOptions) -> dict[str, tuple[str, Path | HubModel]]:
    """Each argument with the place that it means, by served name.

    Raises:
        ConfigError: one of them means nothing, two would bear the same name, or no model is of the revision.
    """
    places: dict[str, tuple[str, Path | HubModel]] = {}
    for argument in arguments:
        name, place = resolve_model(argument, options.revision)
        if name in places:
            raise ConfigError(f"MODEL {argument!r}: {name!r} is served already; tell them apart with NAME=")
        places[name] = argument, place
    revisions = {place.revision for _, place in places.values() if isinstance(place, HubModel)}
    if options.revision is not None and options.revision not in revisions:
        raise ConfigError(f"--revision {options.revision}: no MODEL is taken from the Hub at it")
    return places


def resolve_model(argument: str, revision: str | None = None) -> tuple[str, Path | HubModel]:
    """The served name of a model, and its directory or its place in the Hub.

    `embedded:NAME`; a directory, which is served under its own name and may have a '=' in its path; where there is no
    such directory, ORG/NAME or ORG/NAME@REVISION of the Hub, served as ORG/NAME; or NAME= before one of these two.

    Args:
        revision: for ORG/NAME alone; None for the branch `main`.
    Raises:
        ConfigError: it is none of these.
    """
    try:
        if argument.startswith(PREFIX):
            return argument, embedded_directory(argument)
        place = _place(argument, revision)
        if place is not None:
            return place.repository if isinstance(place, HubModel) else place.name, place
        name, separator, rest = argument.partition("=")
        if not separator or argument.startswith(("/", ".", "~")):
            raise ConfigError(_no_model(argument))
        if not name or not rest:
            raise ConfigError(f"the {'place after' if name else 'name before'} '=' is empty")
        place = _place(rest, revision)
        if place is None:
            raise ConfigError(_no_model(rest))
    except (ConfigError, ModelError) as error:
        raise ConfigError(f"MODEL {argument!r}: {error}") from error
    return name, place


def _place(text: str, revision: str | None) -> Path | HubModel | None:
    directory = _directory(text)
    if directory.is_dir():
        return directory
    return None if directory.exists() else parse_hub_model(text, revision)


def _directory(text: str) -> Path:
    return Path(text).expanduser().resolve()


def _no_model(text: str) -> str:
    directory = _directory(text)
    fault = f"{directory} is a file" if directory.exists() else f"there is no directory {directory}"
    return f"{fault}; give {FORMS}"


def open_checkpoint(argument: str, place: Path | HubModel, options: CheckpointOptions) -> Checkpoint:
    """Read, or fetch and read, everything but the weights.

    Raises:
        ConfigError: the model is not there, or cannot be served.
    """
    snapshot: Snapshot | None = None
    try:
        if isinstance(place, HubModel):
            snapshot = open_snapshot(place)
            directory = snapshot.directory
        else:
            directory = place
        generation = read_generation_config(directory) if options.use_generation_config else GenerationConfig()
        return Checkpoint(argument, directory, snapshot, read_config(directory), ModelTokenizer(directory), generation)
    except (ConfigError, ModelError, OSError) as error:
        raise ConfigError(f"MODEL {argument!r}: {error}{_beside(place)}") from error


def complete(checkpoint: Checkpoint) -> None:
    """Fetch the weights that are not on this machine yet.

    Raises:
        ConfigError: that fails.
    """
    if checkpoint.snapshot is None:
        return
    try:
        fetch_weights(checkpoint.snapshot)
    except ConfigError as error:
        raise ConfigError(f"MODEL {checkpoint.argument!r}: {error}") from error


def _beside(place: Path | HubModel) -> str:
    """For those who meant a directory."""
    if isinstance(place, HubModel) and not (directory := _directory(place.repository)).exists():
        return f" (nor is there a directory {directory})"
    return ""
