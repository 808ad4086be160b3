"""The parts of a rate add up to it, and the reasons of a change to the change."""

import random

import pytest
from evals_rows import hallucinated, sample, sweep

from evals.decomposition import change_since, decompose
from evals.summary import summarise


def rows_of(num_present, wrong_present, num_absent, wrong_absent, *, budget=256):
    """Of the questions the first so many have their evidence; of both kinds so many are wrong."""
    rows = []
    for number in range(num_present + num_absent):
        present = number < num_present
        wrong = number < wrong_present if present else number - num_present < wrong_absent
        make = hallucinated if wrong else sample
        rows.append(make(question_id=f"q{number}", cluster=f"c{number}", budget=budget, gold_in_context=present))
    return rows


def test_parts_by_hand():
    rows = [*rows_of(6, 1, 2, 1), hallucinated(question_id="u", answers=()), sample(question_id="v", answers=())]
    found = decompose(rows, [hallucinated(budget=0)])
    parts = found["parts"]
    assert [parts[name]["share"] for name in ("present", "absent", "unanswerable")] == [0.6, 0.2, 0.2]
    assert [parts[name]["hallucinated"] for name in ("present", "absent", "unanswerable")] == [1 / 6, 0.5, 0.5]
    assert [parts[name]["contribution"] for name in ("present", "absent", "unanswerable")] == [0.1, 0.1, 0.1]
    assert (found["hallucinated"], found["floor"]) == (pytest.approx(0.3), 1.0)
    assert decompose([], []) is None


def test_in_every_point_the_parts_are_the_rate():
    num_points = 0
    for series in summarise(sweep())["models"]:
        for point in series["points"]:
            parts = point["decomposition"]["parts"].values()
            assert sum(part["share"] * (part["hallucinated"] or 0) for part in parts) == pytest.approx(
                point["hallucinated"]["rate"]
            )
            num_points += 1
    assert num_points == 16


def test_a_change_by_hand():
    """Recall from .5 to .9, reading from .2 to 1/9, absence from .6 to 1.0, over 10 questions."""
    change = change_since(256, rows_of(5, 1, 5, 3), rows_of(9, 1, 1, 1, budget=512))
    assert change["total"] == pytest.approx(0.2 - 0.4)
    assert change["by_recall"]["effect"] == pytest.approx(0.4 * ((0.2 + 1 / 9) / 2 - (0.6 + 1.0) / 2))
    assert change["by_reading"]["effect"] == pytest.approx((1 / 9 - 0.2) * 0.7)
    assert change["by_absence"]["effect"] == pytest.approx((1.0 - 0.6) * 0.3)
    for name in ("by_recall", "by_reading", "by_absence"):
        assert change[name]["low"] <= change[name]["effect"] <= change[name]["high"]


def test_without_one_of_the_parts_a_change_has_no_reasons():
    assert change_since(256, rows_of(5, 1, 0, 0), rows_of(4, 1, 1, 1)) is None
    assert change_since(256, rows_of(5, 1, 5, 1), rows_of(10, 1, 0, 0)) is None


def test_the_intervals_cover_planted_effects():
    """Recall goes from .5 to .8, nothing else changes: P(wrong | present) is .1, P(wrong | absent) .7."""
    rng, covered, simulations = random.Random(3), [0, 0, 0], 120
    truth = [0.3 * (0.1 - 0.7), 0.0, 0.0]
    for _ in range(simulations):
        before, after = (
            [
                (hallucinated if rng.random() < (0.1 if present else 0.7) else sample)(
                    question_id=f"q{number}", cluster=f"c{number}", gold_in_context=present
                )
                for number in range(150)
                for present in [rng.random() < recall]
            ]
            for recall in (0.5, 0.8)
        )
        change = change_since(256, before, after)
        for place, name in enumerate(("by_recall", "by_reading", "by_absence")):
            covered[place] += change[name]["low"] <= truth[place] <= change[name]["high"]
    # Of 120 at 95 %, two standard deviations are five.
    assert min(covered) >= 0.95 * simulations - 7
