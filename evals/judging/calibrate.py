"""A judge's opinions of answers that people have judged."""

from collections.abc import Sequence

from evals.client import open_session
from evals.judging.cases import Case, Opinion
from evals.judging.endpoint import EndpointJudge, JudgeConfig
from evals.judging.store_run import Patience, Progress, each
from evals.scoring.calibration import Judged, Labelled, called


async def judge_labelled(
    config: JudgeConfig, labelled: Sequence[Labelled], progress: Progress = lambda *_: None
) -> tuple[str, list[Judged], list[str]]:
    """The grader's name, what it says of the answers that it gave a verdict on, and the errors of the others.

    Raises:
        ConfigError: the judge is not there.
        RunStoppedError: it went away, or refuses all.
    """
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

    async with open_session(config.requests) as session:
        judge = EndpointJudge(session, config)
        await judge.check()
        await each(map(_case, labelled), judge, keep, concurrency=config.concurrency)
    return judge.name, judged, errors


def _case(one: Labelled) -> tuple[Labelled, Case]:
    return one, Case(one.question.text, one.question.answers, one.answer, "must_answer")
