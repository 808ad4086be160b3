"""The samples as the report's browser reads them: questions, answers and packed contexts, each text once.

As many questions as there is room for, with all their samples, so that every budget, condition and model stands beside
the others; what does not fit is counted, never silently left out.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from evals.records import Document, SampleRow

MAX_ANSWER, MAX_DOCUMENT = 600, 1500  # characters
Documents = Mapping[str, Mapping[str, Document]]  # by dataset and id


@dataclass(slots=True)
class _Numbered:
    """Values in the order in which they came, each once."""

    values: list[Any] = field(default_factory=list)
    _places: dict[Any, int] = field(default_factory=dict)

    def place(self, key: Any, value: Any) -> tuple[int, int]:
        """Where it stands, and how many bytes it takes that were not there."""
        if key in self._places:
            return self._places[key], 0
        self._places[key] = len(self.values)
        self.values.append(value)
        return self._places[key], size_of(value)

    def cut(self, length: int) -> None:
        self.values = self.values[:length]
        self._places = {key: place for key, place in self._places.items() if place < length}


def size_of(value: Any) -> int:
    return len(encode(value).encode()) + 1


def encode(value: Any) -> str:
    """JSON that may stand in a page: nothing in it ends a script, or begins a comment."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026").replace("\u2028", "\\u2028")


def browser_data(rows: Sequence[SampleRow], documents: Documents, max_bytes: int) -> dict[str, Any]:
    """All that the browser shows, of as many questions as take no more than so many bytes of UTF-8.

    Args:
        documents: the texts of what samples were asked with; of others the browser has ids alone.
    """
    by_question: dict[tuple[str, str], list[SampleRow]] = {}
    for row in rows:
        by_question.setdefault((row.dataset, row.question_id), []).append(row)
    pool = _Pool(documents)
    room = max_bytes - 2_000  # for what is around them
    for asked in _in_order(by_question.values()):
        room -= pool.add(asked, room)
    return {
        "questions": pool.questions,
        "documents": pool.texts.values,
        "contexts": pool.contexts.values,
        "samples": pool.samples,
        "shown": len(pool.questions),
        "total": len(by_question),
    }


def _in_order(questions: Iterable[list[SampleRow]]) -> list[list[SampleRow]]:
    """Some of those with failures first: few as they are, nobody would find them."""
    found = list(questions)
    failed = [asked for asked in found if any(row.lost for row in asked)][:10]
    chosen = {id(asked) for asked in failed}
    return failed + [asked for asked in found if id(asked) not in chosen]


class _Pool:
    """What was taken so far."""

    def __init__(self, documents: Documents) -> None:
        self._documents = documents
        self.questions: list[list[Any]] = []
        self.samples: list[list[Any]] = []
        self.texts, self.contexts = _Numbered(), _Numbered()

    def add(self, asked: Sequence[SampleRow], room: int) -> int:
        """The bytes that one question takes with all its samples; none where they are too many, and it stays out."""
        marks = len(self.texts.values), len(self.contexts.values), len(self.samples)
        first = asked[0]
        question = [
            first.dataset,
            first.question_id,
            first.question,
            list(first.answers),
            first.question_kind,
            list(first.gold_ids),
        ]
        size = size_of(question)
        for row in asked:
            size += self._add_sample(row)
            if size > room:
                self.texts.cut(marks[0])
                self.contexts.cut(marks[1])
                del self.samples[marks[2] :]
                return 0
        self.questions.append(question)
        return size

    def _add_sample(self, row: SampleRow) -> int:
        context, size = self._add_context(row)
        sample = [
            len(self.questions),
            row.model,
            row.condition,
            row.permission,
            row.budget,
            row.verdict,
            row.hallucination_kind,
            shorten(row.answer, MAX_ANSWER),
            context,
            row.prompt_tokens,
            None if row.ttft_s is None else round(1000 * row.ttft_s, 1),
            row.error or row.lost,
            row.planted,
        ]
        self.samples.append(sample)
        return size + size_of(sample)

    def _add_context(self, row: SampleRow) -> tuple[int, int]:
        texts = self._documents.get(row.dataset, {})
        places, size = [], 0
        for name in row.doc_ids:
            document = texts.get(name)
            text = [name, document.title, shorten(document.text, MAX_DOCUMENT)] if document else [name, None, None]
            place, added = self.texts.place((row.dataset, name), text)
            places.append(place)
            size += added
        place, added = self.contexts.place(tuple(places), places)
        return place, size + added


def shorten(text: str, most: int) -> str:
    """At most so many characters, with the number of those left out."""
    return text if len(text) <= most else f"{text[:most]} … ({len(text) - most:,} more characters)"
