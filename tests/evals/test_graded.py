"""Rates set right by a grader's quality, and other graders' verdicts beside the lexical ones."""

import pytest
from evals_rows import UNSCORED, abstained, hallucinated, sample, sweep

from evals import graded
from evals.graded import corrected, describe_graded, kappa
from evals.keys import by_sample
from evals.records import Judgement
from evals.stats.corrected import GraderQuality
from evals.summary import DEFINITIONS, summarise, summary_table

QUALITY = GraderQuality(1000, 800, 1000, 950, "tests", "lexical")


def rows(num_right, num_wrong, **fields):
    made = [sample(question_id=f"r{number}", cluster=f"r{number}", **fields) for number in range(num_right)]
    return made + [
        hallucinated(question_id=f"w{number}", cluster=f"w{number}", **fields) for number in range(num_wrong)
    ]


def of_rows(members, quality=QUALITY):
    return corrected([(row, row.verdict) for row in members], quality)


def judgement(row, verdict, *, grader="g", score=None, error=None):
    key = {name: getattr(row, name) for name in ("model", "dataset", "condition", "permission", "budget")}
    return Judgement(
        **key,
        question_id=row.question_id,
        grader=grader,
        verdict=verdict,
        score=score,
        detail="",
        error=error,
    )


def test_a_rate_is_set_right():
    found = of_rows(rows(600, 400))
    # (.6 + .95 - 1) / (.8 + .95 - 1) = .7333 are right
    assert found["rate"] == pytest.approx(1 - 0.55 / 0.75)
    assert found["raw"] == pytest.approx(0.4)
    assert (found["n"], found["grader"], found["source"]) == (1000, "lexical", "tests")
    assert found["low"] < found["rate"] < found["high"]
    # Wider than that of the share alone, which is about 0.06.
    assert found["high"] - found["low"] > 0.08


def test_only_answers_to_answerable_questions_are_set_right():
    others = [abstained(question_id="a"), sample(question_id="u", **UNSCORED)]
    others.append(hallucinated(question_id="n", answers=()))
    assert of_rows(rows(6, 4) + others) == of_rows(rows(6, 4))
    assert of_rows(others) is None
    assert of_rows([]) is None


def test_what_nobody_measured_is_not_set_right():
    assert of_rows(rows(6, 4), None) is None
    assert of_rows(rows(6, 4), GraderQuality(10, 5, 10, 5, "chance")) is None
    assert of_rows(rows(6, 4), GraderQuality(10, 8, 10, 9, "s", not_for=("world",))) is None
    assert of_rows(rows(6, 4, dataset="nq"), GraderQuality(10, 8, 10, 9, "s", not_for=("world",))) is not None


def test_answers_that_err_together_widen_the_interval():
    together = [sample(question_id=f"r{n}", cluster=f"c{n // 4}") for n in range(60)]
    together += [hallucinated(question_id=f"w{n}", cluster=f"d{n // 4}") for n in range(40)]
    one, other = of_rows(together), of_rows(rows(60, 40))
    assert one["high"] - one["low"] > 1.3 * (other["high"] - other["low"])


def test_judgements_beside_verdicts():
    right, wrong, silent = sample(question_id="q1"), hallucinated(question_id="q2"), abstained(question_id="q3")
    unjudged = sample(question_id="q4")
    judged = [
        judgement(right, "correct", score=1.0),
        judgement(wrong, "correct", score=0.5),
        judgement(silent, "unscored", error="no reply"),
        judgement(right, "hallucinated", grader="h"),
        judgement(sample(question_id="q1", budget=64), "hallucinated"),  # of another point
    ]
    found = describe_graded([right, wrong, silent, unjudged], by_sample(judged), {"h": QUALITY})
    assert list(found["judged"]) == ["g", "h"]
    one = found["judged"]["g"]
    assert (one["n"], one["unscored"], one["score_mean"], one["corrected"]) == (3, 1, 0.75, None)
    assert (one["correct"]["rate"], one["correct"]["n"], one["hallucinated"]["rate"]) == (1.0, 2, 0.0)
    assert (one["agreement"]["rate"], one["agreement"]["n"]) == (0.5, 2)
    assert found["judged"]["h"]["corrected"]["n"] == 1
    assert found["corrected"] is None
    assert describe_graded([unjudged], {}, {})["judged"] == {}


def test_kappa_by_hand():
    # 20 both yes, 5 and 10 apart, 15 both no: agreed .7, by chance .5, so .4
    pairs = [("y", "y")] * 20 + [("y", "n")] * 5 + [("n", "y")] * 10 + [("n", "n")] * 15
    assert kappa(pairs) == pytest.approx(0.4)
    assert kappa([("y", "y")] * 3) is None
    assert kappa([]) is None
    assert kappa([("y", "n"), ("n", "y")]) == pytest.approx(-1.0)


def test_the_summary_has_both():
    asked = rows(6, 4, dataset="nq")
    summary = summarise(asked, judgements=[judgement(asked[0], "correct")])
    [point] = summary["models"][0]["points"]
    assert point["corrected"]["source"].startswith("EVOUNA")
    assert point["judged"]["g"]["n"] == 1
    assert {"corrected", "judged"} <= DEFINITIONS.keys()
    mine = summarise(asked, quality={"lexical": QUALITY})["models"][0]["points"][0]["corrected"]
    assert (mine["source"], mine["rate"]) == ("tests", pytest.approx(1 - 0.55 / 0.75))
    told = graded.lines(summary["models"])
    assert told[0].startswith("m, nq, natural, must_answer: wrong answers in % of those given")
    assert "40.0 \N{RIGHTWARDS ARROW}" in told[0]
    assert told[1] == "m, nq, natural, must_answer: hallucinated in % by g. 0: 0.0 of 1."
    assert summary_table(summary) is not None


def test_worlds_answers_are_not_corrected_by_what_was_measured_on_peoples_questions():
    [series, *_] = summarise(sweep(num_questions=20))["models"]
    assert [point["corrected"] for point in series["points"]] == [None] * len(series["points"])
    assert graded.lines([series]) == []
