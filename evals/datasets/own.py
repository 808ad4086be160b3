"""The user's own documents and questions, from one directory.

questions.jsonl, a line each:
    {"question": "...", "answers": ["...", ...], "gold": ["manual.md"], "id": "...", "kind": "...", "cluster": "..."}
    Only `question` must be there. `answers` that are empty say that no document answers it; without the field nobody
    knows what is right. `gold` names documents, or files, that support the answer; without it any passage that contains
    an answer does.
documents.jsonl, a line each: {"id": "...", "title": "...", "text": "..."}; and any .txt, .md and .pdf files, in any
    folder, which are cut into passages between paragraphs.
"""

import hashlib
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pypdf
import pypdf.errors

from evals.config import ConfigError
from evals.datasets.files import dataset, lines, reading
from evals.records import Dataset, Document, Question
from evals.scoring.lexical import contains

QUESTIONS, DOCUMENTS = "questions.jsonl", "documents.jsonl"
SUFFIXES = (".md", ".pdf", ".txt")
MAX_WORDS = 150  # of a passage
FIELDS = {"question": str, "answers": list, "gold": list, "id": str, "kind": str, "cluster": str}


def load_own(directory: Path, seed: int) -> Dataset:
    """The questions in an order drawn from the seed.

    Raises:
        ConfigError: a file is missing, cannot be read, or a line lacks what it must have or has what nobody knows.
    """
    with reading(directory, (QUESTIONS,)):
        files = _files(directory)
        documents = [document for passages in files.values() for document in passages]
        taken = {document.id for document in documents}
        for document in _written(directory / DOCUMENTS):
            if document.id in taken:
                raise ConfigError(f"--data {directory / DOCUMENTS}: id {document.id!r} stands twice")
            taken.add(document.id)
            documents.append(document)
        questions = [
            _question(number, entry, documents, files) for number, entry in enumerate(lines(directory / QUESTIONS), 1)
        ]
    if not questions:
        raise ConfigError(f"--data {directory / QUESTIONS} has no questions")
    if len({question.id for question in questions}) < len(questions):
        raise ConfigError(f"--data {directory / QUESTIONS}: an id stands twice")
    random.Random(seed).shuffle(questions)
    name = re.sub(r"\W+", "-", directory.resolve().name) or "own"
    return dataset(name, documents, questions, f"{QUESTIONS}, seed {seed}")


def _written(file: Path) -> Iterator[Document]:
    if not file.is_file():
        return
    for number, entry in enumerate(lines(file), 1):
        if not isinstance(entry, dict) or not isinstance(entry.get("text"), str) or not entry["text"].strip():
            raise ConfigError(f"--data {file}, line {number}: a document needs a `text`")
        yield Document(str(entry.get("id", f"d{number}")), str(entry.get("title", "")), entry["text"].strip())


def _files(directory: Path) -> dict[str, list[Document]]:
    """Passages by the name of their file, from the directory on."""
    found = {}
    for file in sorted(directory.rglob("*")):
        if file.suffix.lower() in SUFFIXES and file.is_file():
            name = file.relative_to(directory).as_posix()
            title = file.stem.replace("_", " ")
            found[name] = [Document(f"{name}#{i}", title, text) for i, text in enumerate(passages_of(text_of(file)))]
    return found


def text_of(file: Path) -> str:
    """Raises:
    ConfigError: the file is none of its kind, or has no text.
    """
    try:
        if file.suffix.lower() == ".pdf":
            text = "\n\n".join(page.extract_text() for page in pypdf.PdfReader(file).pages)
        else:
            text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError, pypdf.errors.PyPdfError) as error:
        raise ConfigError(f"--data {file} cannot be read: {error}") from error
    if not text.strip():
        raise ConfigError(f"--data {file} has no text in it (a scanned page has none)")
    return text


def passages_of(text: str, max_words: int = MAX_WORDS) -> list[str]:
    """Runs of whole paragraphs of at most so many words; a longer paragraph is cut between sentences, or words."""
    passages: list[str] = []
    held: list[str] = []
    for part in _parts(text, max_words):
        if held and sum(len(piece.split()) for piece in held) + len(part.split()) > max_words:
            passages.append("\n".join(held))
            held = []
        held.append(part)
    return [*passages, "\n".join(held)] if held else passages


def _parts(text: str, max_words: int) -> Iterator[str]:
    for paragraph in re.split(r"\n\s*\n", text):
        if len(paragraph.split()) <= max_words:
            yield from [paragraph.strip()] if paragraph.strip() else []
            continue
        for sentence in re.split(r"(?<=[.!?])\s+", paragraph.strip()):
            words = sentence.split()
            for start in range(0, len(words), max_words):
                yield " ".join(words[start : start + max_words])


def _question(number: int, entry: Any, documents: list[Document], files: dict[str, list[Document]]) -> Question:
    where = f"--data {QUESTIONS}, line {number}"
    if not isinstance(entry, dict) or not isinstance(entry.get("question"), str) or not entry["question"].strip():
        raise ConfigError(f"{where}: a line needs a `question`")
    for name, value in entry.items():
        if name not in FIELDS:
            raise ConfigError(f"{where}: {name!r} is none of {', '.join(FIELDS)}")
        if not isinstance(value, FIELDS[name]):
            raise ConfigError(f"{where}: {name} must be a {FIELDS[name].__name__}, got {value!r}")
    answers = tuple(str(answer) for answer in entry.get("answers", ()))
    text = entry["question"].strip()
    gold, any_gold = _gold(where, entry.get("gold"), answers, documents, files)
    question_id = str(entry.get("id") or hashlib.sha256(f"{number}{text}".encode()).hexdigest()[:12])
    return Question(
        id=question_id,
        text=text,
        answers=answers,
        gold_ids=gold,
        kind=entry.get("kind", "own"),
        cluster=entry.get("cluster", question_id),
        any_gold=any_gold,
        known="answers" in entry,
    )


def _gold(
    where: str,
    named: list[Any] | None,
    answers: tuple[str, ...],
    documents: list[Document],
    files: dict[str, list[Document]],
) -> tuple[tuple[str, ...], bool]:
    """Ids of what supports the answer, and whether any one of them is enough."""
    if named is None:
        return tuple(document.id for document in documents if _answers(document, answers)), True
    ids, found = {document.id for document in documents}, []
    for name in named:
        if name in files:
            # Of a whole file what has the answer, if any of it has it word by word.
            passages = files[name]
            found += [document.id for document in passages if _answers(document, answers)] or [
                document.id for document in passages
            ]
        elif name in ids:
            found.append(name)
        else:
            raise ConfigError(f"{where}: gold {name!r} is neither a document's id nor a file")
    return tuple(dict.fromkeys(found)), any(name in files for name in named)


def _answers(document: Document, answers: tuple[str, ...]) -> bool:
    return any(contains(document.text, answer) for answer in answers)
