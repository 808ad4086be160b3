"""Which documents belong to a question, best first: BM25 over title and text."""

from collections.abc import Sequence

import bm25s
import numpy as np

from evals.records import Document

K1, B = 1.2, 0.75


class Retriever:
    """An index over one corpus. Ties go to the document that comes first in the corpus."""

    name = f"bm25s lucene k1={K1} b={B} title+text"

    def __init__(self, documents: Sequence[Document]) -> None:
        if not documents:
            raise ValueError("a retriever needs at least one document")
        self._documents = tuple(documents)
        self._index = bm25s.BM25(k1=K1, b=B, method="lucene")
        texts = [f"{document.title} {document.text}" for document in documents]
        self._index.index(_words(texts), show_progress=False)

    def top(self, question: str, count: int) -> list[Document]:
        """The `count` best documents, best first; all of them where there are fewer.

        Documents that share no word with the question come last, in the corpus' order.
        """
        [words] = _words([question])
        known = [word for word in words if word in self._index.vocab_dict]
        scores = self._index.get_scores(known) if known else np.zeros(len(self._documents))
        order = np.argsort(-scores, kind="stable")[:count]
        return [self._documents[index] for index in order]


def _words(texts: list[str]) -> list[list[str]]:
    tokens: list[list[str]] = bm25s.tokenize(texts, stopwords="en", return_ids=False, show_progress=False)
    return tokens
