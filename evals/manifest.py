"""What a run was told and what made it, so that it can be repeated: kept in the store beside the samples.

A run that is stopped and goes on has several sessions, which may differ: more budgets, another version of Fathom.
"""

import dataclasses
import importlib.metadata
import platform
import resource
import subprocess
import sys
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from evals.client import ServedModel
from evals.concurrency import Concurrency
from evals.config import ConfigError, RunConfig
from evals.fingerprint import prompts_digest
from evals.prompts import SYSTEM_PROMPTS, build_messages
from evals.records import Dataset, Document
from evals.retrieval.index_files import digest_of

SCHEMA = "fathom.manifest/1"
# Those whose versions may decide what is retrieved, sent or measured.
PACKAGES = ("aiohttp", "bm25s", "numpy", "pypdf", "sentence-transformers", "torch", "transformers", "lm_eval")
KIB = 1 if sys.platform == "darwin" else 1024  # in which getrusage counts
SECRETS = frozenset({"api_key"})
ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, slots=True)
class Origin:
    """What a dataset was loaded by: `--dataset`, the directory of its files, and the dials of a world."""

    name: str
    data: Path | None
    world: str | None = None


def begin_session(
    config: RunConfig, dataset: Dataset, served: ServedModel, *, origin: Origin | None, retriever: str, counting: str
) -> dict[str, Any]:
    """One session as plain JSON, to be finished by `end_session`."""
    return {
        "started": _now(),
        "finished": None,
        "config": config_content(config),
        "dataset": {
            "name": dataset.name,
            "option": None if origin is None else origin.name,
            "data": None if origin is None or origin.data is None else str(origin.data.resolve()),
            "world": None if origin is None else origin.world,
            "digest": dataset.digest,
            "source": dataset.source,
        },
        "retrieval": {"retriever": retriever, "documents": digest_of(dataset.documents)},
        "prompts": {
            "digest": prompts_digest(),
            "system": dict(SYSTEM_PROMPTS),
            "example": build_messages(config.permissions[0], [Document("id", "TITLE", "TEXT")], "QUESTION"),
        },
        "served": dataclasses.asdict(served),
        "counting": counting,
        "command": _command(config.api_key),
        "made_by": made_by(),
    }


def end_session(session: Mapping[str, Any], concurrency: Concurrency, *, asked: int, failed: int) -> dict[str, Any]:
    return {
        **session,
        "finished": _now(),
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIB,
        "asked": asked,
        "failed": failed,
        "concurrency": {
            "adaptive": concurrency.adaptive,
            "requests": concurrency.num_requests,
            "mean": concurrency.mean,
            "largest": concurrency.largest,
            "last_limit": concurrency.limit,
        },
    }


def with_session(manifest: Mapping[str, Any] | None, session: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest with one more session, or with that which began at the same time replaced."""
    others = [one for one in (manifest or {}).get("sessions", ()) if one["started"] != session["started"]]
    return {"schema": SCHEMA, "sessions": [*others, dict(session)]}


def adapted_concurrency(manifest: Mapping[str, Any]) -> float | None:
    """Requests under way at once, on average over those of adaptive sessions that came to an end."""
    ended = [one["concurrency"] for one in manifest.get("sessions", ()) if one.get("concurrency")]
    adaptive = [one for one in ended if one["adaptive"] and one["requests"]]
    requests = sum(one["requests"] for one in adaptive)
    return sum(one["mean"] * one["requests"] for one in adaptive) / requests if requests else None


def made_by() -> dict[str, Any]:
    return {
        "fathom": version_of("fathom"),
        "git": _git(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: version for name in PACKAGES if (version := version_of(name)) is not None},
    }


def version_of(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git() -> dict[str, Any] | None:
    """The commit of the checkout that this file is of; None outside of one."""
    if not (ROOT / ".git").exists():
        return None
    try:
        commit = _ask_git("rev-parse", "HEAD").strip()
        return {"commit": commit, "dirty": bool(_ask_git("status", "--porcelain", "--untracked-files=no").strip())}
    except (OSError, subprocess.SubprocessError):
        return None


def _ask_git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True, timeout=20)
    return done.stdout


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _command(api_key: str | None) -> list[str]:
    words = [Path(sys.argv[0]).name, *sys.argv[1:]]
    return [word.replace(api_key, "...") for word in words] if api_key else words


def config_content(config: RunConfig) -> dict[str, Any]:
    """Every setting but the secret ones, as plain JSON."""
    content: dict[str, Any] = _plain(config)
    return content


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        shown = [field.name for field in dataclasses.fields(value) if field.name not in SECRETS]
        return {name: _plain(getattr(value, name)) for name in shown}
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (tuple, list)):
        return [_plain(part) for part in value]
    return {key: _plain(part) for key, part in value.items()} if isinstance(value, dict) else value


def read_config(content: Mapping[str, Any], **other: Any) -> RunConfig:
    """A configuration as it was written; `other` are settings in place of those.

    Raises:
        ConfigError: a newer version of Fathom had a setting that this one does not know, or a value cannot be.
    """
    hints = get_type_hints(RunConfig)
    unknown = sorted(content.keys() - hints.keys())
    if unknown:
        raise ConfigError(f"the run has settings that this version of Fathom does not know: {', '.join(unknown)}")
    return RunConfig(**{**{name: _read(hints[name], value) for name, value in content.items()}, **other})


def _read(hint: Any, value: Any) -> Any:
    """A plain value as the type that a field declares."""
    if value is None:
        return None
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        [first, *_] = [part for part in parts if part is not type(None)]
        return _read(first, value)
    if origin is tuple:
        return tuple(_read(part, one) for part, one in zip(_parts_of(parts, value), value, strict=True))
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        inner = get_type_hints(hint)
        return hint(**{name: _read(inner[name], one) for name, one in value.items()})
    return Path(value) if hint is Path else value


def _parts_of(parts: Sequence[Any], value: Sequence[Any]) -> Sequence[Any]:
    return [parts[0]] * len(value) if len(parts) == 2 and parts[1] is Ellipsis else parts
