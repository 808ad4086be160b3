"""What a question is asked with: which documents always, which as long as there is room, and where each stands.

Knows documents and ranks, not tokens: how many documents fit is packing's. All is drawn from the run's seed and the
question, so that a question meets the same documents at every budget, and more of them at a larger one.
"""

import math
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from evals.records import Condition, Dataset, Document, Order, Question
from evals.scoring.grade import spoken_passages
from evals.scoring.lexical import POLAR, contains
from evals.scoring.normalize import normalize, words

GOLDEN = (math.sqrt(5) - 1) / 2
MAX_TRIES = 200  # of values drawn to contradict one
MAX_CACHED_ANSWERS = 65_536


@dataclass(frozen=True, slots=True)
class Choice:
    """`fixed` enters every context; `fill` follows as long as there is room, best first.

    planted: what an altered document says in place of the answer; None where none is altered.
    """

    fixed: tuple[Document, ...] = ()
    fill: Iterable[Document] = ()
    planted: str | None = None


@dataclass(frozen=True, slots=True)
class Corpus:
    """documents: by id. answers: accepted ones of all questions, from which a false one is drawn."""

    documents: Mapping[str, Document]
    answers: Sequence[str]
    seed: int


def corpus_of(dataset: Dataset, seed: int) -> Corpus:
    answers = dict.fromkeys(answer for question in dataset.questions for answer in question.answers)
    return Corpus({document.id: document for document in dataset.documents}, tuple(answers), seed)


def choose(condition: Condition, question: Question, ranking: Iterable[Document], corpus: Corpus) -> Choice | None:
    """The documents of a condition; None where the question has none such: no gold to give, nothing to alter."""
    evidence = _evidence(question, corpus)
    match condition:
        case "closed":
            return Choice()
        case "natural":
            return Choice(fill=ranking)
        case "no-gold":
            # Of a question without an answer there is no twin that has none.
            return Choice(fill=_distractors(question, ranking)) if question.answerable else None
        case "conflict":
            return _conflict(question, evidence, ranking, corpus)
        case "oracle":
            return Choice(evidence) if evidence else None
        case "gold+distractors":
            return Choice(evidence, _distractors(question, ranking)) if evidence else None


def _conflict(
    question: Question, evidence: tuple[Document, ...], ranking: Iterable[Document], corpus: Corpus
) -> Choice | None:
    """The first document that can be altered stands there both ways."""
    for document in evidence:
        altered = alter(question, document, corpus)
        if altered is not None:
            copy, planted = altered
            fill = (other for other in _distractors(question, ranking) if not has_answer(other, (planted,)))
            return Choice((*evidence, copy), fill, planted)
    return None


def _evidence(question: Question, corpus: Corpus) -> tuple[Document, ...]:
    """What supports the answer; of a question that nothing answers, what it was written about."""
    ids = question.gold_ids or question.topic_ids
    return tuple(corpus.documents[document_id] for document_id in (ids[:1] if question.any_gold else ids))


def _distractors(question: Question, ranking: Iterable[Document]) -> Iterator[Document]:
    """The ranking without what supports the answer, or has it in its words."""
    kept_out = {*question.gold_ids, *question.topic_ids}
    return (document for document in ranking if document.id not in kept_out and not is_leak(document, question))


def is_leak(document: Document, question: Question) -> bool:
    """Whether a document that is no gold one has an answer in its words. "Yes" and "no" stand anywhere: no leak."""
    if document.id in question.gold_ids:
        return False
    return has_answer(document, [answer for answer in question.answers if not set(words(answer)) <= POLAR])


def has_answer(document: Document, answers: Iterable[str]) -> bool:
    """Whether any of the answers occurs in the document as a run of whole words, in any case."""
    passages = spoken_passages(document)
    return any(f" {needle} " in passage for needle in map(_normalized, answers) if needle for passage in passages)


