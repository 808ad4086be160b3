"""The summary against figures worked out by hand."""

import io
import json

import pytest
from evals_rows import abstained, failed, hallucinated, sample, sweep
from rich.console import Console

from evals.records import ESTIMATED, SERVED, RunNote
from evals.summary import data_size, milliseconds, summarise, summary_table
from loadtest.latency import FORMULAS

# Ten samples at one budget: 4 correct, 2 + 1 hallucinated, 1 + 1 abstained, 1 lost.
POINT = [
    *(sample(budget=256, question_id=f"right{i}", cluster=f"a{i}", gold_in_context=True) for i in range(4)),
    hallucinated(budget=256, question_id="read", cluster="b", gold_in_context=True, hallucination_kind="distractor"),
    hallucinated(budget=256, question_id="made up", cluster="b"),
    hallucinated(budget=256, question_id="no such fact", cluster="c", answers=(), question_kind="unanswerable"),
    abstained(budget=256, question_id="silent", cluster="c"),
    abstained(budget=256, question_id="rightly silent", cluster="d", answers=(), question_kind="unanswerable"),
    failed(budget=256, question_id="lost", cluster="d"),
]


def only_point(rows):
    (series,) = summarise(rows)["models"]
    (point,) = series["points"]
    return point


def test_verdicts_are_shares_of_all_that_were_asked():
    point = only_point(POINT)
    assert (point["n"], point["unscored"], point["errors"]) == (10, 1, 1)
    assert [point[verdict]["rate"] for verdict in ("correct", "hallucinated", "abstained")] == [4 / 10, 3 / 10, 2 / 10]
    assert {point[verdict]["n"] for verdict in ("correct", "hallucinated", "abstained")} == {10}
    assert point["lost"] == {"failed": 1, "truncated": 0, "empty": 0, "ungraded": 0}
    assert point["hallucinated_of_answered"]["rate"] == 3 / 7
    assert point["hallucinated"]["low"] < 3 / 10 < point["hallucinated"]["high"]


def test_recall_is_over_answerable_questions_answered_or_not():
    assert only_point(POINT)["recall"]["rate"] == 5 / 8


def test_splits():
    point = only_point(POINT)
    present, absent = point["gold"]["present"], point["gold"]["absent"]
    assert (present["n"], present["hallucinated"]["rate"]) == (5, 1 / 5)
    assert (absent["n"], absent["unscored"], absent["hallucinated"]["rate"]) == (3, 1, 1 / 3)
    assert point["unanswerable"]["hallucinated"] == point["unanswerable"]["abstained"]
    assert point["unanswerable"]["n"] + point["answerable"]["n"] == 10
    assert point["answerable"]["abstained"]["rate"] == 1 / 8
    assert point["hallucination_kinds"] == {"conflict": 0, "distractor": 1, "fabricated": 2}
    assert {kind: part["n"] for kind, part in point["question_kinds"].items()} == {"fact": 8, "unanswerable": 2}


def test_what_words_do_not_judge_is_in_no_share():
    ungraded = sample(question_id="b", verdict="unscored", first_line_verdict="unscored", lost="ungraded")
    empty = sample(question_id="c", answer="", verdict="unscored", first_line_verdict="unscored", lost="empty")
    point = only_point([sample(question_id="a", finish_reason="length"), ungraded, empty])
    assert (point["n"], point["correct"]["n"], point["correct"]["rate"]) == (3, 2, 0.5)
    assert (point["lost"]["ungraded"], point["lost"]["empty"], point["at_limit"]) == (1, 1, 1)


def test_the_first_line_has_its_own_verdicts():
    rows = [sample(question_id="a", first_line_verdict="hallucinated"), sample(question_id="b")]
    point = only_point(rows)
    assert (point["correct"]["rate"], point["first_line"]["correct"]["rate"]) == (1.0, 0.5)


def test_latencies_leave_failures_out_and_memory_takes_the_peak():
    rows = [
        sample(question_id="a", ttft_s=0.1, tpot_s=None, e2e_s=1.0, peak_bytes=4000),
        sample(question_id="b", ttft_s=0.3, tpot_s=0.02, e2e_s=2.0, peak_bytes=None, kv_bytes=1000, state_bytes=None),
        sample(question_id="c", ttft_s=0.5, tpot_s=0.04, e2e_s=3.0, peak_bytes=None, kv_bytes=None, state_bytes=1000),
        failed(question_id="d", ttft_s=9.0),
    ]
    point = only_point(rows)
    assert (point["ttft_s"]["p50"], point["ttft_s"]["n"]) == (0.3, 3)
    assert (point["tpot_s"]["p50"], point["tpot_s"]["n"]) == (pytest.approx(0.03), 2)
    assert point["e2e_s"]["mean"] == 2.0
    assert point["cache_bytes"] == {"mean": 2000.0, "min": 1000, "max": 4000}
    assert point["kv_bytes"]["mean"] == point["state_bytes"]["mean"] + 500 == 1000.0


