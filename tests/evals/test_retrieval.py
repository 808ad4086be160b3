"""BM25: the document that says most about the question comes first, ties in the corpus' order."""

import pytest

from evals.records import Document
from evals.retrieval import Retriever

DOCUMENTS = [
    Document("a", "Rivers", "The Tarn is a river. Boats sail on it."),
    Document("b", "Mara Velm", "Mara Velm is a painter. She was born in Tarsk."),
    Document("c", "Mara Olt", "Mara Olt is a mason."),
    Document("d", "Mara Olt", "Mara Olt is a mason."),
]


def test_titles_and_texts_are_searched():
    retriever = Retriever(DOCUMENTS)
    assert retriever.top("Where was Mara Velm born?", 1) == [DOCUMENTS[1]]
    assert retriever.top("rivers", 1) == [DOCUMENTS[0]]


def test_ties_and_strangers_keep_the_order_of_the_corpus():
    retriever = Retriever(DOCUMENTS)
    assert [document.id for document in retriever.top("the mason Olt", 9)] == ["c", "d", "a", "b"]
    assert [document.id for document in retriever.top("zebra", 9)] == ["a", "b", "c", "d"]
    assert [document.id for document in retriever.top("", 2)] == ["a", "b"]


def test_an_empty_corpus_is_refused():
    with pytest.raises(ValueError, match="at least one document"):
        Retriever([])
