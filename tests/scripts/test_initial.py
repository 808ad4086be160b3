"""How the embedded models begin: a transformer's first heads look back by position, the others at what resembles their
token; a Mamba finds the documents about what is asked for."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from models.decoder import Decoder
from models.families import read_config
from scripts.embedded_episodes import USER, EpisodeMaker, opening_tokens
from scripts.embedded_initial import initialise
from scripts.embedded_recipes import RECIPES
from scripts.train_embedded import collate, optimizers, train_step

TOKENIZER = Tokenizer.from_file(str(Path("models/embedded/mamba/tokenizer.json")))


def begin(name, tmp_path_factory):
    directory = tmp_path_factory.mktemp("config")
    (directory / "config.json").write_text(json.dumps(RECIPES[name].config))
    decoder = Decoder(read_config(directory))
    initialise(decoder, 1, TOKENIZER)
    return decoder


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    return begin("transformer", tmp_path_factory)


def attention_of(decoder, layer, token_ids):
    """(heads, l, l) attention of one layer over the embeddings alone."""
    block = decoder.layers[layer]
    hidden = block.mixer_norm(decoder.embedding(token_ids))
    q, k, _ = block.mixer._project(hidden, torch.arange(len(token_ids)))
    scores = torch.einsum("lhd,mhd->hlm", q, k) / block.mixer.spec.head_dim**0.5
    later = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1)
    return scores.masked_fill(later, -torch.inf).softmax(-1)


@torch.inference_mode()
def test_the_first_heads_look_one_to_four_tokens_back(decoder):
    attention = attention_of(decoder, 0, torch.randint(5, 1536, (64,), generator=torch.Generator().manual_seed(2)))
    for head in range(4):
        means = [float(attention[head].diagonal(-back)[10:].mean()) for back in range(8)]
        assert means.index(max(means)) == head + 1
        assert max(means) > 0.5


@torch.inference_mode()
def test_other_heads_look_at_the_same_token(decoder):
    ids = torch.randperm(1000, generator=torch.Generator().manual_seed(3))[:40] + 5
    ids[-1] = ids[20]
    attention = attention_of(decoder, 1, ids)[:, -1, :-1]
    assert float((attention.argmax(-1) == 20).float().mean()) > 0.5


@pytest.fixture(scope="module")
def mamba(tmp_path_factory):
    return begin("mamba", tmp_path_factory)


def first_group_keys(monkeypatch, decoder, layer, token_ids):
    """Keys and queries, B and C, (l, state_size) of a layer's first group."""
    mixer, seen = decoder.layers[layer].mixer, []
    kernels = mixer.kernels
    with monkeypatch.context() as patch:
        watched = replace(
            kernels, scan=lambda *inputs, state: seen.append(inputs) or kernels.scan(*inputs, state=state)
        )
        patch.setattr(mixer, "kernels", watched)
        decoder.forward_dense(token_ids[None])
    *_, keys, queries = seen[0]
    return keys[0, :, 0], queries[0, :, 0]


def test_what_opens_documents_and_questions_is_known():
    opened = {TOKENIZER.decode([token]).strip() for token in opening_tokens(TOKENIZER)}
    assert opened == {"Document", "ocument", "Question", "uestion"}


@torch.inference_mode()
def test_a_mamba_forgets_one_document_where_the_next_opens(mamba):
    """What its first layer gathers in a document does not depend on the document before."""
    gathered = []
    hook = mamba.layers[0].mixer.out_proj.register_forward_hook(lambda _, __, output: gathered.append(output[0]))
    for before in ("Ada Velford | Ada Velford was born in Karvale.", "Talberg | It is a city."):
        text = f"Document: {before}\n\nDocument: Lunsk | Lunsk stands on the Fyle."
        mamba.forward_dense(torch.tensor([TOKENIZER.encode(text).ids]))
    hook.remove()
    one, other = (tensor[-1, -64:] for tensor in gathered)
    start = gathered[0][3, -64:]
    assert float((one - other).norm()) < 0.05 * float(one.norm())
    assert float((one - start).norm()) > 0.2 * float(one.norm())


@torch.inference_mode()
def test_a_mamba_finds_the_documents_about_whom_the_question_names(mamba, monkeypatch):
    """Documents that all state the attribute asked for, so that the name alone tells which."""
    maker = EpisodeMaker(random.Random(3), TOKENIZER)
    found, chance = 0.0, 0.0
    for _ in range(40):
        documents = maker.writer.write(100, focused=True)
        turn = maker.writer.turn("must_answer", 0.0)
        if turn.kind != "fact":
            continue
        name = maker.writer.entities[turn.fact[0]].name
        about = torch.tensor([name in TOKENIZER.decode(ids) for ids in documents]).float()
        question = TOKENIZER.encode(f"\n\nQuestion: {turn.question}").ids
        ids = [USER, *(token for document in documents for token in document), *question]
        keys, queries = first_group_keys(monkeypatch, mamba, 1, torch.tensor(ids))
        ends = torch.tensor([len(document) for document in documents]).cumsum(0) - 2
        found += float(about[(keys[ends] @ queries[-1]).argmax()])
        chance += float(about.mean())
    assert chance < 0.5 * found


def test_what_finds_is_kept_through_training(tmp_path_factory):
    decoder = begin("mamba", tmp_path_factory)
    before = {name: parameter.detach().clone() for name, parameter in decoder.named_parameters()}
    optims = optimizers(decoder, RECIPES["mamba"])
    maker, rng = EpisodeMaker(random.Random(6), TOKENIZER), random.Random(7)
    for _ in range(2):
        batch = collate([maker.episode(128, 60, 0.0)], rng, spread=False, device=torch.device("cpu"))
        train_step(decoder, decoder.forward_dense, optims, batch, rate=1.0)
    changed = {name: parameter.detach() != before[name] for name, parameter in decoder.named_parameters()}
    spec = decoder.layers[1].mixer.spec
    keys = 2 * spec.inner_size  # the input projection's rows: gate, x, then B
    for layer in (0, 1, 2):
        projection = changed[f"layers.{layer}.mixer.in_proj.weight"]
        assert not projection[keys : keys + spec.state_size].any()
        assert projection[keys + spec.state_size : keys + 2 * spec.state_size].any()
        assert not changed[f"layers.{layer}.mixer.out_proj.weight"][-64:].any()
        assert not changed[f"layers.{layer}.mixer_norm.weight"].any()
    assert not changed["embedding.weight"][:, -64:].any()
    assert changed["embedding.weight"][:, 3:-64].any()
    assert changed["layers.1.mixer.in_proj.weight"][: spec.head_dim].any()
