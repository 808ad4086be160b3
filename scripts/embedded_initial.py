"""The weights with which the embedded models begin; what is a Mamba's alone is in a file of its own."""

import math
import random

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from models.attention import Attention
from models.decoder import Decoder
from scripts.embedded_episodes import EpisodeMaker, opening_tokens
from scripts.embedded_initial_mamba import initialise_mamba

CONSTANT, LOOK_BACK_GAP = 4.0, 5.0


def initialise(decoder: Decoder, seed: int, tokenizer: Tokenizer) -> None:
    """Normal weights, scaled down where a layer writes to the residual, and each mixer's own beginning.

    Embeddings are as large as what all layers add to them, so that later layers can still tell whether two tokens
    are the same: finding a name in a document comes down to that.
    (Not measured apart from the rest.) The last norm's weight keeps the first logits small nonetheless, for the
    embedding is the head too.
    """
    generator = torch.Generator().manual_seed(seed)
    depth = len(decoder.layers)
    for name, parameter in decoder.named_parameters():
        if parameter.dim() >= 2:
            nn.init.normal_(
                parameter,
                std=1.0 if "embedding" in name else parameter[0].numel() ** -0.5 * 0.8,
                generator=generator,
            )
            if name.endswith(("o_proj.weight", "down_proj.weight", "out_proj.weight")):
                parameter.data /= math.sqrt(2 * depth)
    nn.init.constant_(decoder.norm.weight, decoder.config.hidden_size**-0.5)
    if decoder.config.kind == "mamba":
        maker = EpisodeMaker(random.Random(seed), tokenizer)
        sample = torch.tensor([maker.episode(192, 100, 0.0, focused=True).token_ids for _ in range(60)])
        initialise_mamba(decoder, generator, openers=opening_tokens(tokenizer), sample=sample)
        return
    # A part that is the same in every token: to it the heads that look back by position attach.
    decoder.embedding.weight.data[:, 0] = CONSTANT
    for number, layer in enumerate(decoder.layers):
        mixer = layer.mixer
        if isinstance(mixer, Attention):
            begin_matching(mixer, generator)
            if number == 0:
                begin_looking_back(mixer, generator)


def begin_matching(attention: Attention, generator: torch.Generator) -> None:
    """Queries and keys alike, outputs the reverse of values: a head begins by fetching what resembles its token.

    Source of the idea: mimetic initialisation, arXiv:2305.09828.
    """
    spec = attention.spec
    size = attention.q_proj.weight.shape[1]

    def draw() -> Tensor:
        weight = torch.randn(spec.num_heads * spec.head_dim, size, generator=generator) * size**-0.5
        weight[:, 0] = 0.0
        return weight

    query, value = draw(), draw()
    attention.q_proj.weight.data = 0.9 * query
    attention.k_proj.weight.data = 0.9 * query + 0.2 * draw()
    attention.v_proj.weight.data = value
    attention.o_proj.weight.data = (value * 0.5 * (size / spec.head_dim) ** 0.5).T.contiguous()


def begin_looking_back(attention: Attention, generator: torch.Generator) -> None:
    """The first heads begin by attending one, two, three and four tokens back, as a convolution would.

    A pair of a query's entries that is turned back by the angle of d positions meets the key d positions before.
    What they fetch goes elsewhere than where it came from: the token before is not to be taken for the token itself.
    """
    spec = attention.spec
    nn.init.normal_(attention.o_proj.weight, std=0.5 * spec.head_dim**-0.5, generator=generator)
    half, size = spec.head_dim // 2, attention.q_proj.weight.shape[1]
    assert spec.rope is not None
    speeds = spec.rope.theta ** (-torch.arange(half) / half)
    constant = CONSTANT / math.sqrt((size - 1 + CONSTANT**2) / size)
    # So large that the score falls by LOOK_BACK_GAP from the wanted token to its neighbours.
    radius = math.sqrt(LOOK_BACK_GAP * math.sqrt(spec.head_dim) / float((1 - speeds.cos()).sum())) / constant
    for head, distance in zip(range(spec.num_heads), range(1, 5), strict=False):
        rows = slice(head * spec.head_dim, (head + 1) * spec.head_dim)
        query, key = attention.q_proj.weight.data[rows], attention.k_proj.weight.data[rows]
        query.zero_()
        key.zero_()
        query[:half, 0] = radius * torch.cos(speeds * distance)
        query[half:, 0] = -radius * torch.sin(speeds * distance)
        key[:half, 0] = radius
