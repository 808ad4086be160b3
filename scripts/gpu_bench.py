"""Decoding and prefill of models of random weights, one row of results after the other.

What does not fit into free memory gives a row that says so. Shares are of ceilings measured on the same device.
"""

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from importlib.util import find_spec

import psutil
import torch

from models.config import ModelConfig
from models.decoder import Decoder
from models.kernels.bind import bind
from models.kernels.choose import preferred_block_size
from models.kernels.environment import Environment
from scripts.gpu_models import (
    Sizes,
    blocks_of,
    build_decoder,
    captured,
    decode_step,
    filled_caches,
    make_batch,
    read_model,
)
from scripts.gpu_report import Row
from scripts.gpu_timing import Timing, time_calls
from scripts.gpu_work import decode_bytes, prefill_operations, weight_bytes

WORKING_BYTES = {"cuda": 2 << 30, "cpu": 64 << 20}  # beside weights and caches


@dataclass(frozen=True, slots=True)
class Bench:
    """Where everything is measured, and its ceilings in bytes and operations per second."""

    sizes: Sizes
    device: torch.device
    dtype: torch.dtype
    environment: Environment
    copy_rate: float
    matmul_rate: float

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    def models(self) -> Iterator[tuple[str, ModelConfig]]:
        return ((name, read_model(model)) for name, model in self.sizes.models.items())

    def cells(self) -> list[tuple[int, int]]:
        """(batch, context), those with less to remember first."""
        cells = [(batch, context) for batch in self.sizes.batches for context in self.sizes.contexts]
        return sorted(cells, key=lambda cell: cell[0] * cell[1])

    def refuses(self, needed_bytes: int) -> str | None:
        """Why so much cannot be allocated."""
        if self.device.type == "cuda":
            gc.collect()  # what a failed row has left
            torch.cuda.empty_cache()
            free = torch.cuda.mem_get_info(self.device)[0]
        else:
            free = psutil.virtual_memory().available
        needed = needed_bytes + WORKING_BYTES[self.device.type]
        return None if needed <= free else f"does not fit: {needed / 1e9:.1f} GB wanted, {free / 1e9:.1f} GB free"


def filled(row: Row, timing: Timing, *, tokens: int | None = None) -> Row:
    """The row with what was measured; tokens: of one call."""
    rate = None if tokens is None else tokens / timing.median_s
    return replace(row, seconds=timing.median_s, spread=timing.spread, tokens_per_s=rate)


def failures() -> tuple[type[Exception], ...]:
    """What a kernel that cannot serve raises: out of memory is a RuntimeError, as is what a capture does not allow."""
    known = (RuntimeError, ValueError, AssertionError)
    return known if find_spec("triton") is None else (*known, import_module("triton.errors").TritonError)


def measure(row: Row, action: Callable[[Row], Row]) -> Row:
    """What the action makes of the row, or the row with the reason why it cannot."""
    try:
        return action(row)
    except failures() as error:
        first_line = (str(error) or repr(error)).strip().splitlines()[0]
        return replace(row, note=f"failed: {first_line[:200]}")


def cache_bytes(config: ModelConfig, bench: Bench, tokens: int, batch: int, block_size: int) -> int:
    needs = config.cache_needs(bench.dtype.itemsize)
    return batch * (needs.bytes_per_token * blocks_of(tokens, block_size) * block_size + needs.bytes_per_sequence)


def bound(name: str, config: ModelConfig, bench: Bench) -> tuple[Decoder, int, str] | Row:
    """A decoder with the kernels of the rule, its block size, and which kernels those are."""
    with torch.device("meta"):
        needed = sum(parameter.numel() for parameter in Decoder(config).parameters()) * bench.dtype.itemsize
    if reason := bench.refuses(needed):
        return Row("decode", name, "weights", note=reason)
    decoder = build_decoder(config, dtype=bench.dtype, device=bench.device)
    block_size = preferred_block_size(config.layers, bench.environment, bench.dtype_name)
    choices = bind(decoder, bench.environment, bench.dtype, block_size)
    return decoder, block_size, ", ".join(f"{choice.operation} {choice.backend}" for choice in choices)


