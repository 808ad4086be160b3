"""Rows of public datasets as their sources publish them, made into documents and questions. Knows no files."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from evals.datasets.own import passages_of
from evals.records import Document, Question
from evals.scoring.abstention import abstains
from evals.scoring.lexical import contains

Row = Mapping[str, Any]
Converted = tuple[list[Document], list[Question]]
QA = "QA"  # the task of RAGTruth that has questions


def popqa(rows: Iterable[Row]) -> Converted:
    """Questions about entities of Wikidata, without documents. `kind` is the power of ten of the views that the
    entity's page has in a month; questions about one entity are a cluster.

    Source: arXiv:2212.10511.
    """
    questions = []
    for row in rows:
        answers = tuple(map(str, parsed(row["possible_answers"])))
        kind = f"popularity 10^{max(0, len(str(int(row['s_pop']))) - 1)}"
        questions.append(Question(f"popqa{row['id']}", row["question"], answers, (), kind, str(row["subj"])))
    return [], questions


def simpleqa(rows: Iterable[Row]) -> Converted:
    """Short questions that are hard to know, without documents. `kind` is the topic where the metadata has one.

    Source: arXiv:2411.04368.
    """
    questions = []
    for number, row in enumerate(rows):
        # Written by Python, not as JSON.
        topic = re.search(r"""['"]topic['"]\s*:\s*['"]([^'"]+)['"]""", str(row["metadata"]))
        key = f"simpleqa{number}"
        kind = topic[1].lower() if topic else "simpleqa"
        questions.append(Question(key, row["problem"].strip(), (row["answer"].strip(),), (), kind, key))
    return [], questions


def triviaqa(rows: Iterable[Row]) -> Converted:
    """Without documents; each question once, though some copies have it once for each of its documents.

    Source: arXiv:1705.03551.
    """
    questions = {}
    for row in rows:
        key = str(row["question_id"])
        questions[key] = Question(key, row["question"].strip(), _aliases(row), (), "triviaqa", key)
    return [], list(questions.values())


def triviaqa_with_evidence(rows: Iterable[Row]) -> Converted:
    """With the pages that were found for them, in passages; any passage that has an answer in its words supports it.

    That is how the source marks them: some say the words and do not answer. Questions that no passage answers are
    left out.
    """
    documents: dict[str, Document] = {}
    gold: dict[str, dict[str, None]] = {}
    questions: dict[str, Question] = {}
    for row in rows:
        key, answers = str(row["question_id"]), _aliases(row)
        for title, text in (
            *_evidence(row["entity_pages"], "wiki_context"),
            *_evidence(row["search_results"], "search_context"),
        ):
            for passage in passages_of(text):
                document = _document(title, passage)
                documents[document.id] = document
                if any(contains(passage, answer) for answer in answers):
                    gold.setdefault(key, {})[document.id] = None
        found = tuple(gold.get(key, ()))
        if found:
            questions[key] = Question(key, row["question"].strip(), answers, found, "triviaqa", key, any_gold=True)
    return list(documents.values()), list(questions.values())


def halueval(rows: Iterable[Row]) -> Converted:
    """Questions of two hops, each with the sentences that answer it as its document.

    Source: arXiv:2305.11747. Its wrong answers were written to be told from right ones, not to stand in a document.
    """
    documents: dict[str, Document] = {}
    questions = []
    for number, row in enumerate(rows):
        document = _document("", row["knowledge"].strip())
        documents[document.id] = document
        answers = (row["right_answer"].strip(),)
        key = f"halueval{number}"
        questions.append(Question(key, row["question"].strip(), answers, (document.id,), "halueval", document.id))
    return list(documents.values()), questions


def ragtruth(rows: Iterable[Row]) -> Converted:
    """The questions of the task QA, with the passages that systems answered them from.

    Answers are those of the systems in which people found nothing made up: long ones, so words do not tell whether
    another is right. Without any such answer nobody knows what is right. Other tasks' rows are left out.
    Source: arXiv:2401.00396.
    """
    documents: dict[str, Document] = {}
    answers: dict[tuple[str, str], dict[str, None]] = {}
    for row in rows:
        if row["task_type"] != QA:
            continue
        good = answers.setdefault((row["query"].strip(), row["context"]), {})
        faithful = row["quality"] == "good" and not parsed(row["hallucination_labels"])
        if faithful and not abstains(row["output"]):
            good[row["output"].strip()] = None
    questions = []
    for (text, context), good in answers.items():
        passages = [_document("", passage) for passage in _passages(context)]
        documents |= {document.id: document for document in passages}
        ids = tuple(dict.fromkeys(document.id for document in passages))
        key = f"ragtruth{hashlib.sha256(f'{text}|{context}'.encode()).hexdigest()[:12]}"
        known = bool(good)
        questions.append(
            Question(
                key,
                text,
                tuple(good),
                ids if known else (),
                "ragtruth",
                key,
                topic_ids=ids,
                long_form=known,
                known=known,
            )
        )
    return list(documents.values()), questions


def join_ragtruth(responses: Iterable[Row], sources: Iterable[Row], split: str) -> Iterator[Row]:
    """The two files of RAGTruth's own repository, as the columns of the Hub's copy."""
    by_id = {source["source_id"]: source for source in sources if source["task_type"] == QA}
    for response in responses:
        source = by_id.get(response["source_id"])
        if source is not None and response["split"] == split:
            yield {
                "query": source["source_info"]["question"],
                "context": source["source_info"]["passages"],
                "output": response["response"],
                "task_type": QA,
                "quality": response["quality"],
                "hallucination_labels": response["labels"],
            }


def parsed(value: Any) -> Any:
    """A column that is JSON in some copies and what it means in others; nothing is an empty list."""
    return json.loads(value or "[]") if value is None or isinstance(value, str) else value


def _document(title: str, text: str) -> Document:
    return Document(hashlib.sha256(f"{title}|{text}".encode()).hexdigest()[:16], title, text)


def _aliases(row: Row) -> tuple[str, ...]:
    answer = row["answer"]
    return tuple(dict.fromkeys(text for text in (answer["value"], *answer["aliases"]) if text.strip()))


def _evidence(pages: Any, field: str) -> Iterator[tuple[str, str]]:
    """Titles and texts, of a list of pages or of one list for each of their fields."""
    if isinstance(pages, Mapping):
        yield from zip(pages["title"], pages[field], strict=True)
    else:
        yield from ((page["title"], page[field]) for page in pages)


def _passages(context: str) -> list[str]:
    """Those that are counted ("passage 1:..."), else the whole."""
    parts = (part.strip() for part in re.split(r"(?:^|\n)\s*passage \d+:", context))
    return [part for part in parts if part]
