"""Contexts of whole documents nest, fill, and never exceed their budget."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from evals.packing import pack
from evals.records import Document


def documents(count):
    return [Document(f"d{i}", "title", "text") for i in range(count)]


def test_whole_documents_until_the_first_that_does_not_fit():
    ranked = documents(4)
    counts = {"d0": 30, "d1": 40, "d2": 100, "d3": 5}
    assert pack(ranked, counts, 0) == ()
    assert pack(ranked, counts, 29) == ()
    assert pack(ranked, counts, 70) == tuple(ranked[:2])
    assert pack(ranked, counts, 169) == tuple(ranked[:2])
    assert pack(ranked, counts, 170) == tuple(ranked[:3])
    assert pack(ranked, counts, 10_000) == tuple(ranked)


@given(st.lists(st.integers(1, 50), max_size=20), st.lists(st.integers(0, 400), min_size=2, max_size=6))
def test_longer_contexts_begin_with_shorter_ones(sizes, budgets):
    ranked = documents(len(sizes))
    counts = {document.id: size for document, size in zip(ranked, sizes, strict=True)}
    packed = [pack(ranked, counts, budget) for budget in sorted(budgets)]
    for budget, context in zip(sorted(budgets), packed, strict=True):
        assert sum(counts[document.id] for document in context) <= budget
    for shorter, longer in itertools.pairwise(packed):
        assert longer[: len(shorter)] == shorter
