"""The synthetic tasks at any length: where the needle stands has nothing to do with how long the context is."""

import collections
import itertools

import numpy as np
import pytest
import scipy.stats
from fakes_endpoint import MODEL, Planted, serving

from evals.conditions import arrange, choose, corpus_of, depth_in, depth_of
from evals.config import RunConfig
from evals.datasets.needle import load_needle
from evals.retrieval import open_retriever
from evals.runner import run_eval
from evals.store import Store

KINDS = ("needle", "chain", "count")
LENGTHS = (8, 32, 128, 512)


@pytest.fixture(scope="module")
def needle():
    return load_needle(seed=3)


async def ask(dataset, out, **options):
    """Rows of a run with random distractors, of each kind by its number of documents."""
    common = {"unit": "documents", "retriever": "random", "conditions": ("gold+distractors",), "num_questions": 30}
    async with serving(Planted()) as url:
        config = RunConfig(endpoint=url, model=MODEL, out=out, index_cache=out, **common | options)
        assert (await run_eval(config, dataset)).failed == 0
    with Store(out) as store:
        return list(store.rows())


@pytest.mark.parametrize("depth", [0.0, 0.5, 1.0])
async def test_every_kind_has_its_documents_where_depth_says(needle, tmp_path, depth):
    rows = await ask(needle, tmp_path, budgets=(12, 60), depth=depth)
    assert collections.Counter(row.question_kind for row in rows) == {kind: 20 for kind in KINDS}
    for row in rows:
        assert row.gold_in_context
        assert len(row.doc_ids) == row.budget
        places = [row.doc_ids.index(gold) / (row.budget - 1) for gold in row.gold_ids]
        if row.question_kind == "needle":
            assert places == [pytest.approx(depth, abs=1 / row.budget)]
        else:
            # The first stands where it is told; the others are spread evenly from there on, around the end.
            wanted = [(depth + number / len(places)) % 1.0 if number else depth for number in range(len(places))]
            assert places == [pytest.approx(place, abs=4 / row.budget) for place in wanted]


async def test_nobody_but_the_gold_documents_answers(needle, tmp_path):
    """Leaks are documents with the answer's words: counts are small numbers, which stand in names and days."""
    rows = await ask(needle, tmp_path, budgets=(12, 60))
    assert {row.num_leaks for row in rows} == {0}
    depths = {row.question_id: row.depth for row in rows if row.question_kind == "needle" and row.budget == 60}
    assert max(depths.values()) - min(depths.values()) > 0.7


def test_depth_and_length_are_uncorrelated(needle):
    """Of all kinds, 600 questions at four lengths each, with the random retriever's own ranking."""
    retriever, corpus = open_retriever("random", needle.documents), corpus_of(needle, 0)
    pairs = collections.defaultdict(list)
    for number, question in enumerate(needle.questions[:600]):
        choice = choose("gold+distractors", question, retriever.ranking(question.text), corpus)
        filled = list(itertools.islice(choice.fill, LENGTHS[-1]))
        for length in LENGTHS:
            rest = filled[: length - len(choice.fixed)]
            documents = arrange(choice.fixed, rest, order="rank", depth=depth_of(number), key=f"0 {question.id}")
            assert len(documents) == length
            for gold in question.gold_ids:
                pairs[question.kind].append((length, depth_in(documents, (gold,))))
    assert set(pairs) == set(KINDS)
    for kind, found in pairs.items():
        lengths, depths = np.array(found).T
        # Uncorrelated samples of this size stay within three of their standard errors.
        bound = 3 / np.sqrt(len(found))
        assert abs(np.corrcoef(np.log(lengths), depths)[0, 1]) < bound, kind
        assert abs(scipy.stats.spearmanr(lengths, depths).statistic) < bound, kind
        for length in LENGTHS:
            assert depths[lengths == length].mean() == pytest.approx(0.5, abs=0.05)
