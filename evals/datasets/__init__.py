"""The datasets by name; each loader gives the same records."""

from collections.abc import Callable
from pathlib import Path

from evals.config import ConfigError
from evals.datasets.nq import load_nq
from evals.datasets.world import WorldConfig
from evals.datasets.world_questions import load_world
from evals.records import Dataset

# More questions than a run asks: which ones a run gets does not depend on how many it wants.
WORLD_QUESTIONS = 2000


def _load_world(path: Path | None, seed: int) -> Dataset:
    if path is not None:
        raise ConfigError("--data: the world is generated and reads no files; leave it out")
    return load_world(WorldConfig(seed=seed, num_questions=WORLD_QUESTIONS))


def _load_nq(path: Path | None, seed: int) -> Dataset:
    if path is None:
        raise ConfigError("--data: nq needs the directory of its files")
    return load_nq(path, seed)


LOADERS: dict[str, Callable[[Path | None, int], Dataset]] = {"world": _load_world, "nq": _load_nq}


def load_dataset(name: str, *, path: Path | None, seed: int) -> Dataset:
    """A dataset with its questions in an order drawn from the seed.

    Raises:
        ConfigError: there is no such dataset, or its files are not there.
    """
    if name not in LOADERS:
        raise ConfigError(f"--dataset {name!r} is not known; there are: {', '.join(LOADERS)}")
    return LOADERS[name](path, seed)
