"""What is known of how well each grader agrees with people, as files that come with Fathom or are the user's own."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from importlib.resources import files
from pathlib import Path
from typing import Any

from evals.config import ConfigError
from evals.records import Question
from evals.scoring.grade import grade
from evals.stats.corrected import GraderQuality

LEXICAL = "lexical"
# Made by programs, with answers that are a word or two of a document: the lexical grader's errors on the wordy answers
# of people's questions are not those that it makes here.
CONSTRUCTED = ("world", "needle", "key_value")
_QUALITY, _PROBES = "quality/lexical.json", "quality/probes.json"
_COUNTS = ("right", "right_called_right", "wrong", "wrong_called_wrong")


def shipped_quality() -> GraderQuality:
    """The lexical grader's, as `fathom eval calibrate` measured it."""
    return _quality(json.loads(_read(_QUALITY)), "the file that comes with Fathom")


def read_quality(file: Path) -> GraderQuality:
    """Raises:
    ConfigError: it is no file of `fathom eval calibrate --out`, or its grader is no better than chance.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"--grader-quality {file} cannot be read: {error}") from error
    return _quality(content, f"--grader-quality {file}")


def qualities(own: Sequence[Path]) -> dict[str, GraderQuality]:
    """By grader: the shipped one, and the user's own in place of it or beside it."""
    return {LEXICAL: shipped_quality()} | {quality.grader: quality for quality in map(read_quality, own)}


def write_quality(file: Path, quality: GraderQuality) -> None:
    """Raises:
    ConfigError: it cannot be written.
    """
    try:
        file.write_text(json.dumps(asdict(quality), indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--out {file} cannot be written: {error}") from error


def _quality(content: Any, whose: str) -> GraderQuality:
    names = {field.name for field in fields(GraderQuality)}
    if not isinstance(content, dict) or content.keys() - names or not content.keys() >= {*_COUNTS, "source", "grader"}:
        raise ConfigError(f"{whose} is not what `fathom eval calibrate --out` writes")
    right, hit, wrong, kept = (content[name] for name in _COUNTS)
    if not all(isinstance(count, int) for count in (right, hit, wrong, kept)) or not (
        0 <= hit <= right and 0 <= kept <= wrong and right and wrong
    ):
        raise ConfigError(f"{whose}: {', '.join(_COUNTS)} must be counts, of both right and wrong answers")
    quality = GraderQuality(**{**content, "not_for": tuple(content.get("not_for", ()))})
    if quality.sensitivity + quality.specificity <= 1:
        raise ConfigError(f"{whose}: {quality.grader} knows no better than chance, so no rate can be set right by it")
    return quality


def _read(name: str) -> str:
    return files("evals.scoring").joinpath(name).read_text(encoding="utf-8")


def lexical_version() -> str:
    """A digest of what the lexical grader says of the probes: another one where it grades otherwise."""
    verdicts = [[grade_of.verdict, grade_of.first_line_verdict] for grade_of in map(_graded, probes())]
    return hashlib.sha256(json.dumps(verdicts).encode()).hexdigest()[:12]


def probes() -> list[Mapping[str, Any]]:
    """Answers of all kinds, that a change of the grader shows in."""
    content: list[Mapping[str, Any]] = json.loads(_read(_PROBES))
    return content


def _graded(probe: Mapping[str, Any]) -> Any:
    question = Question("p", probe["question"], tuple(probe["answers"]), (), "probe", "p")
    return grade(question, probe["answer"], (), permission=probe["permission"])
