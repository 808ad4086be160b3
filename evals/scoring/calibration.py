"""How often a grader agrees with people: its verdicts on answers that they have judged.

Source of such answers: EVOUNA (arXiv:2305.12421), five systems' answers to Natural Questions, closed book. Questions
that its authors call improper are left out, and so are answers without any text.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evals.config import ConfigError
from evals.datasets.files import reading
from evals.records import Document, Question
from evals.scoring.grade import grade
from evals.stats.bootstrap import Table, tabulate
from evals.stats.corrected import GraderQuality

EVOUNA = "evouna_nq/NQ.json"
SYSTEMS = {"fid": "FiD", "gpt35": "GPT-3.5", "chatgpt": "ChatGPT", "gpt4": "GPT-4", "newbing": "New Bing"}
LLMS = ("GPT-3.5", "ChatGPT", "GPT-4", "New Bing")
OWN = "own"


@dataclass(frozen=True, slots=True)
class Labelled:
    """One answer that people have judged. `question.id` ends with the number of its question; `documents` are those
    that it was given with, if any.
    """

    question: Question
    system: str
    answer: str
    right: bool
    documents: tuple[Document, ...] = ()


@dataclass(frozen=True, slots=True)
class Judged:
    """One answer: whether people call it right, and whether the grader does."""

    question_id: str
    system: str
    right: bool
    called_right: bool


def evouna(directory: Path) -> list[Labelled]:
    """Every judged answer to a proper question.

    Raises:
        ConfigError: the file is not there, or does not have the expected shape.
    """
    with reading(directory, (EVOUNA,)):
        entries = json.loads((directory / EVOUNA).read_text(encoding="utf-8"))
        return [one for number, entry in enumerate(entries) if not entry["improper"] for one in _of(entry, number)]


def _of(entry: Mapping[str, Any], number: int) -> Iterator[Labelled]:
    answers = tuple(part for part in entry["golden_answer"].split("/") if part.strip())
    question = Question(f"e{number}", entry["question"], answers, (), "nq", f"e{number}")
    for key, system in SYSTEMS.items():
        right, answer = entry[f"judge_{key}"], entry[f"answer_{key}"]
        if right is not None and answer is not None and answer.strip():
            yield Labelled(question, system, answer, bool(right))


def own_labels(file: Path) -> list[Labelled]:
    """One answer a line: {"question", "answers", "answer", "right"}, perhaps with "documents", their texts.

    Raises:
        ConfigError: the file cannot be read; the line that is none of these is named.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--labels {file} cannot be read: {error}") from error
    numbers: dict[str, int] = {}
    labelled = []
    for place, line in enumerate(lines, 1):
        if line.strip():
            entry = _label(file, place, line)
            number = numbers.setdefault(entry["question"], len(numbers))
            question = Question(f"e{number}", entry["question"], tuple(entry["answers"]), (), OWN, f"e{number}")
            texts = enumerate(entry.get("documents", ()))
            documents = tuple(Document(f"line {place}, document {which + 1}", "", text) for which, text in texts)
            labelled.append(Labelled(question, OWN, entry["answer"], entry["right"], documents))
    return labelled


def _label(file: Path, place: int, line: str) -> dict[str, Any]:
    wanted = {"question": str, "answers": list, "answer": str, "right": bool}
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise ConfigError(f"--labels {file}, line {place} is no JSON: {error}") from error
    if not isinstance(entry, dict) or any(not isinstance(entry.get(name), kind) for name, kind in wanted.items()):
        raise ConfigError(
            f'--labels {file}, line {place} must have "question" and "answer" as text, "answers" as a list and '
            '"right" as true or false'
        )
    if not entry["answers"] or not _are_texts(entry["answers"]):
        raise ConfigError(f'--labels {file}, line {place}: "answers" must be accepted answers, one at least')
    if not _are_texts(entry.get("documents", [])):
        raise ConfigError(f'--labels {file}, line {place}: "documents" must be a list of texts')
    return entry


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def judge_by_words(labelled: Iterable[Labelled]) -> list[Judged]:
    """What the lexical grader says of answers that had to be given."""
    return [
        called(one, grade(one.question, one.answer, (), permission="must_answer").verdict == "correct")
        for one in labelled
    ]


def called(labelled: Labelled, right: bool) -> Judged:
    return Judged(labelled.question.id, labelled.system, labelled.right, right)


def quality_of(judged: Sequence[Judged], source: str, *, grader: str = "lexical", version: str = "") -> GraderQuality:
    """Raises:
    ConfigError: there are no right ones, or no wrong ones: nothing could be said of the other kind.
    """
    counts = {True: [0, 0], False: [0, 0]}
    for one in judged:
        counts[one.right][0] += 1
        counts[one.right][1] += one.called_right == one.right
    if not counts[True][0] or not counts[False][0]:
        raise ConfigError("a grader is measured on right answers and on wrong ones, and here there is one kind alone")
    (right, hit), (wrong, kept) = counts[True], counts[False]
    alike = max(_alike([one for one in judged if one.right is kind]) for kind in (True, False))
    return GraderQuality(right, hit, wrong, kept, source, grader, version, alike=round(alike, 3))


def _alike(judged: Sequence[Judged]) -> float:
    """How much larger the variance of the share called right is than of as many questions with one answer each; at
    least 1."""
    share = sum(one.called_right for one in judged) / len(judged)
    off: dict[str, float] = {}
    for one in judged:
        off[one.question_id] = off.get(one.question_id, 0.0) + one.called_right - share
    alone = len(judged) * share * (1 - share)
    return max(1.0, sum(sums**2 for sums in off.values()) / alone) if alone else 1.0


def called_right(judged: Sequence[Judged]) -> Table:
    """What the grader says, with all answers to a question as one cluster."""
    columns = {f"{one.question_id} {one.system} {place}": float(one.called_right) for place, one in enumerate(judged)}
    clusters = {f"{one.question_id} {one.system} {place}": one.question_id for place, one in enumerate(judged)}
    return tabulate([columns], clusters)


def halves(judged: Sequence[Judged]) -> tuple[list[Judged], list[Judged]]:
    """By questions: those of even numbers and those of odd ones."""
    parts: tuple[list[Judged], list[Judged]] = ([], [])
    for one in judged:
        parts[int(one.question_id[1:]) % 2].append(one)
    return parts
