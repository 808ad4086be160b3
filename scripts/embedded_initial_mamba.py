"""The weights with which the embedded Mamba begins: a machine that finds documents about what is asked for.

A Mamba forgets what it does not hold on to, and its keys see four tokens at most. The name in a document's title and
the fact that is asked for stand further apart; begun otherwise, it learnt in 20M tokens to match the *attribute* of a
question and hardly anything of *whose*. So it begins with that much in place:

- The first group of heads in the first layer gathers the tokens of a segment (a document, a question) and forgets them
  where the next one opens. The result has the last entries of the residual to itself.
- The first group of the next two layers reads, from all tokens before, those whose gathered tokens resemble the
  question's. Resemblance is measured after whitening, so that names count and common words do not.

What finds is kept as it is through the training; what is done with the found is learnt.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.decoder import Decoder
from models.ssm import Mamba2

CONSTANT, CONSTANT_ENTRY = 4.0, 0  # an entry of the residual that is the same for every token: a bias
OPENS, OPENS_ENTRY = 6.0, 1  # one that only tokens have that open a segment
RARE, RARE_ENTRY = 3.0, 2  # one that common words lack
GATHERED = 64  # the last entries of the residual
FINDING_LAYERS = (1, 2)
COMMON_SHARE = 0.004  # of the tokens of training sequences, from which a word is common
STEP = 0.02  # how much of a common word a head takes in that gathers or finds
# So small that SiLU is nearly linear: else everything resembles everything, and all tokens have a part in common.
KEY_SCALE, TOKEN_SCALE = 0.4, 0.3


@dataclass(frozen=True, slots=True)
class Parts:
    """Views of a mixer's weights: rows of the input projection, and the convolution's taps and biases for B and C.

    heads, width: of the first group.
    """

    gate: Tensor
    x: Tensor
    B: Tensor
    C: Tensor
    dt: Tensor
    taps: tuple[Tensor, Tensor]
    biases: tuple[Tensor, Tensor]
    heads: int
    width: int


def inverse_softplus(value: float | Tensor) -> Tensor:
    value = torch.as_tensor(value)
    return value + torch.log(-torch.expm1(-value))


def first_group(mixer: Mamba2) -> Parts:
    """The parts of the first group of heads."""
    spec = mixer.spec
    inner, size, all_groups = spec.inner_size, spec.state_size, spec.num_groups * spec.state_size
    heads = spec.num_heads // spec.num_groups
    width = heads * spec.head_dim
    gate, x, B, C, dt = mixer.in_proj.weight.data.split([inner, inner, all_groups, all_groups, spec.num_heads])
    assert mixer.conv_bias is not None
    taps, biases = mixer.conv_weight.data[inner:], mixer.conv_bias.data[inner:]
    return Parts(
        gate[:width],
        x[:width],
        B[:size],
        C[:size],
        dt[:heads],
        (taps[:size], taps[all_groups : all_groups + size]),
        (biases[:size], biases[all_groups : all_groups + size]),
        heads,
        width,
    )


def initialise_mamba(decoder: Decoder, generator: torch.Generator, *, openers: Sequence[int], sample: Tensor) -> None:
    """Turn usual random weights into the ones described above.

    Args:
        openers: ids of the tokens that open a document or a question.
        sample: (b, l) int64, token ids of training sequences, from which common words are known.
    """
    embedding = decoder.embedding.weight.data
    embedding[:, CONSTANT_ENTRY] = CONSTANT
    embedding[:, OPENS_ENTRY] = 0.0
    embedding[list(openers), OPENS_ENTRY] = OPENS
    counts = torch.bincount(sample.flatten(), minlength=len(embedding))
    embedding[:, RARE_ENTRY] = torch.where(counts > COMMON_SHARE * counts.sum(), 0.0, RARE)
    embedding[:, -GATHERED:] = 0.0
    mixers = [layer.mixer for layer in decoder.layers if isinstance(layer.mixer, Mamba2)]
    for number, mixer in enumerate(mixers):
        begin_recalling(mixer, generator, following=number == 0)
    begin_gathering(mixers[0], generator)
    mean, whitening = whitened(decoder, mixers[1], sample)
    for number in FINDING_LAYERS:
        begin_finding(mixers[number], mean, whitening, generator)
    keep(decoder.embedding.weight, slice(None), slice(0, RARE_ENTRY + 1))
    keep(decoder.embedding.weight, slice(None), slice(-GATHERED, None))
    for number in (0, *FINDING_LAYERS):
        keep(decoder.get_parameter(f"layers.{number}.mixer_norm.weight"))
        keep_keys(mixers[number])
    keep_gathering(mixers[0])


def keep(parameter: Tensor, *where: slice) -> None:
    """Train all of a parameter but these entries.

    Muon makes every direction's step as large as any other's, however faint its gradient. What is not used yet,
    because the model can't tell cities from years so far, was worn away in 4M tokens before it was of use.
    Of a matrix, whole rows or columns: for these Muon's steps then stay zero. It must have no weight decay.
    """
    free = torch.ones_like(parameter)
    free[where] = 0.0
    parameter.register_hook(lambda gradient: gradient * free.to(gradient.device))


def keep_keys(mixer: Mamba2) -> None:
    """B and C of the first group, how it forgets, and that nobody writes where the gathered tokens are."""
    spec = mixer.spec
    size, all_groups, heads = spec.state_size, spec.num_groups * spec.state_size, spec.num_heads // spec.num_groups
    assert mixer.conv_bias is not None
    for start in (spec.inner_size, spec.inner_size + all_groups):
        keep(mixer.in_proj.weight, slice(spec.inner_size + start, spec.inner_size + start + size))
        keep(mixer.conv_weight, slice(start, start + size))
        keep(mixer.conv_bias, slice(start, start + size))
    keep(mixer.A_log, slice(heads))
    keep(mixer.D, slice(heads))
    keep(mixer.out_proj.weight, slice(-GATHERED, None))


def keep_gathering(mixer: Mamba2) -> None:
    """The rest of the first group, for what gathers."""
    spec = mixer.spec
    heads = spec.num_heads // spec.num_groups
    width = heads * spec.head_dim
    assert mixer.conv_bias is not None
    assert mixer.norm is not None
    keep(mixer.in_proj.weight, slice(width))
    keep(mixer.in_proj.weight, slice(spec.inner_size, spec.inner_size + width))
    keep(mixer.in_proj.weight, slice(-spec.num_heads, heads - spec.num_heads or None))
    keep(mixer.dt_bias, slice(heads))
    keep(mixer.conv_weight, slice(width))
    keep(mixer.conv_bias, slice(width))
    keep(mixer.norm.weight, slice(width))
    keep(mixer.out_proj.weight, slice(None), slice(width))


def begin_recalling(mixer: Mamba2, generator: torch.Generator, *, following: bool) -> None:
    """What is read from the state begins as what was stored under a resembling token, over a long memory.

    C begins as B does, outputs as the reverse of inputs, and most heads forget slowly. Where `following`, what is
    stored stands under the one, two or three tokens before it and is looked up by the last ones: copying.
    Source of the idea: mimetic initialisation of state space models, arXiv:2410.11135.
    """
    spec = mixer.spec
    bc_size = spec.num_groups * spec.state_size
    _, x, B, C, dt = mixer.in_proj.weight.data.split(
        [spec.inner_size, spec.inner_size, bc_size, bc_size, spec.num_heads]
    )
    C.copy_(0.9 * B + 0.2 * C)
    mixer.out_proj.weight.data = x.T.contiguous() * 0.5
    dt *= 0.1
    mixer.dt_bias.data = inverse_softplus(0.3 + 0.7 * torch.rand(spec.num_heads, generator=generator))
    mixer.A_log.data = torch.linspace(math.log(1 / 2000), math.log(1.0), spec.num_heads)
    taps = mixer.conv_weight.data
    taps *= 0.25
    taps[: spec.inner_size, :, -1] += 1.0
    for row in range(bc_size):
        back = row % 3 if following else 0
        taps[spec.inner_size + row, :, -1 - back - following] += 1.0
        taps[spec.inner_size + bc_size + row, :, -1 - back] += 1.0
    for rows in (x, B, C):
        rows[:, [CONSTANT_ENTRY, OPENS_ENTRY, RARE_ENTRY]] = 0.0


def at_the_token_itself(parts: Parts) -> None:
    """B and C without a look at the tokens before."""
    for taps in parts.taps:
        taps.zero_()
        taps[:, :, -1] = 1.0


def begin_gathering(mixer: Mamba2, generator: torch.Generator) -> None:
    """B and C nearly constant: the state is the sum of the tokens' x since the segment opened."""
    parts, hidden = first_group(mixer), mixer.in_proj.in_features

    def faint(rows: Tensor, std: float) -> None:
        rows.copy_(torch.randn(rows.shape, generator=generator) * std * hidden**-0.5)

    faint(parts.gate, 0.1)
    # A gate drawn at random would scramble what is gathered, differently at every token.
    parts.gate[:, CONSTANT_ENTRY] = 0.4
    faint(parts.B, 0.1)
    faint(parts.C, 0.1)
    # The token that opens a segment makes a step so long that all before it is forgotten, and stores nothing itself.
    parts.B[:, OPENS_ENTRY] = -2.0
    faint(parts.dt, 0.3)
    parts.dt[:, CONSTANT_ENTRY] = 0.0
    parts.dt[:, OPENS_ENTRY] = 1.5
    parts.dt[:, RARE_ENTRY] = 0.5
    at_the_token_itself(parts)
    for bias in parts.biases:
        bias.fill_(0.3)
    mixer.D.data[: parts.heads] = 0.0
    mixer.dt_bias.data[: parts.heads] = inverse_softplus(STEP)
    mixer.A_log.data[: parts.heads] = torch.linspace(math.log(2.0), math.log(0.5), parts.heads)
    out = mixer.out_proj.weight.data
    out[-GATHERED:] = 0.0
    out[:, : parts.width] = 0.0
    out[-GATHERED:, : parts.width] = torch.randn(GATHERED, parts.width, generator=generator) * 1.2 * parts.width**-0.5


