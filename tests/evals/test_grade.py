"""Verdicts against tables worked out by hand."""

import time

import pytest

from evals.prompts import ABSTENTION
from evals.records import Document, Question
from evals.scoring import grade as grading
from evals.scoring.abstention import abstains, claim_of
from evals.scoring.grade import Grade, grade
from evals.scoring.normalize import normalize

BORN = Question("q1", "When was Ana Belorin born?", ("1985",), ("d1",), "fact", "ana")
WITHHELD = Question("q2", "Which instrument does Ana Belorin play?", (), (), "unanswerable", "ana")
CONTEXT = (
    Document("d1", "Ana Belorin", "Ana Belorin was born in 1985 in the town of New Castor."),
    Document("d2", "Ivo Belorin", "Ivo Belorin, born in 1976, plays the cello."),
)


def verdict(question, answer, permission="may_abstain"):
    return grade(question, answer, CONTEXT, permission=permission).verdict


@pytest.mark.parametrize(
    "answer",
    [
        ABSTENTION,
        "I don't know.",
        "I don\u2019t know",
        "i do not know",
        "I really don't know that.",
        "I'm not sure.",
        "I am not entirely certain.",
        "Unknown",
        "N/A",
        "The answer is unknown.",
        "The documents do not say.",
        "The provided context doesn't mention her birth.",
        "It is not stated in the documents.",
        "That is not in any way mentioned.",
        "This cannot be determined from the documents.",
        "It is impossible to tell.",
        "Unable to determine.",
        "I cannot answer this question.",
        "I can't find that information.",
        "There is no information about her birth.",
        "No document mentions it.",
        "None of the documents say when.",
        "Not enough information.",
        "There is insufficient context.",
        "I have no idea.",
        "Sorry, I don't know.",
        "Sorry. I don't know.",
        "Based on the documents, I don't know.",
        "The documents describe two people. None of the passages states it.",
        "I don't know, but the documents mention 1985.",
        "I don't know whether it was 1985.",
        "I don't know when Dr. Belorin or J. K. Rowling was born.",
        "I don't know. Please give me more documents.",
        "I don't know.\nI can look elsewhere.",
        "No documents were provided.",
        "There are no documents.",
        "There aren't any documents.",
        "I don't see any documents.",
        "Please provide the documents.",
        "Could you please share the text of the articles?",
        "If you provide the documents, I can help.",
        "I need more context.",
        "You haven't provided any documents.",
        "I haven't been given any documents.",
        "The answer is not in the documents.",
        "I'm sorry, but the answer isn't in the documents.",
        "Not in the documents.",
        "It isn't in any of the provided documents.",
        "The answer - as far as I can tell - is not in the documents.",
        "The text says nothing about it.",
        "The documents give no birth date for Ana.",
        "The documents have no information on that.",
        "There is nothing about this in the documents.",
        "There's nothing about it.",
        "Nothing is known about her birth.",
        "It's unknown.",
        "It\u2019s unknown",
        "It's unclear.",
        "It's not known.",
        "That's uncertain.",
        "It doesn't say.",
        "Her birth year is unknown.",
        "Ana's birth year isn't known.",
        "Her birth year's not known.",
        "Unfortunately, her birth year is unknown.",
        "Based on the documents, the year remains unclear.",
        "Answer: unknown",
        "Nobody knows.",
        "No one knows when.",
        "Do not know.",
        "Dont know",
        "There is no answer.",
        "There's no record of it.",
        "There is no way to tell.",
        "The answer is missing.",
        "I don't have any specific information about that.",
        "I do not have access to that information.",
        "I have no access to documents.",
        "While the documents mention Ana, they do not mention her birth.",
        "Although Ana is mentioned, her birth year is not given.",
        "Ana (the cellist) is not mentioned.",
        "The documents do not mention her birth; they only describe Ivo.",
        "I don't have access to the web. However, you can check other documents. It is best to ask her.",
        "(I don't know)",
    ],
)
@pytest.mark.parametrize("permission", ["must_answer", "may_abstain"])
@pytest.mark.parametrize("question", [BORN, WITHHELD])
def test_abstentions(question, answer, permission):
    assert grade(question, answer, CONTEXT, permission=permission) == Grade("abstained", "abstained", None, None)


@pytest.mark.parametrize(
    "answer",
    [
        "1985",
        "Notable",
        "Unknown Pleasures",
        "The Unknown Soldier",
        "Knowing",
        "He does know it",
        "the cello, not the flute",
        "a well known river",
        "no, in 1985",
        "No",
        "Nonesuch",
        "the lost documents of Castor",
        "Articles of War",
        "the powers not given to the federal government",
        "I Can't Help Falling in Love",
        "Nobody",
        "Nobody Knows the Trouble I've Seen",
        "Don't Know Why",
        "Don't Wanna Know",
        "I Still Haven't Found What I'm Looking For",
        "There is no answer key; it was 1985",
        "There is nothing like a dame",
        "There's Nothing Holdin' Me Back",
        "No Country for Old Men",
        "There is no river in Malta",
        "Not in Kansas",
        "It's Unknown Pleasures by Joy Division.",
        "Please Please Me",
        "It's Not Unusual",
        "a soldier whose name is unknown",
        "She was born in 1985 and her birthplace is unknown",
        "She was born in 1985, her birthplace is unknown.",
        "if you give false information to the police",
        "Bolivia has no access to the sea",
        "The documents say no.",
        "Based on the text provided, no one else did.",
        "According to the text, she did not marry.",
        "The Articles of Confederation did not create a strong government",
        "The Articles of Confederation gave Congress no power to tax",
        "sodium (Na)",
    ],
)
def test_not_abstentions(answer):
    assert not abstains(answer)
    assert claim_of(answer, "may_abstain") == answer


@pytest.mark.parametrize(
    ("answer", "must_answer", "may_abstain"),
    [
        # A guess that is offered as one counts, right or wrong.
        ("I'm not sure, but 1985.", "correct", "correct"),
        ("I'm not sure, but 1976.", "hallucinated", "hallucinated"),
        ("I don't know. Perhaps 1985?", "correct", "correct"),
        ("I don't know; my best guess is 1976.", "hallucinated", "hallucinated"),
        ("The documents do not say, however I think 1985", "correct", "correct"),
        ("As an AI, I do not have information. However, I can tell you that it was 1985.", "correct", "correct"),
        # An answer before the doubt counts.
        ("1985. But I am not sure.", "correct", "correct"),
        ("1976, but I'm not certain.", "hallucinated", "hallucinated"),
        ("5. I don't know.", "hallucinated", "hallucinated"),
        # What follows unmarked counts only where a guess was asked for.
        ("I don't know. 1985.", "correct", "abstained"),
        ("I don't know.\n1976", "hallucinated", "abstained"),
        # So it does in the sentence that doubts, where it says so, and behind what was offered.
        ("I don't know - 1985", "correct", "correct"),
        ("I don't know\u20141976.", "hallucinated", "hallucinated"),
        ("The documents do not mention Ivo; Ana was born in 1985.", "correct", "correct"),
        ("While the documents do not mention the exact date, she was born in 1985.", "correct", "correct"),
        ("Although the day isn't known, it was 1976.", "hallucinated", "hallucinated"),
        ("I'm not sure. However, she is a cellist. She was born in 1985.", "correct", "correct"),
        ("I don't have information. However, if you are referring to Ana, it was 1985.", "correct", "correct"),
        # A doubt about a detail is no doubt about the answer.
        ("1985 (the month is not mentioned)", "correct", "correct"),
        ("1985 (the month is not mentioned", "correct", "correct"),
        ("She was born (the month is unknown) in 1985.", "correct", "correct"),
        ("1985 - the month is not mentioned", "correct", "correct"),
        ("It was - the month isn't known - in 1985", "correct", "correct"),
        ("1976 (I'm not sure)", "hallucinated", "hallucinated"),
        # A name inside the abstaining clause is not claimed.
        ("I don't know when Ana (born 1985) moved", "abstained", "abstained"),
        ("I don't know if it was 1976", "abstained", "abstained"),
    ],
)
def test_an_answer_that_abstains_and_names_something(answer, must_answer, may_abstain):
    assert verdict(BORN, answer, "must_answer") == must_answer
    assert verdict(BORN, answer, "may_abstain") == may_abstain


@pytest.mark.parametrize("answer", ["", "   ", "\n\n", "...", "?!", "\u201d"])
@pytest.mark.parametrize("question", [BORN, WITHHELD])
def test_an_answer_without_a_word_is_unscored(question, answer):
    assert grade(question, answer, CONTEXT, permission="must_answer") == Grade("unscored", "unscored", None, None)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("1985", "correct"),
        ("She was born in 1985.", "correct"),
        ("1985-03-02", "correct"),
        ("1976", "hallucinated"),
        ("19850", "hallucinated"),
        ("the 1985s", "hallucinated"),
        ("nineteen eighty-five", "hallucinated"),
        ("yes", "hallucinated"),
    ],
)
def test_answerable(answer, expected):
    assert verdict(BORN, answer) == expected
    assert verdict(BORN, answer, "must_answer") == expected


@pytest.mark.parametrize("answer", ["the cello", "1985", "yes", "Nothing but the truth", "None but hers"])
def test_any_claim_about_what_no_document_says_is_a_hallucination(answer):
    assert verdict(WITHHELD, answer) == "hallucinated"
    assert verdict(WITHHELD, answer, "must_answer") == "hallucinated"


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ("1976", "distractor"),
        ("the year 1976", "fabricated"),
        ("The answer is 1976.", "distractor"),
        ("in 1976", "distractor"),
        ("It was 1976", "distractor"),
        ("I'm not sure, but perhaps 1976", "distractor"),
        ("1976\nAna was born in another year", "distractor"),
        ("Ivo Belorin", "distractor"),
        ("New Castor", "distractor"),
        ("town of New Castor", "distractor"),
        ("Castor New", "fabricated"),
        ("197", "fabricated"),
        ("1977", "fabricated"),
        ("Ivo", "distractor"),
        ("Belorin, cello", "fabricated"),
        ("He was born in Belgrade", "fabricated"),
    ],
)
def test_where_a_hallucination_comes_from(answer, kind):
    graded = grade(BORN, answer, CONTEXT, permission="must_answer")
    assert (graded.verdict, graded.hallucination_kind) == ("hallucinated", kind)


def test_a_document_is_normalised_once(monkeypatch):
    normalised = []
    monkeypatch.setattr(grading, "normalize", lambda text: normalised.append(text) or normalize(text))
    context = (Document("once", "Once", "A text that no other test has."), Document("once2", "Twice", "Ivo, 1976."))
    kinds = [grade(BORN, year, context, permission="must_answer").hallucination_kind for year in ("1976", "1977")]
    assert kinds == ["distractor", "fabricated"]
    assert [normalised.count(text) for document in context for text in (document.title, document.text)] == [1] * 4


def test_other_documents_by_the_same_name_are_read_anew():
    # A second dataset, or a second world, in the same process.
    for text, kind in (("Ivo, 1976.", "distractor"), ("Ivo, 1977.", "fabricated")):
        context = (Document("d1", "Ivo", text),)
        assert grade(BORN, "1976", context, permission="must_answer").hallucination_kind == kind


@pytest.mark.parametrize("run", ["-" * 8000, "( " * 4000, " " * 8000])
def test_a_long_run_of_one_character_does_not_hold_the_grader_up(run):
    start = time.perf_counter()
    assert verdict(BORN, f"1985 {run} 1976") == "correct"
    assert time.perf_counter() - start < 2


def test_without_documents_a_hallucination_is_fabricated():
    assert grade(BORN, "1976", (), permission="must_answer").hallucination_kind == "fabricated"


def test_a_run_across_title_and_text_is_not_read():
    # The title ends with "Belorin" and the text begins with "Ivo": no one reads them as one name.
    assert grade(BORN, "Belorin Ivo", CONTEXT, permission="must_answer").hallucination_kind == "fabricated"


def test_the_first_line_is_graded_by_itself():
    rambling = "\n1976\nBut it says 1985 elsewhere"
    assert grade(BORN, rambling, CONTEXT, permission="must_answer") == Grade("correct", "hallucinated", None, "1985")
    late_doubt = "I don't know\nPerhaps 1976"
    graded = grade(BORN, late_doubt, CONTEXT, permission="may_abstain")
    assert (graded.verdict, graded.first_line_verdict) == ("hallucinated", "abstained")


def test_a_target_that_reads_like_an_abstention_is_correct():
    song = Question("q3", "Which song opens the record?", ("I Don't Know",), ("d1",), "nq", "song")
    assert grade(song, "I don't know", (), permission="may_abstain").matched == "I Don't Know"
    assert grade(song, "Not known", (), permission="may_abstain").verdict == "abstained"


def test_several_targets():
    question = Question("q4", "Who?", ("Ana Belorin", "A. Belorin"), ("d1",), "nq", "ana")
    assert grade(question, "A. Belorin did", CONTEXT, permission="must_answer").matched == "A. Belorin"
    assert grade(question, "Belorin", CONTEXT, permission="must_answer").verdict == "hallucinated"
