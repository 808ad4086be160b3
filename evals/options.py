"""What the options of `fathom eval run` mean: text in, settings of a run out, and an error that names the option."""

from collections.abc import Sequence
from typing import Any, TypeVar

from evals.concurrency import MOST
from evals.config import DEFAULT_TEMPERATURE, ConfigError
from evals.records import CONDITIONS, PERMISSIONS, CacheState, Energy, Order, Unit
from evals.retrieval.index_files import default_cache

Name = TypeVar("Name", bound=str)


def question_options(
    budgets: str,
    conditions: Sequence[str] | None,
    permissions: Sequence[str] | None,
    *,
    n: int,
    seed: int,
    shard: str,
) -> dict[str, Any]:
    """What is asked, as RunConfig has it.

    Raises:
        ConfigError: an option is not what it can be.
    """
    return {
        "budgets": parse_budgets(budgets),
        "conditions": parse_names("--condition", conditions or ["natural"], CONDITIONS),
        "permissions": parse_names("--permission", permissions or [PERMISSIONS[0]], PERMISSIONS),
        "num_questions": n,
        "seed": seed,
        "shard": parse_shard(shard),
    }


def document_options(
    unit: Unit, order: Order, depth: float | None, retriever: str, model: str, *, cache: CacheState
) -> dict[str, Any]:
    """What fills a context, and in which order, as RunConfig has it."""
    return {
        "unit": unit,
        "order": order,
        "depth": depth,
        "retriever": retriever,
        "retriever_model": model,
        "index_cache": default_cache(),
        "cache": cache,
    }


def cost_options(scrape_interval: float, energy: Energy) -> dict[str, Any]:
    """What is measured beside the answers, as RunConfig has it."""
    return {"scrape_interval_s": scrape_interval, "energy": energy}


def doubt_options(logprobs: bool, draws: int, temperature: float | None) -> dict[str, Any]:
    """By what the answers' doubt is measured, as RunConfig has it.

    Raises:
        ConfigError: a temperature of nothing.
    """
    if temperature is not None and not draws:
        raise ConfigError(
            "--temperature is that of --draws, of which there are none: the answers themselves are greedy"
        )
    return {
        "logprobs": logprobs,
        "draws": draws,
        "temperature": DEFAULT_TEMPERATURE if temperature is None else temperature,
    }


def parse_budgets(text: str) -> tuple[int, ...]:
    """Raises:
    ConfigError: not whole numbers with commas between them.
    """
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(f"--budgets must be whole numbers with commas between them, got {text!r}") from error


def parse_concurrency(text: str) -> dict[str, Any]:
    """As RunConfig has it.

    Raises:
        ConfigError: neither a whole number nor auto.
    """
    if text == "auto":
        return {"concurrency": MOST, "adaptive": True}
    try:
        return {"concurrency": int(text), "adaptive": False}
    except ValueError as error:
        raise ConfigError(f"--concurrency must be a whole number or auto, got {text!r}") from error


def parse_shard(text: str) -> tuple[int, int]:
    """Raises:
    ConfigError: not two whole numbers with a stroke between them.
    """
    part, _, num_parts = text.partition("/")
    try:
        return int(part), int(num_parts)
    except ValueError as error:
        raise ConfigError(f"--shard must be as 1/4, got {text!r}") from error


def parse_names(option: str, names: Sequence[str], known: Sequence[Name]) -> tuple[Name, ...]:
    """In the order in which they are known.

    Raises:
        ConfigError: a name is none.
    """
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ConfigError(f"{option} must be one of {', '.join(known)}, got {unknown[0]!r}")
    return tuple(name for name in known if name in names)
