"""Whole runs against an endpoint whose true behaviour is known."""

import collections
import itertools

import pytest
from fakes_endpoint import MODEL, Planted, count_tokens, serving

from evals.config import ConfigError, RunConfig
from evals.prompts import render_document
from evals.runner import run_eval
from evals.store import Store
from evals.summary import summarise

BUDGETS = (0, 20, 60, 200)
NUM_QUESTIONS = 12


def read_answer(prompt: str) -> str:
    """What a perfect reader says: the town of the person asked for, if a document names it."""
    person = prompt.rpartition("does ")[2].partition(" live")[0]
    place = prompt.find(f"{person} lives in ")
    return prompt[place:].split()[3] if place >= 0 else "Atlantis"


def config_for(url, out, **options):
    return RunConfig(
        endpoint=url, model=MODEL, out=out, **{"budgets": BUDGETS, "num_questions": NUM_QUESTIONS} | options
    )


def rows_of(directory):
    with Store(directory) as store:
        return list(store.rows())


async def test_verdicts_of_a_perfect_reader(dataset, tmp_path):
    async with serving(Planted(answer=read_answer)) as url:
        result = await run_eval(config_for(url, tmp_path), dataset)
    assert (result.total, result.asked, result.failed, result.kind) == (48, 48, 0, "mamba")
    rows = rows_of(tmp_path)
    assert len(rows) == 48
    for row in rows:
        assert (row.verdict == "correct") == row.gold_in_context
        assert row.verdict in ("correct", "hallucinated")
        assert row.gold_in_context == (row.budget > 0), "BM25 puts the person's own document first"
        assert (row.kv_bytes, row.state_bytes, row.peak_bytes) == (0, 64, 64)
        assert row.ttft_s > 0
    [series] = summarise(rows)["models"]
    assert [point["hallucinated"]["rate"] for point in series["points"]] == [1, 0, 0, 0]
    assert [point["recall"]["rate"] for point in series["points"]] == [0, 1, 1, 1]


async def test_contexts_nest_and_keep_to_their_budget(dataset, tmp_path):
    planted = Planted()
    async with serving(planted) as url:
        await run_eval(config_for(url, tmp_path, concurrency=1), dataset)
    by_question = collections.defaultdict(list)
    for row in rows_of(tmp_path):
        by_question[row.question_id].append(row)
    texts = {document.id: render_document(document) for document in dataset.documents}
    for rows in by_question.values():
        rows.sort(key=lambda row: row.budget)
        assert [row.budget for row in rows] == list(BUDGETS)
        assert rows[0].doc_ids == ()
        for shorter, longer in itertools.pairwise(rows):
            assert longer.doc_ids[: len(shorter.doc_ids)] == shorter.doc_ids
        for row in rows:
            marginal = sum(count_tokens(texts[name]) - 2 for name in row.doc_ids)
            assert row.document_tokens == marginal <= row.budget
    # Ascending budgets of one question follow each other, so that a prefix cache pays.
    sizes = [len(body["messages"][-1]["content"]) for body in planted.asked]
    assert all(sizes[i] < sizes[i + 1] for i in range(len(sizes) - 1) if i % len(BUDGETS) != len(BUDGETS) - 1)


async def test_nothing_is_asked_twice(dataset, tmp_path):
    first, second = Planted(answer=read_answer), Planted(answer=read_answer)
    async with serving(first) as url:
        await run_eval(config_for(url, tmp_path, num_questions=5), dataset)
    before = rows_of(tmp_path)
    async with serving(second) as url:
        more = await run_eval(config_for(url, tmp_path, budgets=(0, 20, 40, 60, 200)), dataset)
        again = await run_eval(config_for(url, tmp_path, budgets=(0, 20, 40, 60, 200)), dataset)
    assert more.asked == len(second.asked) == 12 * 5 - 5 * 4
    assert again.asked == 0
    rows = rows_of(tmp_path)
    assert len(rows) == 60
    assert [row for row in rows if row in before] == before


async def test_failed_samples_are_kept_and_asked_again(dataset, tmp_path):
    async with serving(Planted(refusals=[400] * 5, answer=read_answer)) as url:
        first = await run_eval(config_for(url, tmp_path, concurrency=1), dataset)
        failures = [row for row in rows_of(tmp_path) if row.error]
        second = await run_eval(config_for(url, tmp_path), dataset)
    assert (first.failed, second.asked, second.failed) == (5, 5, 0)
    assert len(failures) == 5
    assert {row.verdict for row in failures} == {"unscored"}
    assert all(row.error is None for row in rows_of(tmp_path))


async def test_options_that_do_not_fit_are_named(dataset, tmp_path):
    async with serving(Planted(max_context=400)) as url:
        with pytest.raises(ConfigError, match=r"--budgets: 200 tokens of documents.* do not fit into the 400"):
            await run_eval(config_for(url, tmp_path), dataset)
    async with serving(Planted()) as url:
        with pytest.raises(ConfigError, match="--n 13 is more than the 12 questions of people"):
            await run_eval(config_for(url, tmp_path, num_questions=13), dataset)
        await run_eval(config_for(url, tmp_path, num_questions=1), dataset)
        with pytest.raises(ConfigError, match="--max-tokens was 32, now it is 8"):
            await run_eval(config_for(url, tmp_path, num_questions=1, max_tokens=8), dataset)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"endpoint": "localhost:8000"}, "--endpoint must be"),
        ({"budgets": (0, 64, 32)}, "--budgets must be ascending"),
        ({"budgets": (-1,)}, "--budgets must be ascending"),
        ({"budgets": ()}, "--budgets must be ascending"),
        ({"permissions": ("may_lie",)}, "--permission must be one of"),
        ({"num_questions": 0}, "--n must be above 0"),
        ({"concurrency": 0}, "--concurrency must be above 0"),
    ],
)
def test_bad_options_are_named(tmp_path, options, words):
    with pytest.raises(ConfigError, match=words):
        RunConfig(**{"endpoint": "http://x", "model": "m", "out": tmp_path} | options)


def test_the_key_is_not_shown(tmp_path):
    assert "secret" not in repr(RunConfig(endpoint="http://x", model="m", out=tmp_path, api_key="secret"))
