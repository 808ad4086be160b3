"""How the embedded models begin: the first heads look back by position, the others at what resembles their token;
a Mamba leans towards copying."""

import json

import pytest
import torch

from models.decoder import Decoder
from models.families import read_config
from scripts.embedded_initial import initialise
from scripts.embedded_recipes import RECIPES


def begin(name, tmp_path_factory):
    directory = tmp_path_factory.mktemp("config")
    (directory / "config.json").write_text(json.dumps(RECIPES[name].config))
    decoder = Decoder(read_config(directory))
    initialise(decoder, seed=1)
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


@torch.inference_mode()
def test_a_mamba_leans_towards_what_followed_the_same_tokens_before(tmp_path_factory):
    decoder = begin("mamba", tmp_path_factory)
    generator = torch.Generator().manual_seed(4)
    ids = torch.stack([torch.randperm(1500, generator=generator)[:24] + 5 for _ in range(12)]).repeat(1, 2)
    logits = decoder.logits(decoder.forward_dense(ids))[:, 27:-1]
    targets = ids[:, 28:, None]
    ranks = (logits > logits.gather(-1, targets)).sum(-1).float() / 1536
    # By chance .5, give or take .02.
    assert float(ranks.mean()) < 0.4
