"""Dense retrieval with the real MiniLM: it finds what shares no word, keeps its index, and asks no hub."""

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from fakes_hub import FakeHub, FakeRepository

from evals.config import ConfigError
from evals.records import Document
from evals.retrieval import dense, open_retriever
from evals.retrieval.index_files import IndexFiles
from evals.retrieval.model_files import digest_of, find_model

DOCUMENTS = (
    Document("sail", "Tarn", "Vessels cross the water here every morning."),
    Document("paint", "Mara Velm", "She made portraits in oil."),
    Document("stone", "Mara Olt", "A mason who cut granite."),
    Document("bread", "Olaf Ren", "He baked loaves before dawn."),
)
ROOT = Path(__file__).resolve().parents[2]


def ids(retriever, question):
    return [document.id for document in retriever.top(question, len(DOCUMENTS))]


@pytest.fixture(scope="module")
def minilm():
    return find_model("--retriever-model", "minilm")


def test_a_meaning_is_found_without_a_common_word():
    retriever = open_retriever("dense", DOCUMENTS)
    for question, found in (("boats on a lake", "sail"), ("an artist", "paint"), ("food from an oven", "bread")):
        assert ids(retriever, question)[0] == found
        assert ids(open_retriever("bm25", DOCUMENTS), question) == [document.id for document in DOCUMENTS]


def test_hybrid_joins_words_and_meaning():
    hybrid = open_retriever("hybrid", DOCUMENTS)
    assert "bm25s lucene" in hybrid.name
    assert "dense minilm" in hybrid.name
    for question in ("boats on a lake", "what did Mara chisel", "loaves of granite"):
        orders = [ids(open_retriever(method, DOCUMENTS), question) for method in ("bm25", "dense")]
        assert orders[0] != orders[1]
        fused = {one.id: sum(1 / (61 + order.index(one.id)) for order in orders) for one in DOCUMENTS}
        assert ids(hybrid, question) == sorted(fused, key=lambda name: -fused[name])


def test_vectors_are_of_length_one_in_the_order_of_the_corpus(minilm, tmp_path, monkeypatch):
    monkeypatch.setattr(dense, "AT_ONCE", 3)
    many = DOCUMENTS * 2
    retriever = dense.Dense(many, minilm, IndexFiles(tmp_path, many))
    vectors = np.load(next(tmp_path.rglob("*.npy")))
    assert vectors.shape == (8, 384)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(8), abs=1e-5)
    assert vectors[4:] == pytest.approx(vectors[:4], abs=1e-5)
    assert np.argmax(retriever.scores("loaves of bread")) == 3


def test_an_index_is_of_these_weights(tmp_path, minilm):
    model, cache = tmp_path / "model", tmp_path / "cache"
    shutil.copytree(minilm.directory, model)
    first = open_retriever("dense", DOCUMENTS, model=str(model), cache=cache)
    [place] = cache.iterdir()
    written = place.joinpath("vectors.npy").stat().st_mtime_ns
    again = open_retriever("dense", DOCUMENTS, model=str(model), cache=cache)
    assert (again.name, ids(again, "boats")) == (first.name, ids(first, "boats"))
    assert place.joinpath("vectors.npy").stat().st_mtime_ns == written
    # The same weights elsewhere are the same model; what is written about them does not matter.
    moved = tmp_path / "elsewhere" / "model"
    shutil.copytree(model, moved)
    (moved / "README.md").write_text("other words")
    assert open_retriever("dense", DOCUMENTS, model=str(moved), cache=cache).name == first.name
    assert len(list(cache.iterdir())) == 1
    weights = bytearray((model / "model.safetensors").read_bytes())
    weights[-3] ^= 0x10
    (model / "model.safetensors").write_bytes(weights)
    other = open_retriever("dense", DOCUMENTS, model=str(model), cache=cache)
    assert other.name != first.name
    assert len(list(cache.iterdir())) == 2


def test_several_questions_at_once_get_what_each_gets_alone():
    retriever = open_retriever("dense", DOCUMENTS * 8)
    questions = [" ".join(["boats", "portraits", "granite", "loaves"][: 1 + number % 4] * 5) for number in range(40)]
    alone = [ids(retriever, question) for question in questions]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(lambda question: ids(retriever, question), questions)) == alone


def test_a_local_model_is_loaded_in_silence_and_asks_no_hub(tmp_path, minilm):
    model = tmp_path / "model"
    shutil.copytree(minilm.directory, model)
    code = (
        "from evals.records import Document; from evals.retrieval import open_retriever\n"
        f"open_retriever('hybrid', (Document('a', 'b', 'c'),), model={str(model)!r}).top('c', 1)"
    )
    with FakeHub({}) as hub:
        environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "PYTHONWARNINGS": "error"}
        environment.pop("HF_HUB_OFFLINE", None)
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert hub.requests == []


def test_a_model_of_the_hub_is_fetched_without_code_or_pickles(tmp_path, minilm):
    folder = tmp_path / "repository"
    shutil.copytree(minilm.directory, folder)
    (folder / "model.py").write_text("raise SystemExit")
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    code = (
        "from evals.retrieval.model_files import find_model\n"
        "model = find_model('--retriever-model', 'owner/small')\n"
        "print(model.name)\n"
        "print(sorted(file.name for file in model.directory.rglob('*') if file.suffix in ('.py', '.bin')))"
    )
    with FakeHub({"owner/small": FakeRepository({"main": folder})}) as hub:
        environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf")}
        environment.pop("HF_HUB_OFFLINE", None)
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    for name in ("model.py", "pytorch_model.bin", ".gitattributes"):
        (folder / name).unlink(missing_ok=True)
    assert done.stdout.splitlines() == [f"owner/small {digest_of(folder)}", "[]"], done.stderr


def test_what_is_no_model_is_named(tmp_path):
    with pytest.raises(ConfigError, match="--retriever-model 'nothing' is neither a directory nor the name"):
        open_retriever("dense", DOCUMENTS, model="nothing")
    with pytest.raises(ConfigError, match=r"--retriever-model '\./a/b' is neither"):
        open_retriever("dense", DOCUMENTS, model="./a/b")
    with pytest.raises(ConfigError, match=f"--retriever-model {tmp_path} cannot be loaded"):
        open_retriever("dense", DOCUMENTS, model=str(tmp_path))


def test_a_torn_model_is_named(tmp_path, minilm):
    model = tmp_path / "model"
    shutil.copytree(minilm.directory, model)
    (model / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(ConfigError, match=f"--retriever-model {model} cannot be loaded"):
        open_retriever("hybrid", DOCUMENTS, model=str(model))
