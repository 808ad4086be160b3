"""The datasets by name; each loader gives the same records."""

from collections.abc import Callable
from pathlib import Path

from evals.config import ConfigError
from evals.datasets.clapnq import load_clapnq
from evals.datasets.hotpot import load_hotpot
from evals.datasets.hub import SOURCES, load_hub
from evals.datasets.key_value import load_key_value
from evals.datasets.needle import load_needle
from evals.datasets.nq import load_nq
from evals.datasets.nq_open import load_efficientqa, load_nq_open
from evals.datasets.own import load_own
from evals.datasets.squad import load_squad
from evals.datasets.world import WorldConfig
from evals.datasets.world_dials import set_dials
from evals.datasets.world_questions import load_world
from evals.records import Dataset

# More questions than a run asks: which ones a run gets does not depend on how many it wants.
WORLD_QUESTIONS = 2000


def _world(seed: int, dials: str | None = None) -> Dataset:
    config = WorldConfig(seed=seed, num_questions=WORLD_QUESTIONS)
    return load_world(config if dials is None else set_dials(dials, config))


GENERATED: dict[str, Callable[[int], Dataset]] = {"world": _world, "needle": load_needle}
FROM_FILES: dict[str, Callable[[Path, int], Dataset]] = {
    "nq": load_nq,
    "squad2": load_squad,
    "clapnq": load_clapnq,
    "hotpotqa": load_hotpot,
    "nq_open": load_nq_open,
    "efficientqa": load_efficientqa,
    "key_value": load_key_value,
    "own": load_own,
}
NAMES = (*GENERATED, *SOURCES, *FROM_FILES)


def load_dataset(name: str, *, path: Path | None, seed: int, world: str | None = None) -> Dataset:
    """A dataset with its questions in an order drawn from the seed.

    world: dials of the dataset world, see evals/datasets/world_dials.py.

    Raises:
        ConfigError: there is no such dataset, its files are not there, or its dials cannot be set so.
    """
    if world is not None and name != "world":
        raise ConfigError(f"--world sets the dials of the dataset world; {name} has none")
    if name in GENERATED:
        if path is not None:
            raise ConfigError(f"--data: {name} is generated and reads no files; leave it out")
        if world is not None:
            return _world(seed, world)
        return GENERATED[name](seed)
    if name in SOURCES:
        return load_hub(name, path, seed)
    if name not in FROM_FILES:
        raise ConfigError(f"--dataset {name!r} is not known; there are: {', '.join(NAMES)}")
    if path is None:
        raise ConfigError(f"--data: {name} needs the directory of its files")
    return FROM_FILES[name](path, seed)