@lru_cache(maxsize=MAX_CACHED_ANSWERS)
def _normalized(answer: str) -> str:
    return normalize(answer)


def alter(question: Question, document: Document, corpus: Corpus) -> tuple[Document, str] | None:
    """A copy of the document that says another thing where it has the answer, and what it says.

    The false value has the shape of the true one: as many words, capitals and digits where it has them. None where the
    document has the answer in other words, or nothing of its shape is known.
    """
    present = [answer for answer in question.answers if contains(document.text, answer)]
    present = [answer for answer in present if _pattern(answer).search(document.text)]
    if not present:
        return None
    planted = _false_value(question, max(present, key=len), document, corpus)
    if planted is None:
        return None
    text = document.text
    for answer in sorted(present, key=len, reverse=True):
        text = _pattern(answer).sub(planted.replace("\\", r"\\"), text)
    altered = replace(document, id=f"{document.id}/altered for {question.id}", text=text)
    return None if has_answer(replace(altered, title=""), question.answers) else (altered, planted)


def _pattern(answer: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(answer)}(?!\w)", re.IGNORECASE)


def _false_value(question: Question, true: str, document: Document, corpus: Corpus) -> str | None:
    rng = random.Random(f"{corpus.seed} {question.id} conflict")
    wanted = _shape(true)
    others = (rng.choice(corpus.answers) for _ in range(MAX_TRIES))
    changed = (_other_number(rng, true) for _ in range(MAX_TRIES))
    for value in (*(other for other in others if _shape(other) == wanted), *filter(None, changed)):
        if not has_answer(Document("", "", value), question.answers) and not has_answer(document, (value,)):
            return value
    return None


def _other_number(rng: random.Random, text: str) -> str | None:
    """The text with another number of about the size in place of its first; None where it has none."""
    found = re.search(r"\d+(?:,\d{3})*", text)
    if found is None:
        return None
    number = int(found[0].replace(",", ""))
    other = max(0, number + rng.choice((-1, 1)) * rng.randint(1, max(9, number // 20)))
    return text[: found.start()] + (f"{other:,}" if "," in found[0] else str(other)) + text[found.end() :]


def _shape(text: str) -> tuple[str, ...]:
    """A letter for each word: a number with its digits, a name, any other."""
    return tuple(
        f"0{len(word)}" if word.isdigit() else "A" if word[:1].isupper() else "a"
        for word in words(text, keep_case=True)
    )


def depth_of(number: int) -> float:
    """The relative place of the evidence for the question of that number: spread evenly, however many there are."""
    return (0.5 + number * GOLDEN) % 1.0


def arrange(
    fixed: Sequence[Document], filled: Sequence[Document], *, order: Order, depth: float, key: str
) -> tuple[Document, ...]:
    """The documents as they stand in the prompt.

    Args:
        filled: best first. order: of those. depth: 0 = before all of them, 1 = after, for the first of `fixed`; the
            others are spread evenly from there on, around the end.
        key: of the question; draws a random order.
    """
    ranked = list(filled)
    if order == "reversed":
        ranked.reverse()
    elif order == "random":
        random.Random(f"{key} order").shuffle(ranked)
    placed: list[tuple[float, int, Document]] = [
        ((rank + 0.5) / len(ranked), 1, document) for rank, document in enumerate(ranked)
    ]
    for number, document in enumerate(fixed):
        placed.append(((depth + number / len(fixed)) % 1.0 if number else depth, 0, document))
    return tuple(document for _, _, document in sorted(placed, key=lambda place: place[:2]))


def depth_in(documents: Sequence[Document], gold_ids: Sequence[str]) -> float | None:
    """Where the first document that supports the answer stands: 0 = first of all, 1 = last; None where none does."""
    places = [place for place, document in enumerate(documents) if document.id in gold_ids]
    if not places:
        return None
    return places[0] / (len(documents) - 1) if len(documents) > 1 else 0.5
