"""A local model of inference as a judge: a tiny one whose weights are set by hand, so that its opinions are known."""

import json

import numpy as np
import pytest
from evals_rows import abstained, sample

from evals.config import ConfigError
from evals.judging import nli
from evals.judging.cases import Case, Opinion
from evals.judging.nli import MAX_PREMISE_WORDS, OVERLAP_WORDS, NliJudge, label_places, opinion_of, premises
from evals.judging.store_run import judge_store
from evals.records import Document
from evals.store import Store

WIDTH = 16
AGREES, DENIES = "harbour", "desert"
VOCABULARY = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", AGREES, DENIES)
ORDER = ("neutral", "contradiction", "entailment")


def write_model(directory, labels=ORDER):
    """It says entailment where the premise has the one word, contradiction where it has the other, else neutral."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=1,
        intermediate_size=WIDTH,
        max_position_embeddings=512,
        num_labels=len(labels),
        id2label=dict(enumerate(labels)),
        label2id={label: place for place, label in enumerate(labels)},
    )
    model = transformers.BertForSequenceClassification(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.fill_(1.0) if name.endswith("LayerNorm.weight") else weight.zero_()
        for dimension, word in enumerate((AGREES, DENIES)):
            model.bert.embeddings.word_embeddings.weight[VOCABULARY.index(word), dimension] = 1.0
        # Every position takes the mean of all: without queries and keys attention is even.
        for layer in model.bert.encoder.layer:
            layer.attention.self.value.weight.copy_(torch.eye(WIDTH))
            layer.attention.output.dense.weight.copy_(torch.eye(WIDTH))
        model.bert.pooler.dense.weight.copy_(torch.eye(WIDTH))
        for label, dimension in (("entailment", 0), ("contradiction", 1)):
            if label in labels:
                model.classifier.weight[labels.index(label), dimension] = 5.0
        model.classifier.bias[0 if labels != ORDER else ORDER.index("neutral")] = 1.0
    model.save_pretrained(directory)
    transformers.BertTokenizerFast(vocab={word: place for place, word in enumerate(VOCABULARY)}).save_pretrained(
        directory
    )
    return directory


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    pytest.importorskip("sentence_transformers")
    return write_model(tmp_path_factory.mktemp("nli") / "tiny")


def case(*texts, answer="Castor", permission="must_answer"):
    documents = tuple(Document(f"d{place}", "", text) for place, text in enumerate(texts))
    return Case("Where does Ana live?", ("Castor",), answer, permission, documents)


@pytest.mark.parametrize(
    ("texts", "verdict", "label", "document"),
    [
        (("a harbour town",), "correct", "supported", "d0"),
        (("nothing", "the harbour", "the desert"), "correct", "supported", "d1"),
        (("nothing", "the desert"), "hallucinated", "contradicted", "d1"),
        (("nothing", "at all"), "hallucinated", "baseless", None),
    ],
)
async def test_one_document_that_entails_it_is_enough(model, texts, verdict, label, document):
    opinion = await NliJudge(model).opinion(case(*texts))
    detail = json.loads(opinion.detail)
    assert (opinion.verdict, detail["label"], detail["document"], opinion.error) == (verdict, label, document, None)
    assert detail["hypothesis"] == 'The answer to "Where does Ana live?" is: Castor'
    assert (opinion.score > 0.9) == (verdict == "correct")


async def test_an_answer_that_claims_nothing_is_no_matter_of_inference(model):
    assert await NliJudge(model).opinion(case("harbour", answer="I don't know.")) == Opinion("abstained")


async def test_a_late_part_of_a_long_document_is_read(model):
    text = "word " * (3 * MAX_PREMISE_WORDS) + "harbour"
    assert (await NliJudge(model).opinion(case(text))).verdict == "correct"


async def test_a_store_is_judged_once(model, tmp_path):
    documents = (Document("d1", "Ana", "by the harbour"), Document("d2", "Ivo", "in the desert"))
    with Store(tmp_path) as store:
        store.put(sample(question_id="q1", doc_ids=("d1", "d2"), budget=64), documents)
        store.put(abstained(question_id="q2", doc_ids=("d2",), budget=64), documents)
        store.put(sample(question_id="q3", doc_ids=("d1", "d9"), budget=64))  # d9 is not kept
        store.put(sample(question_id="q4"))  # asked without documents
        judge = NliJudge(model)
        tally = await judge_store(store, judge, concurrency=1)
        assert (tally.judged, tally.failed, tally.left_out, tally.known) == (2, 0, 2, 0)
        assert {one.question_id: one.verdict for one in store.judgements()} == {"q1": "correct", "q2": "abstained"}
        again = await judge_store(store, judge, concurrency=1)
        assert (again.judged, again.known) == (0, 2)


def test_the_name_tells_models_apart(model, tmp_path):
    other = write_model(tmp_path / "tiny", ("entailment", "neutral", "contradiction"))
    first, second = NliJudge(model).name, NliJudge(other).name
    assert first.startswith("nli:tiny:")
    assert first != second


def test_labels_are_read_from_the_model():
    assert label_places({0: "CONTRADICTION", 1: "Entailment", 2: "neutral"}, "m") == [1, 2, 0]
    with pytest.raises(ConfigError, match="labels positive, negative, and not entailment, neutral, contradiction"):
        label_places({0: "positive", 1: "negative"}, "m")


def test_what_is_no_model_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"--nli .* has no config.json"):
        NliJudge(tmp_path)


def test_another_model_is_refused(tmp_path):
    pytest.importorskip("sentence_transformers")
    with pytest.raises(ConfigError, match=r"no model of inference: .* labels good, bad"):
        NliJudge(write_model(tmp_path / "m", ("good", "bad")))


def test_without_the_packages_the_extra_is_named(tmp_path, monkeypatch):
    def missing(_):
        raise ImportError

    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr(nli.importlib, "import_module", missing)
    with pytest.raises(ConfigError, match=r"install fathom\[nli\]"):
        NliJudge(tmp_path)


def test_pieces_overlap_and_lose_nothing():
    words = [f"w{number}" for number in range(2 * MAX_PREMISE_WORDS)]
    pieces = [piece.split() for piece in premises(Document("d", "", " ".join(words)))]
    assert all(len(piece) <= MAX_PREMISE_WORDS for piece in pieces)
    assert pieces[0][-OVERLAP_WORDS:] == pieces[1][:OVERLAP_WORDS]
    assert [word for word in words if not any(word in piece for piece in pieces)] == []
    assert premises(Document("d", "Ana", "")) == ["Ana. "]
    assert len(premises(Document("d", "Ana", " ".join(words[:MAX_PREMISE_WORDS])))) == 1


def test_contradiction_gives_way_to_entailment():
    probabilities = np.array([[0.1, 0.1, 0.8], [0.5, 0.3, 0.2], [0.6, 0.2, 0.2]])
    opinion = opinion_of(probabilities, ["a", "b", "c"], "h")
    assert (opinion.verdict, opinion.score, json.loads(opinion.detail)["document"]) == ("correct", 0.6, "c")
