"""How well graders agree with people: counted on answers written here, and on the real ones where they are."""

import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from evals.config import ConfigError
from evals.scoring.calibration import (
    EVOUNA,
    LLMS,
    Judged,
    called,
    called_right,
    evouna,
    halves,
    judge_by_words,
    own_labels,
    quality_of,
)
from evals.scoring.graders import (
    CONSTRUCTED,
    LEXICAL,
    lexical_version,
    probes,
    qualities,
    read_quality,
    shipped_quality,
    write_quality,
)
from evals.scoring.subspan import has_subspan, squad_normalised
from evals.stats.corrected import GraderQuality, corrected_rate
from fathom import app

REAL_DATA = os.environ.get("FATHOM_DATA")
real = pytest.mark.skipif(REAL_DATA is None, reason="FATHOM_DATA does not say where the real files are")
# best_subspan_em on the same answers, as it was published.
PUBLISHED_SENSITIVITY, PUBLISHED_SPECIFICITY, HUMAN_ERROR = 0.778, 0.958, 0.257


def entry(golden, *judged, improper=False):
    """`judged`: answer and verdict of the five systems in turn; None where there is none."""
    names = ("fid", "gpt35", "chatgpt", "gpt4", "newbing")
    answers = dict(zip(names, judged, strict=False))
    fields = {f"answer_{name}": (answers.get(name) or (None, None))[0] for name in names}
    fields |= {f"judge_{name}": (answers.get(name) or (None, None))[1] for name in names}
    return {"question": "when was it", "golden_answer": golden, "improper": improper, **fields}


@pytest.fixture
def data(tmp_path):
    entries = [
        entry("1985/in 1985", ("1985", True), ("in 1985", True), ("the mid eighties", True), ("1976", False)),
        entry("two", ("2", True), ("not two", False), ("", False), ("3", False), ("one", None)),
        entry("x", ("x", True), ("y", False), improper=True),
    ]
    (tmp_path / EVOUNA).parent.mkdir()
    (tmp_path / EVOUNA).write_text(json.dumps(entries))
    return tmp_path


def test_judged_answers_are_counted(data):
    labelled = evouna(data)
    # Without the improper question, the empty answer and the one that nobody judged.
    assert [(one.system, one.answer) for one in labelled if one.question.id == "e1"] == [
        ("FiD", "2"),
        ("GPT-3.5", "not two"),
        ("GPT-4", "3"),
    ]
    quality = quality_of(judge_by_words(labelled), "here")
    assert (quality.right, quality.right_called_right, quality.wrong, quality.wrong_called_wrong) == (4, 3, 3, 2)
    assert [len(half) for half in halves(judge_by_words(labelled))] == [4, 3]


def test_what_the_command_says_and_writes(data, tmp_path):
    out = tmp_path / "quality.json"
    done = CliRunner().invoke(
        app, ["eval", "calibrate", "--data", str(data), "--out", str(out)], env={"COLUMNS": "200"}
    )
    assert done.exit_code == 0, done.output
    assert "lexical beside people" in done.output
    assert "best_subspan_em, by whole words beside people" in done.output
    quality = read_quality(out)
    # The LLMs alone: what FiD extracts is unlike their answers.
    assert (quality.right, quality.wrong, quality.grader, quality.version) == (2, 3, LEXICAL, lexical_version())
    assert quality.not_for == CONSTRUCTED


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ([], "give either --data"),
        (["--data", ".", "--labels", "x"], "give either --data"),
        (["--data", "nowhere"], "--data nowhere lacks"),
        (["--labels", "nowhere"], "--labels nowhere cannot be read"),
        (["--labels", "x", "--limit", "0"], "--limit must be above 0"),
    ],
)
def test_options_that_cannot_be(options, told):
    done = CliRunner().invoke(app, ["eval", "calibrate", *options], env={"COLUMNS": "200"})
    assert (done.exit_code, told in done.output) == (2, True), done.output


def test_a_limit_draws_the_same_answers_each_time(data):
    options = ["eval", "calibrate", "--data", str(data), "--limit", "6"]
    first, second = (CliRunner().invoke(app, options, env={"COLUMNS": "200"}).output for _ in range(2))
    assert first == second


def test_own_labels(tmp_path):
    file = tmp_path / "labels.jsonl"
    good = {"question": "q", "answers": ["a"], "answer": "it is a", "right": True}
    file.write_text(json.dumps(good) + "\n\n" + json.dumps(good | {"question": "r"}) + "\n" + json.dumps(good))
    assert [one.question.id for one in own_labels(file)] == ["e0", "e1", "e0"]
    for wrong in (
        {"right": "yes"},
        {"answers": "a"},
        {"answers": []},
        {"answers": [1]},
        {"answer": None},
        {"documents": "a"},
    ):
        file.write_text(json.dumps(good) + "\n" + json.dumps(good | wrong))
        with pytest.raises(ConfigError, match="line 2"):
            own_labels(file)
    file.write_text("{")
    with pytest.raises(ConfigError, match="line 1 is no JSON"):
        own_labels(file)


