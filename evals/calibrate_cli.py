"""`fathom eval calibrate`: how often a grader agrees with people, and what it says once that is set right."""

import asyncio
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from evals.config import ConfigError
from evals.exits import EXIT_CONFIG, EXIT_FAILED_SAMPLES
from evals.judge_cli import (
    ApiKey,
    JudgeModel,
    JudgeUrl,
    KindOption,
    Nli,
    at_once,
    chosen,
    counting,
    opened,
)
from evals.judging.calibrate import judge_labelled
from evals.judging.endpoint import JudgeConfig
from evals.scoring.calibration import (
    EVOUNA,
    LLMS,
    SYSTEMS,
    Judged,
    Labelled,
    called,
    called_right,
    evouna,
    halves,
    judge_by_words,
    own_labels,
    quality_of,
)
from evals.scoring.graders import CONSTRUCTED, LEXICAL, lexical_version, write_quality
from evals.scoring.subspan import has_subspan
from evals.stats.corrected import GraderQuality, corrected_rate
from evals.stats.rates import Rate, rate

FOUR = "the four LLMs"
NOTE = (
    "Sensitivity: right answers that are called so. Specificity: wrong ones that are not. Corrected: the grader's "
    "error over questions of even numbers, set right by those of odd numbers. In brackets 95 % intervals."
)
TWINS_NOTE = "best_subspan_em: any answer with an accepted one as a part of its text, as others publish it."
TUNED_NOTE = (
    "The lexical grader's tolerance of spellings was written by looking at questions of even numbers; no answer to one "
    "of odd number was looked at."
)
Data = Annotated[Path | None, typer.Option(help=f"Directory that has {EVOUNA} in it.")]
Labels = Annotated[
    Path | None,
    typer.Option(
        help='Your own judged answers, a line each: {"question", "answers": [...], "answer", "right": true}, and '
        '"documents": [...] where a judge reads them.'
    ),
]
Out = Annotated[Path | None, typer.Option(help="File for what was measured, to correct other rates with.")]
Limit = Annotated[int | None, typer.Option(help="So many answers only, drawn by chance: a judge may cost.")]
Concurrency = Annotated[int, typer.Option(help="Requests to the judge at once.")]


def calibrate(
    *,
    data: Data = None,
    labels: Labels = None,
    judge: JudgeUrl = None,
    judge_model: JudgeModel = None,
    kind: KindOption = "answer",
    nli: Nli = None,
    limit: Limit = None,
    concurrency: Concurrency = 4,
    api_key: ApiKey = None,
    out: Out = None,
) -> None:
    """Grade answers that people have judged: a grader's sensitivity and specificity, by system and in all.

    Exit codes: 0 = measured; 2 = wrong options, or the judge went away; 3 = some answers have no verdict of the judge.
    """
    console, errors = Console(), list[str]()
    try:
        labelled, source = _labelled(data, labels, limit)
        graders = {LEXICAL: judge_by_words(labelled)}
        quality = _quality(graders[LEXICAL], source, LEXICAL)
        if judge is not None or judge_model is not None or nli is not None:
            choice = chosen(judge, judge_model, kind=kind, nli=nli, concurrency=concurrency, api_key=api_key)
            name, judged, errors = asyncio.run(_ask(console, choice, labelled))
            graders[name], quality = judged, _quality(judged, source, name)
        else:
            graders |= _twins(labelled)
        tables = [_table(name, judged) for name, judged in graders.items()]
        if out is not None:
            write_quality(out, quality)
    except ConfigError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(EXIT_CONFIG) from error
    console.print(*tables, NOTE, *([] if judge or nli else [TWINS_NOTE]), *([TUNED_NOTE] if data else []), sep="\n")
    if out is not None:
        console.print(f"written to {out}", highlight=False)
    if errors:
        typer.echo(f"{len(errors)} answers have no verdict of the judge; the first: {errors[0]}", err=True)
        raise typer.Exit(EXIT_FAILED_SAMPLES)


