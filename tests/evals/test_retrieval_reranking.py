"""Rerankers put the first documents in order: an endpoint over HTTP, and a real cross-encoder of random weights."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from sentence_transformers import CrossEncoder
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, BertModel, PreTrainedTokenizerFast

from evals.config import ConfigError, RerankSettings
from evals.records import Document
from evals.retrieval import open_retriever
from evals.retrieval.model_files import find_model

DOCUMENTS = tuple(Document(f"d{number}", "title", f"word{number} river") for number in range(8))


@dataclass
class Endpoint:
    """Scores a document by `score` of its text; `statuses` answer the first requests, `content` in place of scores."""

    score: object = None
    statuses: list[int] = field(default_factory=list)
    content: object = None
    asked: list[dict] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)

    def answer(self, body):
        self.asked.append(body)
        if self.content is not None:
            return self.content
        scores = [{"index": i, "relevance_score": self.score(text)} for i, text in enumerate(body["documents"])]
        return {"results": sorted(scores, key=lambda one: -one["relevance_score"])[: body["top_n"]]}


@contextmanager
def serving(endpoint) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            endpoint.keys.append(self.headers["Authorization"])
            status = endpoint.statuses.pop(0) if endpoint.statuses else 200
            content = json.dumps(endpoint.answer(body) if status == 200 else {"error": "planted"}).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1/rerank"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def last_first(text):
    return float(text.split()[1].removeprefix("word"))


def ids(retriever, question, count=8):
    return [document.id for document in retriever.top(question, count)]


def opened(reranker, **more):
    return open_retriever("bm25", DOCUMENTS, rerank=RerankSettings(reranker, **more))


def test_an_endpoint_orders_the_first_documents_and_the_rest_follow():
    with serving(endpoint := Endpoint(last_first)) as url:
        retriever = opened(url, depth=3, model="judge", api_key="secret")
        assert ids(retriever, "river") == ["d2", "d1", "d0", "d3", "d4", "d5", "d6", "d7"]
        assert endpoint.asked == [
            {
                "model": "judge",
                "query": "river",
                "documents": [f"title word{number} river" for number in range(3)],
                "top_n": 3,
            }
        ]
        assert endpoint.keys == ["Bearer secret"]
        assert retriever.name.endswith(f", first 3 reranked by {url} judge")
        # The same question under another condition costs nothing.
        assert ids(retriever, "river", 2) == ["d2", "d1"]
        assert len(endpoint.asked) == 1
        assert ids(opened(url, depth=500), "river")[0] == "d7"
        assert "model" not in endpoint.asked[-1]
    assert "secret" not in repr(RerankSettings(url, api_key="secret"))


def test_equal_scores_keep_the_order():
    with serving(Endpoint(lambda text: last_first(text) // 4)) as url:
        assert ids(opened(url), "river") == ["d4", "d5", "d6", "d7", "d0", "d1", "d2", "d3"]


def test_secrets_of_an_address_are_not_in_the_name():
    assert "secret" not in opened("http://me:secret@127.0.0.1:9/rerank?key=secret").name


def test_an_endpoint_that_is_busy_is_asked_again():
    with serving(endpoint := Endpoint(last_first, statuses=[429, 503])) as url:
        assert ids(opened(url), "river", 1) == ["d7"]
    assert len(endpoint.keys) == 3


@pytest.mark.parametrize(
    ("endpoint", "words"),
    [
        (Endpoint(statuses=[404]), "answers 404: .*planted"),
        (Endpoint(content={"scores": []}), "does not answer .*relevance_score.*: .*scores"),
        (Endpoint(content=[1]), "does not answer"),
        (Endpoint(content={"results": [{"index": 0, "relevance_score": 1}]}), "gives 8 documents 1 scores"),
        (Endpoint(content={"results": [{"index": i, "relevance_score": 1} for i in range(1, 9)]}), "gives 8 documents"),
        (Endpoint(lambda _: float("nan")), "gives 8 documents the scores"),
    ],
)
def test_what_an_endpoint_must_answer(endpoint, words):
    with serving(endpoint) as url, pytest.raises(ConfigError, match=f"--reranker: {url} {words}"):
        opened(url).top("river", 1)


def test_nobody_there_is_named():
    with pytest.raises(ConfigError, match=r"--reranker: http://127\.0\.0\.1:9 does not answer"):
        opened("http://127.0.0.1:9").top("river", 1)


@pytest.fixture(scope="module")
def tokenizer():
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "river", "title", *(f"word{number}" for number in range(8))]
    numbers = {word: number for number, word in enumerate(vocabulary)}
    words = Tokenizer(models.WordLevel(numbers, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=64, **special)


def write_model(directory, tokenizer, *, kind=BertForSequenceClassification, num_labels=1):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    kind(
        BertConfig(vocab_size=14, max_position_embeddings=64, num_labels=num_labels, initializer_range=1.0, **sizes)
    ).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def test_a_cross_encoder_orders_the_first_documents(tmp_path, tokenizer):
    directory = write_model(tmp_path / "judge", tokenizer)
    texts = [f"title word{number} river" for number in range(8)]
    scores = CrossEncoder(str(directory), local_files_only=True).predict([("word3 river", text) for text in texts])
    assert len(set(scores.tolist())) == 8
    before = ids(open_retriever("bm25", DOCUMENTS), "word3 river")
    wanted = sorted(before[:5], key=lambda name: -scores[int(name[1:])])
    assert wanted != before[:5]
    retriever = opened(str(directory), depth=5)
    assert ids(retriever, "word3 river") == [*wanted, *before[5:]]
    assert f"first 5 reranked by cross-encoder {find_model('--reranker', str(directory)).name}" in retriever.name


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"num_labels": 3}, "gives 3 scores to a pair, not 1"),
        ({"kind": BertModel}, "is no cross-encoder, but BertModel"),
    ],
)
def test_what_is_no_cross_encoder_is_named(tmp_path, tokenizer, model, words):
    with pytest.raises(ConfigError, match=f"--reranker {tmp_path} {words}"):
        opened(str(write_model(tmp_path, tokenizer, **model)))


def test_a_bi_encoder_is_no_reranker():
    directory = find_model("--reranker", "minilm").directory
    with pytest.raises(ConfigError, match="is no cross-encoder, but SentenceTransformer"):
        opened(str(directory))


def test_wrong_settings():
    with pytest.raises(ConfigError, match="--rerank-depth must be above 0, got 0"):
        RerankSettings("http://x", depth=0)
    with pytest.raises(ConfigError, match="--reranker-model names a model at an endpoint; --reranker is 'none'"):
        RerankSettings(model="judge")
    with pytest.raises(ConfigError, match="--reranker 'nothing' is neither a directory"):
        opened("nothing")
