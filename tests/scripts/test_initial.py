"""How the embedded models begin: the first heads look back by position, the others at what resembles their token."""

import json

import pytest
import torch

from models.decoder import Decoder
from models.families import read_config
from scripts.embedded_initial import initialise
from scripts.embedded_recipes import RECIPES


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    directory = tmp_path_factory.mktemp("config")
    (directory / "config.json").write_text(json.dumps(RECIPES["transformer"].config))
    decoder = Decoder(read_config(directory))
    initialise(decoder, seed=1)
    return decoder


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
