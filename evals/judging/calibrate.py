"""A judge's opinions of answers that people have judged."""

from collections.abc import Sequence

from evals.config import ConfigError
from evals.judging.cases import Case, Judge, Opinion
from evals.judging.store_run import Patience, Progress, each
from evals.scoring.calibration import Judged, Labelled, called


async def judge_labelled(
    judge: Judge, labelled: Sequence[Labelled], *, concurrency: int, progress: Progress = lambda *_: None
) -> tuple[list[Judged], list[str]]:
    """What the judge says of the answers that it gave a verdict on, and the errors of the others.

    Raises:
        ConfigError: it judges by documents, and these answers have none.
        RunStoppedError: it went away, or refuses all.
    """
    if judge.reads_documents and not all(one.documents for one in labelled):
        raise ConfigError(f'{judge.name} judges by documents: it needs --labels, with "documents" in every line')
    judged: list[Judged] = []
    errors: list[str] = []
    patience = Patience()

    def keep(one: Labelled, opinion: Opinion) -> None:
        if opinion.error is not None:
            errors.append(opinion.error)
        else:
            judged.append(called(one, opinion.verdict == "correct"))
        progress(len(judged) + len(errors), len(labelled))
        patience.see(opinion)

    await each(map(_case, labelled), judge, keep, concurrency=concurrency)
    return judged, errors


def _case(one: Labelled) -> tuple[Labelled, Case]:
    return one, Case(one.question.text, one.question.answers, one.answer, "must_answer", one.documents)
