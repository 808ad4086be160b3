"""The document that says most about the question comes first, ties in the corpus' order."""

import itertools
import shutil
import subprocess
import sys

import numpy as np
import pytest

from evals.config import ConfigError
from evals.records import Document
from evals.retrieval import open_retriever
from evals.retrieval.index_files import IndexFiles
from evals.retrieval.ranking import Fused, Retriever, in_order

DOCUMENTS = (
    Document("a", "Rivers", "The Tarn is a river. Boats sail on it."),
    Document("b", "Mara Velm", "Mara Velm is a painter. She was born in Tarsk."),
    Document("c", "Mara Olt", "Mara Olt is a mason."),
    Document("d", "Mara Olt", "Mara Olt is a mason."),
)


def test_titles_and_texts_are_searched():
    retriever = open_retriever("bm25", DOCUMENTS)
    assert retriever.top("Where was Mara Velm born?", 1) == [DOCUMENTS[1]]
    assert retriever.top("rivers", 1) == [DOCUMENTS[0]]


def test_ties_and_strangers_keep_the_order_of_the_corpus():
    retriever = open_retriever("bm25", DOCUMENTS)
    assert [document.id for document in retriever.top("the mason Olt", 9)] == ["c", "d", "a", "b"]
    assert [document.id for document in retriever.top("zebra", 9)] == ["a", "b", "c", "d"]
    assert [document.id for document in retriever.top("", 2)] == ["a", "b"]


def test_an_empty_corpus_is_refused():
    with pytest.raises(ValueError, match="at least one document"):
        open_retriever("bm25", ())


@pytest.mark.parametrize("size", [1, 5, 300, 5000])
def test_an_order_is_sorted_only_as_far_as_it_is_taken_and_is_the_same(size):
    scores = np.random.default_rng(size).integers(0, 40, size).astype(np.float32)
    scores[: size // 2] = 0
    whole = np.argsort(-scores, kind="stable").tolist()
    assert list(in_order(scores)) == whole
    assert list(itertools.islice(in_order(scores), 3)) == whole[:3]


class Planted:
    def __init__(self, name, scores):
        self.name, self._scores = name, np.array(scores, np.float32)

    def scores(self, _):
        return self._scores


def test_ranks_are_fused():
    fused = Fused([Planted("one", [4, 3, 2, 1]), Planted("other", [1, 4, 2, 3])])
    # Ranks 1 and 4, 2 and 1, 3 and 3, 4 and 2, by hand.
    assert fused.scores("?") == pytest.approx([1 / 61 + 1 / 64, 1 / 62 + 1 / 61, 2 / 63, 1 / 64 + 1 / 62])
    assert [document.id for document in Retriever(DOCUMENTS, fused).top("?", 4)] == ["b", "a", "d", "c"]


def test_a_random_order_is_the_questions_own():
    retriever = open_retriever("random", DOCUMENTS * 50, seed=1)
    first, again, other = (retriever.top(question, 20) for question in ("one?", "one?", "two?"))
    assert first == again != other
    assert open_retriever("random", DOCUMENTS * 50, seed=2).top("one?", 20) != first


def test_an_index_is_kept_and_a_torn_one_is_built_anew(tmp_path, caplog):
    first = open_retriever("bm25", DOCUMENTS, cache=tmp_path).top("the mason Olt", 9)
    [place] = tmp_path.iterdir()
    written = {file.name: file.stat().st_mtime_ns for file in place.iterdir()}
    assert open_retriever("bm25", DOCUMENTS, cache=tmp_path).top("the mason Olt", 9) == first
    assert {file.name: file.stat().st_mtime_ns for file in place.iterdir()} == written
    open_retriever("bm25", DOCUMENTS[:3], cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    for file in place.glob("*.npy"):
        file.write_bytes(file.read_bytes()[:40])
    assert open_retriever("bm25", DOCUMENTS, cache=tmp_path).top("the mason Olt", 9) == first
    assert "cannot be read and is built anew" in caplog.text
    assert not list(tmp_path.glob(".draft*"))


def test_where_nothing_can_be_kept_it_is_built_every_time(tmp_path, caplog):
    (tmp_path / "file").touch()
    files = IndexFiles(tmp_path / "file", DOCUMENTS)
    assert files.load_or_build("x", lambda: 5, lambda *_: None, lambda _: 6) == 5
    assert "cannot be kept" in caplog.text
    shutil.rmtree(tmp_path)


def test_an_unknown_method_is_named():
    with pytest.raises(ConfigError, match="--retriever must be one of bm25, dense, hybrid, random, got 'tfidf'"):
        open_retriever("tfidf", DOCUMENTS)


def test_numba_is_not_taken_in_for_bm25s():
    """It would be a fifth of the memory of a run; whoever else wants it in this process gets it."""
    program = (
        "import sys, evals.retrieval; assert 'bm25s' in sys.modules; assert 'numba' not in sys.modules; import numba"
    )
    subprocess.run([sys.executable, "-P", "-c", program], check=True)
