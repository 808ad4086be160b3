"""Models of random weights in published shapes, their caches filled at random, and the step that is timed.

What a step costs does not depend on what the weights say, so nothing is downloaded and no context is prefilled.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from models.batch import ForwardBatch
from models.cache import CacheShape, LayerCache, ParallelCache, allocate_caches
from models.config import ModelConfig
from models.decoder import Decoder
from models.families import FAMILIES
from scripts.models_page import EXAMPLES

Size = Literal["full", "toy"]
Model = tuple[str, dict[str, Any]]  # the class that `architectures` names, and the fields of config.json

TOY_LLAMA: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "max_position_embeddings": 4096,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "vocab_size": 256,
}
TOY_MAMBA: dict[str, Any] = {
    "chunk_size": 16,
    "conv_kernel": 4,
    "expand": 2,
    "head_dim": 16,
    "hidden_size": 64,
    "layer_norm_epsilon": 1e-5,
    "n_groups": 1,
    "num_heads": 8,
    "num_hidden_layers": 2,
    "state_size": 16,
    "vocab_size": 256,
}
TOY_HYBRID: dict[str, Any] = {
    **TOY_LLAMA,
    "mamba_d_head": 16,
    "mamba_d_ssm": 64,
    "mamba_d_state": 16,
    "mamba_n_heads": 4,
}


@dataclass(frozen=True, slots=True)
class Sizes:
    """What is measured: models by name, contexts and batches of decoding, prompts in chunks; what ceilings are made of.

    copy_bytes: of the buffer that is copied. matmul: rows and columns of the square matrices.
    """

    models: dict[str, Model]
    contexts: tuple[int, ...]
    batches: tuple[int, ...]
    prompts: tuple[int, ...]
    chunk: int
    copy_bytes: int
    matmul: int


SIZES: dict[Size, Sizes] = {
    "full": Sizes(
        models={name: EXAMPLES[name] for name in ("Llama-3.1-8B", "Mamba-2-2.7B", "Falcon-H1-7B")},
        contexts=(1 << 10, 16 << 10, 128 << 10),
        batches=(1, 16, 128),
        prompts=(2048, 16 << 10),
        chunk=2048,
        copy_bytes=4 << 30,
        matmul=8192,
    ),
    "toy": Sizes(
        models={
            "toy-llama": ("LlamaForCausalLM", TOY_LLAMA),
            "toy-mamba2": ("Mamba2ForCausalLM", TOY_MAMBA),
            "toy-falcon-h1": ("FalconH1ForCausalLM", TOY_HYBRID),
        },
        contexts=(40, 300),
        batches=(1, 3),
        prompts=(32, 80),
        chunk=32,
        copy_bytes=4 << 20,
        matmul=128,
    ),
}


def read_model(model: Model) -> ModelConfig:
    architecture, fields = model
    return FAMILIES[architecture].read_config(fields)


@torch.no_grad()
def build_decoder(config: ModelConfig, *, dtype: torch.dtype, device: torch.device) -> Decoder:
    """A decoder whose weights are made on the device: matrices that keep the size of what they read, plain norms."""
    with torch.device("meta"):
        decoder = Decoder(config)
    decoder = decoder.to(dtype).to_empty(device=device)
    for name, parameter in decoder.named_parameters():
        if parameter.dim() >= 2:
            parameter.normal_(std=parameter.shape[-1] ** -0.5)
        else:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
    return decoder.eval().requires_grad_(False)


def tensors_of(caches: Sequence[LayerCache]) -> Iterator[Tensor]:
    for cache in caches:
        if isinstance(cache, ParallelCache):
            yield from tensors_of([cache.attention, cache.recurrent])
        elif cache is not None:
            yield from (getattr(cache, field) for field in cache.__slots__)


def blocks_of(tokens: int, block_size: int) -> int:
    return -(-tokens // block_size)


def filled_caches(
    config: ModelConfig, tokens: int, batch: int, *, block_size: int, dtype: torch.dtype, device: torch.device
) -> list[LayerCache]:
    """Caches for `batch` sequences of so many tokens, full of random numbers: zeros could be read faster than these."""
    shape = CacheShape(batch * blocks_of(tokens, block_size), block_size, batch)
    caches = allocate_caches(config, shape, dtype=dtype, device=device)
    for tensor in tensors_of(caches):
        tensor.normal_()
    return caches


def make_batch(
    context: int, new: int, batch: int, *, tokens: int, block_size: int, vocab_size: int, device: torch.device
) -> ForwardBatch:
    """`new` tokens of each of `batch` sequences that remember `context`; the last one's logits are wanted.

    Blocks and slots lie scattered, the same way in every call, in caches for sequences of `tokens` tokens.
    """
    per_sequence = blocks_of(tokens, block_size)
    dealt = torch.randperm(batch * per_sequence, generator=torch.Generator().manual_seed(0)).view(batch, per_sequence)
    positions = torch.arange(context, context + new)
    slots = dealt[:, positions // block_size] * block_size + positions % block_size
    return ForwardBatch(
        token_ids=torch.randint(vocab_size, (batch * new,), device=device),
        positions=positions.repeat(batch).to(device),
        query_start=torch.arange(batch + 1) * new,
        context_lens=torch.full((batch,), context),
        block_tables=dealt[:, : blocks_of(context + new, block_size)].contiguous().to(device),
        slot_mapping=slots.flatten().to(device),
        state_slots=torch.randperm(batch, generator=torch.Generator().manual_seed(1)).to(device),
        logit_rows=(torch.arange(1, batch + 1) * new - 1).to(device),
    )


def decode_step(decoder: Decoder, batch: ForwardBatch, caches: Sequence[LayerCache]) -> Tensor:
    """What the server does for a step of decoding, sampling aside. The one place to change when it does it otherwise.

    The step is repeated at the same positions: keys and values are written where they were written before.
    """
    logits: Tensor = decoder(batch, caches)
    return logits


def captured(step: Callable[[], object]) -> Callable[[], object]:
    """A step as a CUDA graph, which is replayed without Python: what a runner that captures its steps would take.

    Raises:
        RuntimeError: the step waits for the GPU somewhere, or has kernels that cannot be captured.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay
