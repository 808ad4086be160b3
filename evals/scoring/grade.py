"""The verdict on one answer: correct, hallucinated, abstained or unscored; and whence a hallucination came.

An answer without a single word is unscored: a server that says nothing has neither been right nor made anything
up. Where no document supports any answer (a question without accepted ones), every claim is a hallucination. Of long
answers, and where nobody knows the right one, words tell only whether an answer abstains.

Measured against the human verdicts of EVOUNA's Natural Questions (15,094 answers of five systems, closed book, as
under must_answer; without improper questions and empty answers): 98.6 % of the answers called correct are, 79.4 % of
the right ones are called so, and 94 of 95 abstentions were no right answer. So a hallucination rate by these verdicts
is an upper bound for systems that put answers in their own words. The phrases of abstention were widened with these
answers at hand, so the last count is no test on unseen ones.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from evals.records import Document, HallucinationKind, Permission, Question, Verdict
from evals.scoring.abstention import abstains, claim_of
from evals.scoring.lexical import find_accepted, gives
from evals.scoring.normalize import normalize, words

# Three times the pool of Natural Questions: 5,410 documents of about 650 bytes.
MAX_CACHED_DOCUMENTS = 16_384
# What introduces an answer and is no part of it.
_LEAD_IN = re.compile(
    r"^(?:but |however |perhaps |maybe |probably |possibly |likely |my |best |final )*"
    r"(?:(?:answer|guess) is |answer |(?:it|he|she|they|this|that) (?:is|was|were) |i (?:think|believe) |in )?"
)


@dataclass(frozen=True, slots=True)
class Grade:
    """Attributes:
    verdict: on the whole answer. `first_line_verdict`: on its first line alone, which no rambling can help.
    hallucination_kind: None unless `verdict` is hallucinated.
    matched: the accepted answer that the whole answer contains; None unless `verdict` is correct.
    """

    verdict: Verdict
    first_line_verdict: Verdict
    hallucination_kind: HallucinationKind | None
    matched: str | None


def grade(
    question: Question,
    answer: str,
    context: Sequence[Document],
    *,
    permission: Permission,
    planted: str | None = None,
) -> Grade:
    """Grade one answer to a question that was asked with `context` before it.

    planted: what a document of it says in place of the answer: who takes it over hallucinates by "conflict".

    An abstention is an abstention under either permission; `permission` decides only whether what stands beside it
    is a claim (see evals.scoring.abstention).
    """
    verdict, matched = _verdict(question, answer, permission)
    first_line = next((line for line in answer.splitlines() if words(line)), "")
    kind: HallucinationKind | None = None
    if verdict == "hallucinated":
        took_over = planted is not None and gives(claim_of(answer, permission) or answer, planted)
        kind = "conflict" if took_over else hallucination_kind(answer, context, permission)
    return Grade(verdict, _verdict(question, first_line, permission)[0], kind, matched)


def _verdict(question: Question, answer: str, permission: Permission) -> tuple[Verdict, str | None]:
    if not words(answer):
        return "unscored", None
    # A song may be called "I Don't Know": such a target is no abstention where it is the answer.
    matched = find_accepted(answer, filter(abstains, question.answers))
    if matched is not None:
        return "correct", matched
    claim = claim_of(answer, permission)
    if claim is None:
        return "abstained", None
    matched = find_accepted(claim, question.answers)
    if matched is None and (question.long_form or not question.known):
        return "unscored", None  # words do not tell
    return ("hallucinated", None) if matched is None else ("correct", matched)


def hallucination_kind(answer: str, context: Sequence[Document], permission: Permission) -> HallucinationKind:
    """Where a wrong answer comes from: "distractor" if its words stand in a document of its context in that order.

    The whole claim must stand there, or its first line, with or without an introduction ("The answer is ...").
    Longer wrong answers are therefore called "fabricated" even where a part of them was read.
    """
    claim = claim_of(answer, permission) or answer
    first_line = next((line for line in claim.splitlines() if words(line)), "")
    needles = {needle for text in (claim, first_line) for needle in _readings(text)}
    passages = [passage for document in context for passage in spoken_passages(document)]
    read = any(needle in passage for needle in needles for passage in passages)
    return "distractor" if read else "fabricated"


def _readings(text: str) -> list[str]:
    """The words of a claim as in `spoken_passages`, with and without its introduction; none of them empty."""
    spoken = normalize(text)
    return [f" {reading} " for reading in (spoken, _LEAD_IN.sub("", spoken)) if reading.strip()]


@lru_cache(maxsize=MAX_CACHED_DOCUMENTS)
def spoken_passages(document: Document) -> tuple[str, str]:
    """A document's title and text as words between single spaces, so that a run of whole words is a part of either.

    Kept, because answers are graded where other requests are timed: a context of 60,000 tokens takes a tenth of a
    second to normalise, and every question of a run is asked over the same documents.
    """
    return f" {normalize(document.title)} ", f" {normalize(document.text)} "
