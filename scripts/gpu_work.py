"""The least that a step must move and compute, counted from what a model is. Plain numbers; nothing is measured here.

Left out as small: activations, norms, positions, the rows of the embedding that a step reads.
"""

import math

from torch import nn

from models.config import AttentionSpec, CacheNeeds, simple_mixers
from models.decoder import Decoder

# For each entry of a recurrent state and token: decay it, make what is added of two factors, add, multiply, sum.
STATE_OPERATIONS = 5


def weight_bytes(decoder: Decoder) -> int:
    """Of all parameters, once. An embedding is read by rows, so its matrix counts only where it is the head as well."""
    left_out = None if decoder.head is None else decoder.embedding.weight
    return sum(parameter.nbytes for parameter in decoder.parameters() if parameter is not left_out)


def decode_bytes(weights: int, needs: CacheNeeds, batch: int, context: int) -> int:
    """Weights once; of each sequence the context's keys and values and the new ones, written and read; states twice."""
    cached = needs.bytes_per_token * (context + 2)
    return weights + batch * (cached + 2 * needs.bytes_per_sequence)


def attention_bytes(spec: AttentionSpec, element_bytes: int, batch: int, context: int) -> int:
    """What one layer's attention reads in a step of decoding: keys and values, the new ones among them; no weights."""
    return spec.cache_needs(element_bytes).bytes_per_token * batch * (context + 1)


def prefill_operations(decoder: Decoder, tokens: int, chunk: int) -> int:
    """Floating-point operations of a prompt from its first token: two for each weight and token, attention over what
    lies before, recurrences as they are written (a chunked scan does more). The head sees one token of each chunk.
    """
    linear = sum(m.weight.numel() for m in decoder.modules() if isinstance(m, nn.Linear) and m is not decoder.head)
    head = (decoder.embedding if decoder.head is None else decoder.head).weight.numel()
    pairs = tokens * (tokens + 1) // 2
    mixed = 0
    for spec in simple_mixers(decoder.config.layers):
        if isinstance(spec, AttentionSpec):
            mixed += 4 * spec.num_heads * spec.head_dim * pairs
        else:
            mixed += STATE_OPERATIONS * math.prod(spec.state_shape) * tokens
    return 2 * linear * tokens + 2 * head * -(-tokens // chunk) + mixed
