"""Postings built block by block are those of bm25s, and scores those of the formula."""

import math

import bm25s
import numpy as np
import pytest
from bm25s.tokenization import Tokenizer

from evals.records import Document
from evals.retrieval import bm25, open_retriever, postings
from evals.retrieval.ranking import text_of


def corpus(num_documents):
    rng = np.random.default_rng(3)
    words = [f"word{number}" for number in range(200)]
    drawn = [rng.zipf(1.3, rng.integers(0, 60)) % 200 for _ in range(num_documents)]
    return tuple(Document(str(number), "", " ".join(words[i] for i in row)) for number, row in enumerate(drawn))


@pytest.mark.parametrize("at_once", [1, 100, 1 << 22])
def test_blocks_give_what_bm25s_gives(monkeypatch, at_once):
    monkeypatch.setattr(postings, "TOKENS_AT_ONCE", at_once)
    documents = corpus(300)
    built = bm25._build(documents)
    tokenizer = Tokenizer(stopwords=bm25.STOPWORDS)
    ids = tokenizer.tokenize([text_of(document) for document in documents], return_as="ids", show_progress=False)
    twin = bm25s.BM25(k1=bm25.K1, b=bm25.B, method="lucene")
    twin.index((ids, tokenizer.get_vocab_dict()), show_progress=False)
    assert built.vocab_dict == twin.vocab_dict
    assert built.scores["indices"].tolist() == twin.scores["indices"].tolist()
    assert built.scores["indptr"].tolist() == twin.scores["indptr"].tolist()
    assert built.scores["data"] == pytest.approx(twin.scores["data"], rel=1e-6)


def test_a_score_by_hand():
    built = postings.build_postings([[0, 1, 1], [1], [2, 2]], k1=1.2, b=0.75)
    idf = {count: math.log(1 + (3 - count + 0.5) / (count + 0.5)) for count in (1, 2)}
    norm = {length: 1.2 * (0.25 + 0.75 * length / 2) for length in (1, 2, 3)}
    wanted = [idf[1] / (norm[3] + 1), idf[2] * 2 / (norm[3] + 2), idf[2] / (norm[1] + 1), idf[1] * 2 / (norm[2] + 2)]
    assert built.starts.tolist() == [0, 1, 3, 4]
    assert built.documents.tolist() == [0, 0, 1, 2]
    assert built.scores == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("texts", [("", ""), ("", "the river"), ("the", "of")])
def test_documents_without_words(texts):
    documents = tuple(Document(str(number), "", text) for number, text in enumerate(texts))
    found = open_retriever("bm25", documents).top("river", 2)
    assert [document.id for document in found] == (["1", "0"] if "river" in texts[1] else ["0", "1"])
