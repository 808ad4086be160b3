"""A run once more, as its store says that it was: the same questions, documents and settings, into another store."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evals.config import ConfigError, RunConfig
from evals.datasets import load_dataset
from evals.keys import SampleKey, key_of
from evals.manifest import Origin, read_config
from evals.records import Dataset, SampleRow
from evals.retrieval.index_files import default_cache
from evals.store import FILE_NAME, Store


@dataclass(frozen=True, slots=True)
class Repeat:
    """One session to be asked again. name: of the dataset. earlier: the settings that decided the samples."""

    config: RunConfig
    name: str
    origin: Origin
    digest: str
    earlier: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Changed:
    """A sample whose verdict is another one now."""

    key: SampleKey
    before: str
    now: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """Samples of both stores, and how many have the same answer, verdict and documents; then those of one only."""

    both: int
    same_answers: int
    same_verdicts: int
    same_documents: int
    only_before: int
    only_now: int
    changed: tuple[Changed, ...]


def repeats_of(
    directory: Path, out: Path, *, endpoint: str | None, data: Path | None, api_key: str | None
) -> list[Repeat]:
    """What the runs of a store were told, each once; that they were stopped or went on is not repeated.

    Raises:
        ConfigError: there is no store, it does not say all of its runs, or a newer Fathom wrote it.
    """
    if not (directory / FILE_NAME).is_file():
        raise ConfigError(f"{directory} has no {FILE_NAME}; it is not the --out of a run")
    with Store(directory) as store:
        manifests, settings = store.manifests(), store.settings()
    changes: dict[str, Any] = {"out": out, "index_cache": default_cache(), "api_key": api_key}
    if endpoint is not None:
        changes["endpoint"] = endpoint
    repeats: list[Repeat] = []
    for (model, name), earlier in settings.items():
        for session in manifests.get((model, name), {"sessions": ()})["sessions"]:
            repeat = _repeat(session, earlier, changes, data)
            if repeat is not None and repeat not in repeats:
                repeats.append(repeat)
        if not any(repeat.config.model == model and repeat.name == name for repeat in repeats):
            raise ConfigError(f"{directory}: nothing was noted of how {model} was asked on {name}, or by which options")
    if not repeats:
        raise ConfigError(f"{directory} has no runs")
    return repeats


def _repeat(
    session: Mapping[str, Any], earlier: Mapping[str, str], changes: Mapping[str, Any], data: Path | None
) -> Repeat | None:
    """None where nobody noted by which option the dataset was loaded."""
    noted = session["dataset"]
    if noted["option"] is None:
        return None
    place = data or (None if noted["data"] is None else Path(noted["data"]))
    return Repeat(
        config=read_config(session["config"], **changes),
        name=noted["name"],
        origin=Origin(noted["option"], place if noted["data"] is not None else None, noted.get("world")),
        digest=noted["digest"],
        earlier=earlier,
    )


def load_again(repeat: Repeat) -> Dataset:
    """The dataset that was asked then.

    Raises:
        ConfigError: it cannot be loaded, or is another one by now.
    """
    origin = repeat.origin
    dataset = load_dataset(origin.name, path=origin.data, seed=repeat.config.seed, world=origin.world)
    if dataset.digest != repeat.digest:
        raise ConfigError(
            f"the run cannot be repeated as it was: {repeat.name} had the digest {repeat.digest[:16]} then, "
            f"now it has {dataset.digest[:16]}"
        )
    return dataset


def compare_stores(before: Path, now: Path) -> Comparison:
    """Samples that were answered in both, one by one."""
    old, new = _answered(before), _answered(now)
    pairs = [(key, old[key], new[key]) for key in sorted(old.keys() & new.keys())]
    return Comparison(
        both=len(pairs),
        same_answers=sum(first.answer == second.answer for _, first, second in pairs),
        same_verdicts=sum(first.verdict == second.verdict for _, first, second in pairs),
        same_documents=sum(first.doc_ids == second.doc_ids for _, first, second in pairs),
        only_before=len(old.keys() - new.keys()),
        only_now=len(new.keys() - old.keys()),
        changed=tuple(
            Changed(key, first.verdict, second.verdict)
            for key, first, second in pairs
            if first.verdict != second.verdict
        ),
    )


def _answered(directory: Path) -> dict[SampleKey, SampleRow]:
    with Store(directory) as store:
        return {key_of(row): row for row in store.rows() if row.error is None}
