"""The report: one offline file, figures from the data, every figure with its samples, hostile answers harmless."""

import base64
import hashlib
import re

import pytest
from evals_rows import abstained, failed, hallucinated, sample, sweep
from report_page import Page

from evals.records import ESTIMATED, Document, RunNote
from evals.report import build
from evals.report.browser import browser_data, shorten, size_of
from evals.report.build import MAX_BYTES, render, write_report
from evals.report.headline import find_stories, headline, whole_percent
from evals.summary import summarise

HOSTILE = '<script>alert("x")</script><img src=https://evil.example/a onerror=alert(1)>"\'></svg>{{ 7 * 7 }}'
LOAD = {
    "schema": "fathom.load/1",
    "model": "embedded:mamba",
    "config": {"context_tokens": 1024},
    "client": {"offered_rps": 4.0, "achieved_rps": 3.5},
    "requests": {"dispatched": 120, "completed": 118, "failed": 2},
    "latency": {"ttft_s": {"completed": {"p50": 0.05, "p99": 0.31}}},
    "verdict": {"trustworthy": False, "reasons": ["achieved load 3.50/s is below the offered 4.00/s"]},
}


def page_of(rows, load=()):
    return Page(render(rows, summarise(rows, load)).decode())


@pytest.fixture(scope="module")
def page():
    return page_of(sweep(), [LOAD])


def test_one_file_without_network(tmp_path):
    rows = sweep()
    path = write_report(tmp_path / "new", rows, summarise(rows, [LOAD]))
    assert path == tmp_path / "new" / "report.html"
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]
    text = path.read_text(encoding="utf-8")
    assert path.stat().st_size <= MAX_BYTES
    assert not re.search(r"https?:|//[a-z]+\.[a-z]|@import|url\(", text)
    page = Page(text)
    assert {"link", "img", "iframe", "object", "embed"}.isdisjoint(tag for tag, _ in page.tags)
    assert not page.values("src", "srcset", "xlink:href", "action")
    assert all(value.startswith("#") for value in page.values("href"))


def test_the_one_script_is_the_one_that_the_policy_allows(page):
    [policy] = [value for value in page.values("content") if "default-src 'none'" in (value or "")]
    digest = base64.b64encode(hashlib.sha256(page.scripts["code"].encode()).digest()).decode()
    assert policy.endswith(f"script-src 'sha256-{digest}'")
    kinds = [attributes.get("type") for tag, attributes in page.tags if tag == "script"]
    assert kinds == ["application/json"] * 3 + [None]


def test_every_link_leads_somewhere_and_every_point_has_one(page):
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    links = {value.removeprefix("#") for value in page.values("href")}
    assert links <= set(ids)
    points = {f"p{series}-{place}" for series in range(4) for place in range(4)}
    assert points <= links


def test_dots_of_the_charts_link_and_tell(page):
    charts = [attrs for tag, attrs in page.tags if tag == "svg" and "chart" in (attrs.get("class") or "")]
    # Rates, parts, split, recall, TTFT, memory, TPOT, what is worth it, and what became of each model's questions.
    assert len(charts) == 10
    first = summarise(sweep())["models"][0]["points"][1]["hallucinated"]
    assert f"embedded:mamba, 256 tokens of documents: {100 * first['rate']:.1f} [" in page.text


def test_the_headline_is_computed():
    closed = [hallucinated(budget=0, question_id=f"q{i}", cluster=f"c{i}") for i in range(8)]
    best = [(hallucinated if i < 2 else sample)(budget=512, question_id=f"q{i}", cluster=f"c{i}") for i in range(8)]
    worse = [(hallucinated if i < 4 else sample)(budget=1024, question_id=f"q{i}", cluster=f"c{i}") for i in range(8)]
    page = page_of([*closed, *worse, *best])
    assert "With documents, hallucination goes from 100% to 25% for m at 512 tokens (50% at 1,024)." in page.text
    assert "\N{MINUS SIGN}75.0 points [" in page.text
    assert "at 1,024 tokens 50.0% [21.5, 78.5]" in page.text


def test_the_headline_prefers_always_to_answer_and_needs_two_budgets():
    rows = sweep(num_questions=6)
    assert {story.permission for story in find_stories(summarise(rows))} == {"must_answer"}
    only_free = [row for row in rows if row.permission == "may_abstain"]
    assert {story.permission for story in find_stories(summarise(only_free))} == {"may_abstain"}
    one_budget = [row for row in rows if row.budget == 256]
    assert "no effect of context length" in headline(find_stories(summarise(one_budget)))


def test_without_closed_book_the_headline_claims_no_change():
    rows = [row for row in sweep(num_questions=6) if row.budget > 0]
    text = headline(find_stories(summarise(rows)))
    assert "from" not in text
    assert "embedded:mamba at" in text


@pytest.mark.parametrize(
    ("share", "text"), [(0.0, "0%"), (0.001, "0.1%"), (0.254, "25%"), (0.997, "99.7%"), (1.0, "100%")]
)
def test_shares_in_running_text_are_never_rounded_to_none_or_all(share, text):
    assert whole_percent(share) == text


def test_hostile_text_stays_text():
    rows = [
        hallucinated(
            model=HOSTILE,
            dataset=HOSTILE,
            budget=budget,
            question_id=HOSTILE,
            question=HOSTILE,
            answers=(HOSTILE,),
            gold_ids=(HOSTILE,),
            doc_ids=(HOSTILE, "d2"),
            answer=HOSTILE,
        )
        for budget in (0, 256)
    ]
    rows.append(failed(model=HOSTILE, dataset=HOSTILE, budget=256, question_id="b", error=HOSTILE))
    load = {**LOAD, "model": HOSTILE, "verdict": {"trustworthy": False, "reasons": [HOSTILE]}}
    page = page_of(rows, [load])
    assert "img" not in {tag for tag, _ in page.tags}
    assert [tag for tag, _ in page.tags].count("script") == 4
    assert page.samples["questions"][1][2] == HOSTILE
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]
    assert page.tags.count(("html", {"lang": "en"})) == 1
    assert "alert(1)" in page.text
    assert "{{ 7 * 7 }}" in page.text