def decode_row(row: Row, decoder: Decoder, bench: Bench, block_size: int) -> Row:
    """One cell of decoding, eager or captured."""
    config, tokens = decoder.config, row.context + 1
    if reason := bench.refuses(cache_bytes(config, bench, tokens, row.batch, block_size)):
        return replace(row, note=reason)
    caches = filled_caches(config, tokens, row.batch, block_size=block_size, dtype=bench.dtype, device=bench.device)
    batch = make_batch(
        row.context,
        1,
        row.batch,
        tokens=tokens,
        block_size=block_size,
        vocab_size=config.vocab_size,
        device=bench.device,
    )
    if row.how == "captured":
        with torch.inference_mode():
            step = captured(lambda: decode_step(decoder, batch, caches))
    else:
        # A batch of its own for each step, as in the server: what follows from its lengths is worked out each time.
        step = lambda: decode_step(decoder, replace(batch), caches)  # noqa: E731
    timing = time_calls(step, bench.device)
    needs = config.cache_needs(bench.dtype.itemsize)
    moved = decode_bytes(weight_bytes(decoder), needs, row.batch, row.context)
    share = moved / timing.median_s / bench.copy_rate
    return replace(filled(row, timing, tokens=row.batch), bytes_moved=moved, share=share)


def _decode_model(bench: Bench, name: str, config: ModelConfig, how: str) -> Iterator[Row]:
    made = bound(name, config, bench)
    if isinstance(made, Row):
        yield made
        return
    decoder, block_size, backends = made
    measured = partial(decode_row, decoder=decoder, bench=bench, block_size=block_size)
    for batch, context in bench.cells():
        yield measure(Row("decode", name, how, batch, context, backends=backends), measured)


def decode_rows(bench: Bench) -> Iterator[Row]:
    for name, config in bench.models():
        yield from _decode_model(bench, name, config, "eager")


def captured_rows(bench: Bench) -> Iterator[Row]:
    """The same in CUDA graphs, of which there are none without a GPU."""
    if bench.device.type == "cuda":
        for name, config in bench.models():
            yield from _decode_model(bench, name, config, "captured")


def prefill_row(row: Row, decoder: Decoder, bench: Bench, block_size: int) -> Row:
    """One prompt in chunks, from its first token to its last."""
    config, chunk, tokens = decoder.config, bench.sizes.chunk, row.context
    if reason := bench.refuses(cache_bytes(config, bench, tokens, 1, block_size)):
        return replace(row, note=reason)
    caches = filled_caches(config, tokens, 1, block_size=block_size, dtype=bench.dtype, device=bench.device)
    batches = [
        make_batch(
            start,
            min(chunk, tokens - start),
            1,
            tokens=tokens,
            block_size=block_size,
            vocab_size=config.vocab_size,
            device=bench.device,
        )
        for start in range(0, tokens, chunk)
    ]

    def prompt() -> None:
        for batch in batches:
            decoder(replace(batch), caches)

    timing = time_calls(prompt, bench.device)
    operations = prefill_operations(decoder, tokens, chunk)
    share = operations / timing.median_s / bench.matmul_rate
    return replace(filled(row, timing, tokens=tokens), operations=operations, share=share)


def _prefill_model(bench: Bench, name: str, config: ModelConfig) -> Iterator[Row]:
    made = bound(name, config, bench)
    if isinstance(made, Row):
        yield made
        return
    decoder, block_size, backends = made
    measured = partial(prefill_row, decoder=decoder, bench=bench, block_size=block_size)
    for prompt in bench.sizes.prompts:
        yield measure(Row("prefill", name, f"chunks of {bench.sizes.chunk}", 1, prompt, backends=backends), measured)


def prefill_rows(bench: Bench) -> Iterator[Row]:
    for name, config in bench.models():
        yield from _prefill_model(bench, name, config)
