"""lm-eval's tasks on an endpoint: loaded, checked, asked, and their figures as records."""

import asyncio
import difflib
import hashlib
import importlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

from evals import lm_tasks
from evals.config import ConfigError
from evals.lm.config import LmConfig
from evals.lm.endpoint import Served, probe
from evals.lm.results import LmResult, prepare_store, put_results

CACHE_DIRECTORY = "lm-cache"
# What loading a task may meet: a name, a file or a data set that is not there, or does not fit.
LOAD_ERRORS = (OSError, KeyError, ValueError, TypeError, ImportError, AssertionError, IndexError)


def tasks_directory() -> Path:
    """That of our own tasks, for lm-eval's --include_path."""
    return Path(lm_tasks.__file__).parent


@dataclass(frozen=True, slots=True)
class Loaded:
    """specs: what lm-eval is given: tasks, and groups of them. tasks: all, by name. manager: that loaded them."""

    specs: list[Any]
    tasks: Mapping[str, Any]
    manager: Any


def run_lm(config: LmConfig) -> list[LmResult]:
    """Ask all tasks, and keep the results in the store.

    Raises:
        ConfigError: an option cannot be, a prompt does not fit, or asking cannot go on.
    """
    lm_eval = _import("lm_eval")
    if config.server.api_key:
        # Our own tasks count at the endpoint, too, and in what lm-eval hands them the key would be stored.
        os.environ["FATHOM_API_KEY"] = config.server.api_key
    prepare_store(config.server.out)
    served = asyncio.run(probe(config))
    loaded = load_tasks(config)
    _check_kinds(config, served, loaded)
    model = _import("evals.lm.model").EndpointLM(config, served, list(loaded.tasks.values()))
    content = lm_eval.simple_evaluate(
        model=model,
        tasks=loaded.specs,
        task_manager=loaded.manager,
        num_fewshot=config.num_fewshot,
        limit=config.limit,
        apply_chat_template=config.chat,
        use_cache=str(_cache_file(config, served)),
        log_samples=False,
    )
    # Once more for the case that every answer was there already, and nothing was asked.
    model.measure()
    results = to_results(config, served, content, model.cuts.count)
    put_results(config.server.out, results)
    return results


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(f"fathom eval lm needs lm-eval: install fathom[lm-eval] ({error})") from error


def load_tasks(config: LmConfig) -> Loaded:
    """Raises:
    ConfigError: a task is not known, or cannot be loaded.
    """
    server = config.server
    metadata = {"model": server.model, "base_url": f"{server.api_url}/completions", **config.metadata}
    if config.tokenizer is not None:
        metadata.setdefault("tokenizer", config.tokenizer)
    paths = [str(path) for path in (tasks_directory(), *config.include_paths)]
    managers = _import("lm_eval.tasks")
    # Without its own thousands first: to read them takes longer than many a task.
    for with_own in (False, True):
        manager = managers.TaskManager(include_path=paths, include_defaults=with_own, metadata=metadata)
        unknown = [name for name in config.tasks if name not in manager.task_index]
        if not unknown:
            break
    else:
        near = difflib.get_close_matches(unknown[0], manager.all_tasks)
        raise ConfigError(f"--tasks: {unknown[0]!r} is not known{'; near it are ' if near else ''}{', '.join(near)}")
    specs: list[Any] = []
    for name in config.tasks:
        try:
            found = manager.load([name])
        except LOAD_ERRORS as error:
            raise ConfigError(f"--tasks: {name} cannot be loaded: {type(error).__name__}: {error}") from error
        specs += [found["groups"][name]] if name in found.get("groups", {}) else found["tasks"].values()
    try:
        return Loaded(specs, manager.load(specs)["tasks"], manager)
    except ValueError as error:
        raise ConfigError(f"--tasks: {error}") from error


def _check_kinds(config: LmConfig, served: Served, loaded: Loaded) -> None:
    """Raises:
    ConfigError: a task wants what the endpoint cannot give in this way.
    """
    for name, task in loaded.tasks.items():
        if task.OUTPUT_TYPE == "generate_until":
            continue
        if config.chat:
            raise ConfigError(f"--chat: {name} wants log-likelihoods, which no chat gives; ask for --completions")
        if served.tokens is None:
            raise ConfigError(f"--tokenizer: {name} wants log-likelihoods, for which the tokens must be known")


def _cache_file(config: LmConfig, served: Served) -> Path:
    """Where answers are kept until all are there; another one for whatever gives others."""
    server, model = config.server, served.model
    whose = model.weights_digest or server.root_url
    deciding = [server.model, whose, model.computation, served.limit, config.noted]
    digest = hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()[:16]
    return server.out / CACHE_DIRECTORY / digest


def to_results(config: LmConfig, served: Served, content: Mapping[str, Any], num_truncated: Any) -> list[LmResult]:
    """lm-eval's figures as records: tasks, and groups that it sums up."""
    noted = {**config.noted, "max_length": served.limit}
    at = datetime.now(UTC).isoformat(timespec="seconds")
    results = []
    for task, figures in content["results"].items():
        counts = [num_truncated(name) for name in _leaves(task, content["group_subtasks"])]
        for name, value in figures.items():
            metric, comma, filtered = name.partition(",")
            if not comma or metric.endswith("_stderr"):
                continue
            results.append(
                LmResult(
                    model=config.server.model,
                    task=task,
                    metric=metric,
                    filter=filtered,
                    value=_number(value),
                    stderr=_number(figures.get(f"{metric}_stderr,{filtered}")),
                    n=int(figures["sample_len"]),
                    num_truncated=None if None in counts else sum(counts),
                    higher_is_better=content["higher_is_better"].get(task, {}).get(metric),
                    config=noted,
                    lm_eval_version=version("lm_eval"),
                    at=at,
                )
            )
    return results


def _leaves(task: str, children: Mapping[str, list[str]]) -> list[str]:
    if task not in children:
        return [task]
    return [leaf for child in children[task] for leaf in _leaves(child, children)]


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        return None
    number = float(value)
    return number if math.isfinite(number) else None
