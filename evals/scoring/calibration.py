"""How often the grader agrees with people: its verdicts on answers that they have judged.

Source of such answers: EVOUNA (arXiv:2305.12421), five systems' answers to Natural Questions, closed book.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from evals.config import ConfigError
from evals.datasets.files import reading
from evals.records import Question
from evals.scoring.grade import grade
from evals.stats.bootstrap import Table, tabulate
from evals.stats.corrected import GraderQuality

EVOUNA = "evouna_nq/NQ.json"
SYSTEMS = {"fid": "FiD", "gpt35": "GPT-3.5", "chatgpt": "ChatGPT", "gpt4": "GPT-4", "newbing": "New Bing"}
LLMS = ("GPT-3.5", "ChatGPT", "GPT-4", "New Bing")


@dataclass(frozen=True, slots=True)
class Judged:
    """One answer: whether people call it right, and whether the grader does."""

    question_id: str
    system: str
    right: bool
    called_right: bool


def judged_answers(directory: Path) -> list[Judged]:
    """Every judged answer to a proper question, graded as one that must be given.

    Raises:
        ConfigError: the file is not there, or does not have the expected shape.
    """
    with reading(directory, (EVOUNA,)):
        entries = json.loads((directory / EVOUNA).read_text(encoding="utf-8"))
        return [
            judged for number, entry in enumerate(entries) if not entry["improper"] for judged in _of(entry, number)
        ]


def _of(entry: dict[str, Any], number: int) -> Iterator[Judged]:
    answers = tuple(part for part in entry["golden_answer"].split("/") if part.strip())
    question = Question(f"e{number}", entry["question"], answers, (), "nq", f"e{number}")
    for key, system in SYSTEMS.items():
        right, answer = entry[f"judge_{key}"], entry[f"answer_{key}"]
        if right is not None and answer is not None:
            verdict = grade(question, answer, (), permission="must_answer").verdict
            yield Judged(question.id, system, bool(right), verdict == "correct")


def quality_of(judged: Iterable[Judged], source: str) -> GraderQuality:
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
    return GraderQuality(right, hit, wrong, kept, source)


def called_right(judged: Sequence[Judged]) -> Table:
    """What the grader says, with all answers to a question as one cluster."""
    columns = {f"{one.question_id} {one.system}": float(one.called_right) for one in judged}
    return tabulate([columns], {f"{one.question_id} {one.system}": one.question_id for one in judged})


def write_quality(file: Path, quality: GraderQuality) -> None:
    file.write_text(json.dumps(asdict(quality), indent=2) + "\n", encoding="utf-8")
