"""The report: one offline file, figures from the data, every figure with its samples, hostile answers harmless."""

import re
from html.parser import HTMLParser

import pytest
from evals_rows import abstained, failed, hallucinated, sample, sweep

from evals.records import ESTIMATED, RunNote
from evals.report import build
from evals.report.build import MAX_BYTES, render, write_report
from evals.report.headline import find_stories, headline, whole_percent
from evals.report.samples import MAX_TEXT, groups, shorten
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


class Page(HTMLParser):
    """Tags, attributes and text of a page, as a browser would read them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.chunks: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.chunks.append(data)

    def values(self, *names):
        return [value for _, attrs in self.tags for name, value in attrs.items() if name in names]

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.chunks))


def page_of(rows, load=()):
    return Page(render(rows, summarise(rows, load)).decode())


@pytest.fixture(scope="module")
def page():
    return page_of(sweep(), [LOAD])


def test_one_file_without_network_or_script(tmp_path):
    rows = sweep()
    path = write_report(tmp_path / "new", rows, summarise(rows, [LOAD]))
    assert path == tmp_path / "new" / "report.html"
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]
    text = path.read_text(encoding="utf-8")
    assert path.stat().st_size <= MAX_BYTES
    assert not re.search(r"https?:|//[a-z]+\.|@import|url\(", text)
    page = Page(text)
    assert {"script", "link", "img", "iframe", "object", "embed"}.isdisjoint(tag for tag, _ in page.tags)
    assert not page.values("src", "srcset", "xlink:href", "action")
    assert all(value.startswith("#") for value in page.values("href"))
    assert any("default-src 'none'" in (value or "") for value in page.values("content"))


def test_every_link_leads_somewhere_and_every_point_has_one(page):
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    links = {value.removeprefix("#") for value in page.values("href")}
    assert links <= set(ids)
    points = {f"p{series}-{place}" for series in range(4) for place in range(4)}
    assert points <= links


def test_dots_of_the_charts_link_and_tell(page):
    charts = [attrs for tag, attrs in page.tags if tag == "svg" and "chart" in (attrs.get("class") or "")]
    # Rates, split, TTFT, memory, and what became of the questions for each of two models.
    assert len(charts) == 6
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
    assert {"script", "img"}.isdisjoint(tag for tag, _ in page.tags)
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]
    assert page.tags.count(("html", {"lang": "en"})) == 1
    assert "alert(1)" in page.text
    assert "{{ 7 * 7 }}" in page.text


def test_samples_are_shown_with_what_they_rest_on():
    rows = [
        hallucinated(
            budget=256,
            question="Which river crosses Castor?",
            answer="the Ovel",
            answers=("Tarn",),
            gold_ids=("gold-doc",),
            doc_ids=("other-doc", "gold-doc"),
            hallucination_kind="distractor",
        ),
        abstained(budget=256, question_id="q1", answers=(), gold_ids=(), answer="I don't know."),
        failed(budget=256, question_id="q2", error="HTTP 503: engine lost"),
    ]
    page = page_of(rows)
    for text in ("Which river crosses Castor?", "the Ovel", "Tarn", "read in a document", "other-doc", "HTTP 503"):
        assert text in page.text
    assert "nothing: no document has the answer" in page.text
    assert "hallucinated: all 1" in page.text
    assert [chunk for chunk in page.chunks if chunk == "gold-doc"] == ["gold-doc"]
    assert [tag for tag, _ in page.tags].count("mark") == 1


def test_what_is_left_out_is_said():
    rows = [sample(question_id=f"q{i}") for i in range(60)]
    assert "correct: 50 of 60 shown" in page_of(rows).text
    (group,) = groups(rows, cap=7)
    assert (group.verdict, group.total, [view.row.question_id for view in group.shown]) == (
        "correct",
        60,
        [f"q{i}" for i in range(7)],
    )
    long = shorten("x" * (MAX_TEXT + 1234))
    assert long.startswith("x" * MAX_TEXT)
    assert long.endswith("(1,234 more characters)")
    assert shorten("x" * MAX_TEXT) == "x" * MAX_TEXT
    (group,) = groups([sample(doc_ids=tuple(f"d{i}" for i in range(40)), gold_ids=("d39",))], cap=1)
    (view,) = group.shown
    assert (view.documents[-1], view.documents_left_out) == (("d39", True), 40 - 17)


def test_a_report_that_grows_too_large_shows_fewer_samples(monkeypatch):
    rows = [
        hallucinated(question_id=f"{budget}-{i}", budget=budget, answer="word " * 100)
        for budget in (0, 256, 512)
        for i in range(50)
    ]
    summary = summarise(rows)
    whole = len(render(rows, summary))
    monkeypatch.setattr(build, "MAX_BYTES", whole - 1)
    smaller = render(rows, summary)
    assert len(smaller) < whole
    assert "hallucinated: 25 of 50 shown" in Page(smaller.decode()).text
    monkeypatch.setattr(build, "MAX_BYTES", 1000)
    with pytest.raises(ValueError, match="does not fit into 1000 bytes"):
        render(rows, summary)


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
