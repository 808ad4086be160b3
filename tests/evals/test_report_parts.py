"""The parts of the report that only some runs have: each shows what was measured, and is not there otherwise."""

import pytest
from evals_rows import hallucinated, sample, sweep
from fakes_endpoint import MODEL, Planted, serving
from report_page import Page

from evals.compare import compare, read_side
from evals.compare_page import write_page
from evals.config import RunConfig
from evals.fingerprint import Fingerprint
from evals.manifest import Origin
from evals.output import write_outputs
from evals.records import Judgement
from evals.report.build import render
from evals.runner import run_evals
from evals.store import Store
from evals.summary import summarise

HEADINGS = ("How it was made", "How costs grow", "Graders", "Doubt", "lm-eval", "against", "Retrieval")


def read_answer(prompt):
    """Right of every other person, if a document names the town."""
    person = prompt.rpartition("does ")[2].partition(" live")[0]
    place = prompt.find(f"{person} lives in ")
    is_read = place >= 0 and int(person.removeprefix("Person")) % 2
    return prompt[place:].split()[3] if is_read else "Atlantis"


def page_of(summary, rows=()):
    return Page(render(rows, summary).decode())


def headings(page):
    """The texts of the page's headings."""
    return [text for tag, text in page.headings if tag in ("h2", "h3")]


async def test_a_whole_run_shows_how_it_was_made_and_what_its_doubt_was(dataset, tmp_path):
    planted = Planted(answer=read_answer, logprob=lambda _, word: -0.1 if word.startswith("Town") else -2.0)
    options = {"model": MODEL, "budgets": (0, 60, 200), "num_questions": 12, "scrape_interval_s": 0, "logprobs": True}
    conditions = ("oracle", "natural", "gold+distractors", "no-gold")
    async with serving(planted) as url:
        config = RunConfig(endpoint=url, out=tmp_path, conditions=conditions, draws=2, **options)
        await run_evals([config], dataset, origin=Origin("own", tmp_path))
    _, file = write_outputs(tmp_path)
    page = Page(file.read_text(encoding="utf-8"))
    found = headings(page)
    assert {"How it was made", "Doubt", "Retrieval", f"Dataset {dataset.name}"} <= set(found)
    assert "What the documents do" in page.text
    assert dataset.digest in page.text
    assert "support is among them (recall@k) 100.0" in page.text
    # Wrong answers have the lower log probability, every one of them.
    assert "1.00 [1.00, 1.00]" in page.text


def test_what_was_not_measured_is_not_there():
    found = headings(page_of(summarise(sweep(num_questions=4))))
    assert not [heading for heading in found for name in HEADINGS if name in heading and name != "How costs grow"]


def test_growth_says_its_exponent():
    rows = [
        sample(
            question_id=f"q{i}", cluster=f"c{i}", budget=2**k, prompt_tokens=2**k, ttft_s=1e-6 * 4**k, cached_tokens=0
        )
        for k in range(8, 13)
        for i in range(6)
    ]
    page = page_of(summarise(rows))
    assert "How costs grow" in headings(page)
    assert "2.00 [2.00, 2.00]" in page.text


def test_graders_stand_beside_the_words():
    rows = [
        (hallucinated if number < 4 else sample)(dataset="nq", question_id=f"q{number}", cluster=f"c{number}")
        for number in range(12)
    ]
    judged = [
        Judgement(
            **{name: getattr(row, name) for name in ("model", "dataset", "condition", "permission", "budget")},
            question_id=row.question_id,
            grader="a judge",
            verdict="correct",
            score=1.0,
            detail="",
            error=None,
        )
        for row in rows
    ]
    summary = summarise(rows, judgements=judged)
    page = page_of(summary)
    assert "Graders" in headings(page)
    corrected = summary["models"][0]["points"][0]["corrected"]
    assert corrected["rate"] < 1 / 3 == pytest.approx(corrected["raw"])
    assert f"{100 * corrected['rate']:.1f} [{100 * corrected['low']:.1f}" in page.text
    assert "a judge 12 0.0 - 66.7" in page.text


def test_two_models_on_one_page(tmp_path):
    with Store(tmp_path) as store:
        for row in sweep(num_questions=20):
            store.check_run(row.model, row.dataset, Fingerprint({"--seed or --data": "one"}, {"kind": row.kind}))
            store.put(row)
    sides = [read_side(tmp_path, f"embedded:{name}", option="--models") for name in ("transformer", "mamba")]
    found = compare(*sides)
    page = Page(write_page(tmp_path / "new", *sides, found).read_text(encoding="utf-8"))
    assert "embedded:mamba against embedded:transformer" in headings(page)
    point = next(point for point in found["points"] if (point["budget"], point["permission"]) == (4096, "must_answer"))
    assert f"{100 * point['hallucinated']['difference']:+.1f}" in page.text
    # Both models' answers stand side by side in the browser of samples.
    assert {values[1] for values in page.samples["samples"]} == {"embedded:mamba", "embedded:transformer"}


def test_one_model_twice_has_two_names(tmp_path):
    for place, make in (("before", hallucinated), ("after", sample)):
        with Store(tmp_path / place) as store:
            for number in range(6):
                row = make(question_id=f"q{number}", cluster=f"c{number}", budget=256)
                store.check_run(row.model, row.dataset, Fingerprint({"--seed or --data": "one"}, {"kind": row.kind}))
                store.put(row)
    sides = [read_side(tmp_path / place, None, option="--models") for place in ("before", "after")]
    page = Page(write_page(tmp_path, *sides, compare(*sides)).read_text(encoding="utf-8"))
    assert "m (b) against m (a)" in headings(page)
    assert "\N{MINUS SIGN}100.0" in page.text