@torch.no_grad()
def whitened(decoder: Decoder, mixer: Mamba2, sample: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (GATHERED,) and whitening matrix (GATHERED, GATHERED) of the gathered tokens as a mixer sees them."""
    seen: list[Tensor] = []
    hook = mixer.in_proj.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    decoder.forward_dense(sample)
    hook.remove()
    gathered = seen[0][..., -GATHERED:].flatten(0, 1)
    values, vectors = torch.linalg.eigh(gathered.T.cov())
    # Directions in which next to nothing varies would be noise, were they scaled up in full.
    return gathered.mean(0), vectors @ torch.diag(values.clamp_min(0.02 * values.max()) ** -0.5) @ vectors.T


def begin_finding(mixer: Mamba2, mean: Tensor, whitening: Tensor, generator: torch.Generator) -> None:
    """B and C are what was gathered, whitened; x and the output are the token itself and its reverse."""
    parts = first_group(mixer)
    turned = torch.linalg.qr(torch.randn(GATHERED, GATHERED, generator=generator))[0][: parts.B.shape[0]]
    keys = KEY_SCALE * turned @ whitening
    for rows, bias in zip((parts.B, parts.C), parts.biases, strict=True):
        rows.zero_()
        rows[:, -GATHERED:] = keys
        bias.copy_(-keys @ mean)
    at_the_token_itself(parts)
    parts.gate.zero_()
    parts.gate[:, CONSTANT_ENTRY] = 0.4
    tokens = slice(RARE_ENTRY + 1, -GATHERED)
    drawn = torch.randn(parts.x[:, tokens].shape, generator=generator)
    parts.x.zero_()
    parts.x[:, tokens] = TOKEN_SCALE * torch.linalg.qr(drawn)[0] * (drawn.shape[0] / drawn.shape[1]) ** 0.5
    taps = mixer.conv_weight.data[: parts.width]
    taps.zero_()
    taps[:, :, -1] = 1.0
    parts.dt.zero_()
    parts.dt[:, RARE_ENTRY] = 1.5
    mixer.dt_bias.data[: parts.heads] = inverse_softplus(STEP)
    mixer.D.data[: parts.heads] = 0.0
    out = mixer.out_proj.weight.data
    out[:, : parts.width] = parts.x.T * 1.2 / TOKEN_SCALE
    out[-GATHERED:] = 0.0
