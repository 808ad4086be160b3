"""What a task is told: by its YAML file which dataset and condition, by --metadata all else.

lm-eval hands --metadata and the model's arguments over in one mapping, so nobody can tell a misspelt setting from an
argument of some model. Ours therefore stand under one key of their own, where a name that is not known is refused.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evals.config import DEFAULT_BUDGETS, ConfigError, RunConfig
from evals.records import Condition
from evals.retrieval.index_files import default_cache
from evals.tokenizer_file import find_tokenizer

KEY = "fathom"
# Setting -> types that JSON may give it, and the field of RunConfig, if it is one.
SETTINGS: dict[str, tuple[tuple[type, ...], str | None]] = {
    "budgets": ((list,), "budgets"),
    "unit": ((str,), "unit"),
    "permission": ((str,), "permissions"),
    "order": ((str,), "order"),
    "depth": ((int, float, type(None)), "depth"),
    "retriever": ((str,), "retriever"),
    "retriever_model": ((str,), "retriever_model"),
    "seed": ((int,), "seed"),
    "n": ((int,), "num_questions"),
    "max_tokens": ((int,), "max_tokens"),
    "dataset": ((str,), None),
    "data": ((str,), None),
    "tokenizer": ((str,), None),
}
# A model has such arguments too: beside our key they are the model's.
ALSO_OF_MODELS = frozenset({"seed", "max_tokens", "tokenizer"})
# RunConfig wants an endpoint. Of a model that lm-eval runs by itself there is none, and nobody asks this one.
NO_ENDPOINT = "http://none.invalid"


@dataclass(frozen=True, slots=True)
class TaskSettings:
    """config: of the contexts; its one condition is the task's. tokenizer: which counts documents; None: the endpoint
    does, if there is one.
    """

    config: RunConfig
    dataset: str
    data: Path | None
    tokenizer: str | None

    @property
    def condition(self) -> Condition:
        return self.config.conditions[0]

    @property
    def budgets(self) -> tuple[int, ...]:
        return self.config.budgets_of(self.condition)

    @property
    def has_endpoint(self) -> bool:
        return self.config.endpoint != NO_ENDPOINT


def read_settings(metadata: Mapping[str, Any], fixed: Mapping[str, Any]) -> TaskSettings:
    """Args:
        metadata: as lm-eval hands it over, with the arguments of the model. fixed: the YAML file's.
    Raises:
        ConfigError: a setting is not known, or cannot be.
    """
    own = _own(metadata)
    defaults = fixed.get("defaults", {})
    if "dataset" in fixed and "dataset" in own:
        raise ConfigError(f"--metadata {KEY}.dataset: this task has its own, {fixed['dataset']}; leave it out")
    given = {**defaults, **own}
    dataset = given.get("dataset", fixed.get("dataset"))
    if dataset is None:
        raise ConfigError(f"--metadata {KEY}.dataset: this task needs the name of one")
    config = _run_config(given, fixed["condition"], metadata)
    data = Path(given["data"]).expanduser() if "data" in given else None
    settings = TaskSettings(config, dataset, data, _tokenizer_name(own, metadata))
    if not settings.budgets:
        raise ConfigError(f"--metadata {KEY}.budgets: {settings.condition} needs one above 0")
    return settings


def _own(metadata: Mapping[str, Any]) -> dict[str, Any]:
    astray = [name for name in SETTINGS if name in metadata and name not in ALSO_OF_MODELS]
    if astray:
        raise ConfigError(
            f'--metadata {astray[0]}: belongs under {KEY!r}, as in \'{{"{KEY}": {{"{astray[0]}": ...}}}}\''
        )
    own = metadata.get(KEY, {})
    if not isinstance(own, Mapping):
        raise ConfigError(f"--metadata {KEY} must be an object of settings, got {own!r}")
    for name, value in own.items():
        if name not in SETTINGS:
            raise ConfigError(f"--metadata {KEY}.{name} is not known; there are: {', '.join(SETTINGS)}")
        if not isinstance(value, SETTINGS[name][0]) or isinstance(value, bool):
            raise ConfigError(f"--metadata {KEY}.{name} cannot be {value!r}")
    if any(not isinstance(budget, int) or isinstance(budget, bool) for budget in own.get("budgets", [])):
        raise ConfigError(f"--metadata {KEY}.budgets must be whole numbers, got {own['budgets']!r}")
    return dict(own)


def _run_config(given: Mapping[str, Any], condition: Condition, metadata: Mapping[str, Any]) -> RunConfig:
    fields = {field: given[name] for name, (_, field) in SETTINGS.items() if field is not None and name in given}
    fields["budgets"] = tuple(fields.get("budgets", DEFAULT_BUDGETS))
    if "permissions" in fields:
        fields["permissions"] = (fields["permissions"],)
    try:
        return RunConfig(
            endpoint=_endpoint(metadata),
            model=str(metadata.get("model") or metadata.get("pretrained") or "unknown"),
            out=Path(),  # nothing is written
            conditions=(condition,),
            index_cache=default_cache(),
            # The second is what lm-eval itself sends.
            api_key=os.environ.get("FATHOM_API_KEY") or os.environ.get("OPENAI_API_KEY"),
            **fields,
        )
    except ConfigError as error:
        raise ConfigError(f"--metadata {KEY}: {error}") from error


def _endpoint(metadata: Mapping[str, Any]) -> str:
    """The address that lm-eval's own models for endpoints are given, without the path of the one that they ask."""
    url = metadata.get("base_url")
    if not isinstance(url, str):
        return NO_ENDPOINT
    return url.rstrip("/").removesuffix("/completions").removesuffix("/chat")


def _tokenizer_name(own: Mapping[str, Any], metadata: Mapping[str, Any]) -> str | None:
    """The one that was named for us; else the model's own, where it lies on this machine and not on some hub."""
    if "tokenizer" in own:
        return str(own["tokenizer"])
    named = (metadata.get(name) for name in ("tokenizer", "pretrained"))
    return next((name for name in named if isinstance(name, str) and find_tokenizer(name)), None)