async def _ask(
    console: Console, choice: JudgeConfig | Path, labelled: Sequence[Labelled]
) -> tuple[str, list[Judged], list[str]]:
    async with opened(choice, console) as judge:
        with counting(console, judge.name) as progress:
            found = await judge_labelled(judge, labelled, concurrency=at_once(choice), progress=progress)
        return judge.name, *found


def _labelled(data: Path | None, labels: Path | None, limit: int | None) -> tuple[list[Labelled], str]:
    """The judged answers and where they are from.

    Raises:
        ConfigError: none are named, or both, or they cannot be read.
    """
    if (data is None) == (labels is None):
        raise ConfigError("give either --data, for EVOUNA's answers, or --labels, for your own")
    if limit is not None and limit <= 0:
        raise ConfigError(f"--limit must be above 0, got {limit}")
    if labels is not None:
        found, source = own_labels(labels), f"{labels.name}, judged by its owner"
    else:
        assert data is not None
        found = evouna(data)
        source = f"EVOUNA (arXiv:2305.12421), Natural Questions, closed book: {', '.join(LLMS)}"
    if limit is not None and limit < len(found):
        found = random.Random(0).sample(found, limit)
    return found, source


def _quality(judged: Sequence[Judged], source: str, grader: str) -> GraderQuality:
    """Of EVOUNA's systems only the LLMs count: a reader's short spans are unlike what is graded here."""
    counted = [one for one in judged if one.system != SYSTEMS["fid"]]
    version = lexical_version() if grader == LEXICAL else grader.rpartition(":")[2]
    quality = quality_of(counted, source, grader=grader, version=version)
    of_people = any(one.system in LLMS for one in counted)
    return replace(quality, not_for=CONSTRUCTED if of_people else ())


def _twins(labelled: Sequence[Labelled]) -> dict[str, list[Judged]]:
    return {
        f"best_subspan_em, {what}": [
            called(one, has_subspan(one.answer, one.question.answers, whole_words=whole)) for one in labelled
        ]
        for what, whole in (("by characters", False), ("by whole words", True))
    }


def _table(name: str, judged: Sequence[Judged]) -> Table:
    table = Table(title=f"{escape(name)} beside people", title_justify="left", box=box.SIMPLE_HEAD)
    for heading in ("system", "answers", "error by people", "by the grader", "corrected", "sensitivity", "specificity"):
        table.add_column(heading, justify="left" if heading == "system" else "right")
    for group, members in _groups(judged).items():
        table.add_row(group, *_cells(members))
    return table


def _groups(judged: Sequence[Judged]) -> Mapping[str, Sequence[Judged]]:
    """By system, and of EVOUNA's the LLMs together, by halves of the questions, and all."""
    systems = {system: [one for one in judged if one.system == system] for system in {one.system: 0 for one in judged}}
    four = [one for one in judged if one.system in LLMS]
    groups: dict[str, Sequence[Judged]] = {**systems}
    if four:
        even, odd = halves(four)
        groups |= {FOUR: four, "  even questions": even, "  odd questions": odd}
    return {name: members for name, members in groups.items() if len({one.right for one in members}) == 2}


def _cells(judged: Sequence[Judged]) -> list[str]:
    quality = quality_of(judged, "")
    return [
        f"{len(judged):,}",
        f"{sum(not one.right for one in judged) / len(judged):.3f}",
        f"{sum(not one.called_right for one in judged) / len(judged):.3f}",
        _corrected(judged),
        _share(rate(quality.right_called_right, quality.right)),
        _share(rate(quality.wrong_called_wrong, quality.wrong)),
    ]


def _corrected(judged: Sequence[Judged]) -> str:
    """Set right by others than themselves: else they would agree whatever the grader does."""
    even, odd = halves(judged)
    if not even or len({one.right for one in odd}) < 2:
        return "-"
    found = corrected_rate(called_right(even), quality_of(odd, ""))
    return "-" if found is None else f"{1 - found['rate']:.3f} [{1 - found['high']:.3f}, {1 - found['low']:.3f}]"


def _share(found: Rate) -> str:
    return f"{found['rate']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"
