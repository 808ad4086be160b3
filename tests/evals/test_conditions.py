"""Which documents a question meets under each condition, and where they stand."""

import itertools
import random
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats

from evals.conditions import (
    alter,
    arrange,
    choose,
    corpus_of,
    depth_in,
    depth_of,
    has_answer,
    is_leak,
)
from evals.datasets import load_dataset
from evals.records import CONDITIONS, ORDERS, Dataset, Document, Question
from evals.retrieval import open_retriever
from evals.scoring.lexical import contains

DOCUMENTS = (
    Document("gold", "Ana Velm", "Ana Velm was born in 1912 in Tarsk."),
    Document("leak", "Tarsk", "In 1912 a fire burnt Tarsk."),
    Document("other", "Ben Olt", "Ben Olt was born in 1950 in Tarsk."),
    Document("far", "Rivers", "The Tarn is a river."),
)
BORN = Question("q1", "When was Ana Velm born?", ("1912",), ("gold",), "fact", "ana")
OTHER = Question("q2", "When was Ben Olt born?", ("1950",), ("other",), "fact", "ben")
NOBODY = Question("q3", "When was Cay Urn born?", (), (), "unanswerable", "cay", topic_ids=("far",))
CORPUS = corpus_of(Dataset("small", DOCUMENTS, (BORN, OTHER, NOBODY), "digest", "here"), seed=0)


def ids(documents):
    return [document.id for document in documents]


@pytest.mark.parametrize(
    ("condition", "fixed", "fill"),
    [
        ("closed", [], []),
        ("oracle", ["gold"], []),
        ("natural", [], ["gold", "leak", "other", "far"]),
        ("gold+distractors", ["gold"], ["other", "far"]),
        ("no-gold", [], ["other", "far"]),
        # What is planted is 1950, the only other year: who says that cannot be a distractor too.
        ("conflict", ["gold", "gold/altered for q1"], ["far"]),
    ],
)
def test_documents_of_each_condition(condition, fixed, fill):
    choice = choose(condition, BORN, iter(DOCUMENTS), CORPUS)
    assert (ids(choice.fixed), ids(choice.fill)) == (fixed, fill)
    assert choice.planted == ("1950" if condition == "conflict" else None)


def test_a_question_that_nothing_answers_meets_what_it_was_written_about():
    assert ids(choose("gold+distractors", NOBODY, iter(DOCUMENTS), CORPUS).fixed) == ["far"]
    assert choose("no-gold", NOBODY, iter(DOCUMENTS), CORPUS) is None
    assert choose("conflict", NOBODY, iter(DOCUMENTS), CORPUS) is None
    assert choose("oracle", replace(NOBODY, topic_ids=()), iter(DOCUMENTS), CORPUS) is None


def test_an_altered_document_says_nothing_of_the_answer():
    altered, planted = alter(BORN, DOCUMENTS[0], CORPUS)
    assert (altered.text, planted) == ("Ana Velm was born in 1950 in Tarsk.", "1950")
    in_other_words = replace(BORN, answers=("nineteen twelve",))
    assert alter(in_other_words, DOCUMENTS[0], CORPUS) is None


def test_a_number_without_another_of_its_shape_is_changed():
    document = Document("d", "Hill", "The hill is 3,471 metres high.")
    question = Question("q", "How high is the hill?", ("3,471 metres",), ("d",), "fact", "hill")
    altered, planted = alter(question, document, CORPUS)
    assert planted.endswith(" metres")
    assert altered.text == f"The hill is {planted} high."
    assert not contains(altered.text, "3,471 metres")