def test_what_was_not_measured_is_none():
    point = only_point([failed()])
    assert point["n"] == point["unscored"] == 1
    nothing = {"rate": None, "low": None, "high": None, "n": 0}
    assert point["correct"] == point["hallucinated"] == point["gold"]["present"]["abstained"] == nothing
    assert point["ttft_s"]["p50"] is point["cache_bytes"]["mean"] is point["prompt_tokens_mean"] is None
    assert point["recall"]["rate"] == 0.0
    assert only_point([sample(answers=())])["recall"]["rate"] is None


def test_an_endpoint_without_figures_has_no_memory_rather_than_none_used():
    bare = sample(kv_bytes=None, state_bytes=None, peak_bytes=None, prompt_tokens=None)
    point = only_point([bare])
    assert point["cache_bytes"] == {"mean": None, "min": None, "max": None}
    assert point["prompt_tokens_mean"] is None


def test_against_closed_book_by_question():
    closed = [hallucinated(budget=0, question_id=f"q{i}", cluster=f"c{i}") for i in range(4)]
    opened = [sample(budget=512, question_id=f"q{i}", cluster=f"c{i}") for i in range(3)]
    lost = failed(budget=512, question_id="q3", cluster="c3")
    other = sample(budget=512, question_id="not asked before", cluster="c9")
    (series,) = summarise([*closed, *opened, lost, other])["models"]
    floor, point = series["points"]
    assert floor["vs_closed_book"] is None
    change = {"difference": -1.0, "low": -1.0, "high": -1.0, "n_pairs": 3, "equivalent_within": 1.0}
    # Two of the eight ways to exchange three outcomes are as extreme.
    assert point["vs_closed_book"] == {**change, "p_value": 0.25, "p_adjusted": 0.25}
    assert only_point(opened)["vs_closed_book"] is None


def test_series_and_points_are_in_order():
    summary = summarise(sweep(num_questions=6))
    keys = [(one["model"], one["kind"], one["permission"]) for one in summary["models"]]
    assert keys == [
        ("embedded:mamba", "mamba", "must_answer"),
        ("embedded:mamba", "mamba", "may_abstain"),
        ("embedded:transformer", "transformer", "must_answer"),
        ("embedded:transformer", "transformer", "may_abstain"),
    ]
    for one in summary["models"]:
        assert [point["budget"] for point in one["points"]] == [0, 256, 1024, 4096]


def test_the_schema_is_json_with_its_definitions():
    load = {"schema": "fathom.load/1", "model": "m"}
    summary = summarise(POINT, [load])
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    assert summary["schema"] == "fathom.summary/1"
    assert summary["load"] == [load]
    assert summary["definitions"]["ttft_s"] == FORMULAS["ttft_s"]
    assert summarise([]) | {"definitions": {}} == {
        "schema": "fathom.summary/1",
        "models": [],
        "load": [],
        "lm": [],
        "definitions": {},
    }


def test_a_series_says_how_it_was_counted_and_asked():
    rows = [sample(), sample(model="other"), sample(permission="may_abstain")]
    summary = summarise(rows, notes={("m", "world"): RunNote(ESTIMATED, ("asked oddly",))})
    assert [(one["model"], one["counting"], one["request_changes"]) for one in summary["models"]] == [
        ("m", ESTIMATED, ["asked oddly"]),
        ("m", ESTIMATED, ["asked oddly"]),
        ("other", None, []),
    ]
    text = printed(summary)
    assert text.count("m: documents are counted by an estimate: bytes / 3.") == text.count("m: asked oddly.") == 1
    counted = summarise(rows, notes={("m", "world"): RunNote(SERVED)})
    assert "counted by" not in printed(counted)


def test_a_question_asked_twice_is_refused():
    with pytest.raises(ValueError, match=r"twice.*budget 0"):
        summarise([sample(), sample()])


def printed(summary):
    console = Console(file=io.StringIO(), width=80)
    console.print(summary_table(summary))
    return console.file.getvalue()


def test_the_table_shows_every_figure_in_80_columns():
    text = printed(summarise(sweep()))
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "\u2026" not in text
    line = next(line for line in printed(summarise(POINT)).splitlines() if line.strip().startswith("256"))
    cells = "256 10 1 100 62.5 40.0 30.0 [8-67] 20.0 500 100 1.5 KiB"
    assert line.split() == cells.split()


def test_the_table_of_nothing_and_of_odd_names():
    assert "no samples" in printed(summarise([]))
    text = printed(summarise([failed(model="[red]m[/red]")]))
    assert "[red]m[/red]" in text


@pytest.mark.parametrize(
    ("size", "expected"),
    [(None, "-"), (0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (2**20 * 300, "300 MiB"), (2**31, "2.00 GiB")],
)
def test_sizes(size, expected):
    assert data_size(size) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"), [(None, "-"), (0.00123, "1.23"), (0.0123, "12.3"), (0.123, "123"), (12.0, "12000")]
)
def test_milliseconds(seconds, expected):
    assert milliseconds(seconds) == expected
