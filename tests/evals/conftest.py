"""A small dataset whose true answers are known to whoever reads the prompt."""

import pytest

from evals.records import Dataset, Document, Question

NUM_QUESTIONS = 12


@pytest.fixture(scope="session")
def dataset() -> Dataset:
    """Each question has one document that answers it, and shares a word with several others."""
    documents = tuple(
        Document(f"d{i}", f"Person{i}", f"Person{i} lives in Town{i} beside the river{i % 3}.")
        for i in range(2 * NUM_QUESTIONS)
    )
    questions = tuple(
        Question(f"q{i}", f"Where does Person{i} live?", (f"Town{i}",), (f"d{i}",), "fact", f"c{i // 2}")
        for i in range(NUM_QUESTIONS)
    )
    return Dataset("people", documents, questions, "digest", "written for the tests")