def test_samples_are_there_with_what_they_rest_on():
    rows = [
        hallucinated(
            budget=256,
            question="Which river crosses Castor?",
            answer="the Ovel",
            answers=("Tarn",),
            gold_ids=("gold-doc",),
            doc_ids=("other-doc", "gold-doc", "unknown"),
            hallucination_kind="distractor",
        ),
        abstained(budget=256, question_id="q1", answers=(), gold_ids=(), answer="I don't know."),
        failed(budget=256, question_id="q2", error="HTTP 503: engine lost"),
    ]
    texts = {
        "world": {name: Document(name, f"title of {name}", f"text of {name}") for name in ("other-doc", "gold-doc")}
    }
    data = browser_data(rows, texts, MAX_BYTES)
    # What failed comes first: of the few nobody would find them.
    assert [question[1] for question in data["questions"]] == ["q2", "q0", "q1"]
    sample = data["samples"][1]
    assert sample[5:8] == ["hallucinated", "distractor", "the Ovel"]
    assert [data["documents"][place] for place in data["contexts"][sample[8]]] == [
        ["other-doc", "title of other-doc", "text of other-doc"],
        ["gold-doc", "title of gold-doc", "text of gold-doc"],
        ["unknown", None, None],
    ]
    assert data["samples"][0][11] == "HTTP 503: engine lost"
    assert (data["shown"], data["total"]) == (3, 3)


def test_as_many_questions_as_there_is_room_for():
    rows = [
        hallucinated(question_id=f"q{i:02}", budget=budget, answer="word " * 50, doc_ids=(f"d{i}", "shared"))
        for i in range(40)
        for budget in (0, 256, 512)
    ]
    texts = {"world": {name: Document(name, "t", "x" * 400) for name in ("shared", *(f"d{i}" for i in range(40)))}}
    whole = browser_data(rows, texts, MAX_BYTES)
    assert (whole["shown"], len(whole["samples"]), len(whole["documents"])) == (40, 120, 41)
    for room in (10_000, 20_000, 30_000):
        data = browser_data(rows, texts, room)
        assert 0 < data["shown"] < 40
        assert size_of(data) <= room
        assert len(data["samples"]) == 3 * data["shown"]
        # A text is there if a sample has it, and no other.
        used = {place for sample in data["samples"] for place in data["contexts"][sample[8]]}
        assert used == set(range(len(data["documents"])))
    assert browser_data(rows, texts, 0)["samples"] == []


def test_what_is_left_out_is_said(monkeypatch):
    rows = [hallucinated(question_id=f"q{i}", budget=256, answer="word " * 100) for i in range(50)]
    summary = summarise(rows)
    whole = len(render(rows, summary))
    assert "of 50 questions" not in Page(render(rows, summary).decode()).text
    monkeypatch.setattr(build, "MAX_BYTES", whole - 10_000)
    smaller = render(rows, summary)
    assert len(smaller) < whole - 10_000
    page = Page(smaller.decode())
    assert f"{page.samples['shown']} of 50 questions, with all their samples" in page.text
    monkeypatch.setattr(build, "MAX_BYTES", 1000)
    with pytest.raises(ValueError, match="does not fit into 1000 bytes"):
        render(rows, summary)


def test_a_long_text_says_how_much_is_left_out():
    assert shorten("x" * 1834, 600) == "x" * 600 + " … (1,234 more characters)"
    assert shorten("x" * 600, 600) == "x" * 600


def test_the_load_test_stands_beside_with_its_distrust(page):
    assert "118 of 120" in page.text
    assert "4.00" in page.text
    assert "not trustworthy" in page.text
    assert "Under load" not in page_of(sweep(num_questions=2)).text


def test_nothing_measured_shows_as_a_dash_and_says_so():
    page = page_of([failed(budget=budget, question_id="q") for budget in (0, 256)])
    assert "The endpoint reports no memory figures." in page.text
    assert "no effect of context length" in page.text
    assert "nan" not in page.text.lower().split()


def test_without_token_counts_the_budget_is_the_axis():
    rows = [sample(budget=budget, prompt_tokens=None) for budget in (0, 256, 1024)]
    assert "so the budget stands for the context length" in page_of(rows).text


def test_an_estimate_and_an_odd_request_are_captioned():
    rows = [sample(budget=budget) for budget in (0, 256)]
    summary = summarise(rows, notes={("m", "world"): RunNote(ESTIMATED, (HOSTILE,))})
    text = Page(render(rows, summary).decode()).text
    assert "m: documents are counted by an estimate: bytes / 3." in text
    assert f"m: {HOSTILE}." in text
    assert "m: documents are counted" not in page_of(rows).text


def test_a_warm_prefix_cache_is_named():
    cold = [sample(budget=budget, prompt_tokens=budget + 50, cached_tokens=0) for budget in (0, 256)]
    warm = [sample(budget=512, prompt_tokens=500, cached_tokens=300)]
    assert "warm cache" not in page_of(cold).text
    assert "up to 60% of a point" in page_of(cold + warm).text


def test_an_empty_run_makes_a_page():
    assert "no effect of context length" in page_of([]).text


def test_definitions_and_formulas_are_printed(page):
    for name, text in summarise([])["definitions"].items():
        assert name in page.text
        assert re.sub(r"\s+", " ", text) in page.text