def test_yes_and_no_are_no_leaks():
    question = replace(BORN, answers=("no",), gold_ids=("gold",))
    assert not is_leak(Document("d", "Moon", "There is no air on it."), question)
    assert is_leak(DOCUMENTS[1], BORN)
    assert not is_leak(DOCUMENTS[0], BORN)
    assert has_answer(Document("d", "Ana 1912", ""), ["1912"])
    assert not has_answer(Document("d", "Ana", "in 19120"), ["1912"])


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("depth", [0.0, 0.3, 0.5, 1.0])
def test_the_gold_document_stands_where_it_is_told(order, depth):
    distractors = [Document(f"d{i}", "", "") for i in range(10)]
    documents = arrange(DOCUMENTS[:1], distractors, order=order, depth=depth, key="k")
    assert ids(documents).index("gold") == {0.0: 0, 0.3: 3, 0.5: 5, 1.0: 10}[depth]
    assert depth_in(documents, ("gold",)) == pytest.approx(depth)
    others = [document for document in documents if document.id != "gold"]
    assert sorted(ids(others)) == sorted(ids(distractors))
    assert (others == distractors) == (order == "rank")
    assert (others[::-1] == distractors) == (order == "reversed")


def test_several_documents_are_spread():
    distractors = [Document(f"d{i}", "", "") for i in range(9)]
    documents = arrange(DOCUMENTS[:3], distractors, order="rank", depth=0.2, key="k")
    places = [ids(documents).index(name) for name in ("gold", "leak", "other")]
    assert len(set(places)) == 3
    assert max(places) - min(places) > 5
    assert depth_in((), ("gold",)) is None
    assert depth_in(DOCUMENTS[:1], ("gold",)) == 0.5


@pytest.mark.parametrize("count", [10, 100, 601])
def test_depths_are_even_however_many_there_are(count):
    depths = [depth_of(number) for number in range(count)]
    assert scipy.stats.kstest(depths, "uniform").statistic < 3 / count
    # No slope along the questions either.
    assert abs(np.corrcoef(np.arange(count), depths)[0, 1]) < 0.5 / np.sqrt(count)


def test_depth_and_length_have_nothing_to_do_with_each_other():
    """Six hundred questions at four lengths each."""
    pairs = []
    for number, length in itertools.product(range(600), (5, 20, 80, 320)):
        filled = [Document(f"d{i}", "", "") for i in range(length)]
        documents = arrange(DOCUMENTS[:1], filled, order="rank", depth=depth_of(number), key="k")
        pairs.append((length, depth_in(documents, ("gold",))))
    lengths, depths = np.array(pairs).T
    assert abs(np.corrcoef(lengths, depths)[0, 1]) < 0.01
    assert abs(scipy.stats.spearmanr(lengths, depths).statistic) < 0.01
    for length in np.unique(lengths):
        assert depths[lengths == length].mean() == pytest.approx(0.5, abs=0.01)


@pytest.fixture(scope="module")
def world():
    return load_dataset("world", path=None, seed=3)


def test_contexts_without_gold_have_no_answer_in_them(world):
    retriever, corpus = open_retriever("bm25", world.documents), corpus_of(world, 0)
    asked = [question for question in world.questions[:80] if question.answerable]
    assert len(asked) > 50
    for question in asked:
        ranking = retriever.top(question.text, 300)
        kept = list(choose("no-gold", question, iter(ranking), corpus).fill)
        assert len(kept) > 150
        assert not any(contains(f"{document.title}. {document.text}", question.answers[0]) for document in kept)
        gold = {question.gold_ids[0]}
        assert not gold & set(ids(kept))
        # They are the distractors of the twin that has the gold document.
        assert ids(choose("gold+distractors", question, iter(ranking), corpus).fill) == ids(kept)


def test_conflicts_can_be_made_in_a_world(world):
    retriever, corpus, made = open_retriever("bm25", world.documents), corpus_of(world, 0), 0
    asked = [question for question in random.Random(0).sample(world.questions, 120) if question.answerable]
    for question in asked:
        choice = choose("conflict", question, iter(retriever.top(question.text, 50)), corpus)
        if choice is None:
            continue
        made += 1
        *_, altered = choice.fixed
        assert contains(altered.text, choice.planted)
        assert not any(contains(altered.text, answer) for answer in question.answers)
        again = choose("conflict", question, iter(retriever.top(question.text, 50)), corpus)
        assert again.planted == choice.planted
    assert made > 0.9 * len(asked)


def test_all_conditions_are_known():
    for condition in CONDITIONS:
        assert choose(condition, BORN, iter(DOCUMENTS), CORPUS) is not None