def test_one_kind_alone_measures_nothing():
    with pytest.raises(ConfigError, match="one kind alone"):
        quality_of([Judged("e0", "s", True, True)], "here")


def test_answers_to_one_question_count_less():
    """Four answers that always err together tell as much as one."""
    together = [Judged(f"e{number}", f"s{copy}", True, number % 2 == 0) for number in range(100) for copy in range(4)]
    alone = [Judged(f"e{number}", "s", True, number % 2 == 0) for number in range(100)]
    wrong = [Judged("w", "s", False, False)]
    assert quality_of(together + wrong, "here").alike == pytest.approx(4.0)
    assert quality_of(alone + wrong, "here").alike == 1.0


def test_quality_files_say_what_is_wrong(tmp_path):
    file = tmp_path / "quality.json"
    quality = GraderQuality(10, 8, 10, 9, "here", "judge:x")
    write_quality(file, quality)
    assert read_quality(file) == quality
    assert qualities([file]) == {LEXICAL: shipped_quality(), "judge:x": quality}
    content = json.loads(file.read_text())
    for wrong, told in (
        ({"right": 0, "right_called_right": 0}, "must be counts"),
        ({"right_called_right": 11}, "must be counts"),
        ({"wrong": "many"}, "must be counts"),
        ({"more": 1}, "is not what"),
        ({"right_called_right": 2, "wrong_called_wrong": 3}, "no better than chance"),
    ):
        file.write_text(json.dumps(content | wrong))
        with pytest.raises(ConfigError, match=f"--grader-quality .*{told}"):
            read_quality(file)
    file.write_text("[]")
    with pytest.raises(ConfigError, match="is not what"):
        read_quality(file)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_quality(tmp_path / "none.json")


def test_what_is_shipped_was_measured_with_this_grader():
    """Where the grader grades a probe otherwise, its quality must be measured anew: `fathom eval calibrate --out`."""
    assert len(probes()) >= 100
    assert shipped_quality().version == lexical_version()


@pytest.mark.parametrize(
    ("answer", "accepted", "by_characters", "by_whole_words"),
    [
        ("It was in 1905.", ("5",), True, False),
        ("The Eiffel-Tower", ("eiffeltower",), True, True),
        ("an apple", ("the apple",), True, True),
        ("cells", ("cell",), True, False),
        ("cell", ("cells",), False, False),
        ("anything", ("the", "?"), False, False),
    ],
)
def test_the_plain_measure(answer, accepted, by_characters, by_whole_words):
    assert has_subspan(answer, accepted) == by_characters
    assert has_subspan(answer, accepted, whole_words=True) == by_whole_words
    assert squad_normalised("The  U.S., a 'Union'") == "us union"


@pytest.fixture(scope="module")
def four():
    """What EVOUNA has of the four LLMs."""
    return [one for one in evouna(Path(REAL_DATA)) if one.system in LLMS]


@real
def test_the_plain_measure_is_as_published(four):
    quality = quality_of([called(one, has_subspan(one.answer, one.question.answers)) for one in four], "")
    assert len(four) == 12_076
    assert quality.right / len(four) == pytest.approx(1 - HUMAN_ERROR, abs=0.0005)
    assert quality.sensitivity == pytest.approx(PUBLISHED_SENSITIVITY, abs=0.0005)
    assert quality.specificity == pytest.approx(PUBLISHED_SPECIFICITY, abs=0.0005)


@real
def test_the_lexical_grader_on_the_real_answers(four):
    judged = judge_by_words(four)
    quality, shipped = quality_of(judged, ""), shipped_quality()
    assert quality.sensitivity == pytest.approx(PUBLISHED_SENSITIVITY, abs=0.005)
    assert quality.specificity == pytest.approx(PUBLISHED_SPECIFICITY, abs=0.005)
    counts = ("right", "right_called_right", "wrong", "wrong_called_wrong", "alike")
    assert [getattr(quality, name) for name in counts] == [getattr(shipped, name) for name in counts]
    even, odd = halves(judged)
    # Of the odd questions no answer was looked at when spellings were made alike.
    assert quality_of(odd, "").sensitivity == pytest.approx(0.789, abs=0.0005)
    assert quality_of(odd, "").specificity == pytest.approx(0.956, abs=0.0005)
    for measured, rest in ((odd, even), (even, odd)):
        found = corrected_rate(called_right(rest), quality_of(measured, ""))
        error_by_people = sum(not one.right for one in rest) / len(rest)
        assert 1 - found["high"] <= error_by_people <= 1 - found["low"]
        assert 1 - found["high"] <= HUMAN_ERROR <= 1 - found["low"]
