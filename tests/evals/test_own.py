"""The user's own documents and questions."""

import json

import pypdf
import pytest

from evals.config import ConfigError
from evals.datasets import load_dataset
from evals.datasets.own import passages_of


def write(directory, questions, documents=()):
    directory.mkdir(parents=True, exist_ok=True)
    lines = [entry if isinstance(entry, str) else json.dumps(entry) for entry in questions]
    (directory / "questions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    if documents:
        (directory / "documents.jsonl").write_text("\n".join(map(json.dumps, documents)) + "\n", encoding="utf-8")
    return directory


def load(directory):
    return load_dataset("own", path=directory, seed=0)


def by_text(dataset):
    return {question.text: question for question in dataset.questions}


def test_documents_and_questions_of_files(tmp_path):
    documents = [{"id": "m", "title": "Manual", "text": "The pump holds 40 litres."}, {"text": "It is green."}]
    asked = [
        {"question": "How much does the pump hold?", "answers": ["40 litres"]},
        {"question": "Which colour?", "answers": ["green"], "gold": ["d2"], "id": "c", "kind": "k", "cluster": "x"},
        {"question": "Who built it?", "answers": []},
        {"question": "What do you think of it?"},
    ]
    dataset = load(write(tmp_path / "our pumps", asked, documents))
    assert dataset.name == "our-pumps"
    assert [(document.id, document.title) for document in dataset.documents] == [("m", "Manual"), ("d2", "")]
    found = by_text(dataset)
    held = found["How much does the pump hold?"]
    assert (held.gold_ids, held.any_gold, held.kind, held.known) == (("m",), True, "own", True)
    green = found["Which colour?"]
    assert (green.id, green.gold_ids, green.any_gold, green.kind, green.cluster) == ("c", ("d2",), False, "k", "x")
    assert (found["Who built it?"].answerable, found["Who built it?"].known) == (False, True)
    assert not found["What do you think of it?"].known
    assert load(tmp_path / "our pumps").digest == dataset.digest


def write_pdf(file, text):
    """A page with one line, as plain as a PDF can be."""
    writer = pypdf.PdfWriter()
    page = writer.add_blank_page(width=300, height=100)
    content = pypdf.generic.DecodedStreamObject()
    content.set_data(f"BT /F1 12 Tf 10 50 Td ({text}) Tj ET".encode())
    font = pypdf.generic.DictionaryObject(
        {
            pypdf.generic.NameObject("/Type"): pypdf.generic.NameObject("/Font"),
            pypdf.generic.NameObject("/Subtype"): pypdf.generic.NameObject("/Type1"),
            pypdf.generic.NameObject("/BaseFont"): pypdf.generic.NameObject("/Helvetica"),
        }
    )
    fonts = pypdf.generic.DictionaryObject({pypdf.generic.NameObject("/F1"): writer._add_object(font)})
    resources = pypdf.generic.DictionaryObject({pypdf.generic.NameObject("/Font"): fonts})
    page[pypdf.generic.NameObject("/Resources")] = resources
    page[pypdf.generic.NameObject("/Contents")] = writer._add_object(content)
    writer.write(file)


def test_a_folder_of_texts_is_a_corpus(tmp_path):
    write(tmp_path, [{"question": "How old is the mill?", "answers": ["1807"], "gold": ["notes/mill.md"]}])
    (tmp_path / "notes").mkdir()
    long = " ".join(f"Word {number} of many." for number in range(60))
    (tmp_path / "notes" / "mill.md").write_text(f"{long}\n\nThe mill is of 1807.\n", encoding="utf-8")
    (tmp_path / "old_town.txt").write_text("The town is older.", encoding="utf-8")
    (tmp_path / "picture.png").write_bytes(b"no text")
    write_pdf(tmp_path / "paper.pdf", "The mill stands on the Tarn.")
    dataset = load(tmp_path)
    texts = {document.id: document for document in dataset.documents}
    assert texts["old_town.txt#0"].title == "old town"
    assert "stands on the Tarn" in texts["paper.pdf#0"].text
    [question] = dataset.questions
    assert question.gold_ids == ("notes/mill.md#1",)
    assert "of 1807" in texts["notes/mill.md#1"].text
    assert question.any_gold


@pytest.mark.parametrize(
    ("questions", "documents", "words"),
    [
        (["{"], [], "does not have the expected shape"),
        ([{"answers": ["x"]}], [], "line 1: a line needs a `question`"),
        ([{"question": "a?", "answer": "x"}], [], "line 1: 'answer' is none of question, answers, gold"),
        ([{"question": "a?", "answers": "x"}], [], "line 1: answers must be a list, got 'x'"),
        ([{"question": "a?", "gold": ["x"]}], [], "line 1: gold 'x' is neither a document's id nor a file"),
        ([{"question": "a?", "id": "1"}, {"question": "b?", "id": "1"}], [], "an id stands twice"),
        ([{"question": "a?"}], [{"id": "1"}], "line 1: a document needs a `text`"),
        ([{"question": "a?"}], [{"id": "1", "text": "x"}, {"id": "1", "text": "y"}], "id '1' stands twice"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(tmp_path, questions, documents, words):
    with pytest.raises(ConfigError, match=words):
        load(write(tmp_path, questions, documents))


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"lacks questions\.jsonl"):
        load(tmp_path)
    write(tmp_path, [{"question": "a?"}])
    (tmp_path / "torn.pdf").write_bytes(b"%PDF-1.4 torn")
    with pytest.raises(ConfigError, match=r"torn\.pdf cannot be read"):
        load(tmp_path)
    (tmp_path / "torn.pdf").unlink()
    (tmp_path / "empty.txt").touch()
    with pytest.raises(ConfigError, match=r"empty\.txt has no text"):
        load(tmp_path)


def test_passages_keep_paragraphs_together():
    assert passages_of("a b\n\nc d\n\ne f g", max_words=4) == ["a b\nc d", "e f g"]
    assert passages_of("One two. Three four five six. Seven.", max_words=4) == [
        "One two.",
        "Three four five six.",
        "Seven.",
    ]
    assert passages_of("a b c d e", max_words=2) == ["a b", "c d", "e"]
    assert passages_of("\n\n \n") == []
