"""Whether a device's kernels care where caches lie, and what states in 16 bits cost there: steps without an engine."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from models.attention import Attention
from models.batch import ForwardBatch
from models.cache import CacheShape, LayerCache, allocate_caches, row_bytes
from models.config import AttentionSpec, RecurrentSpec, simple_mixers
from models.decoder import Decoder
from models.kernels.bind import attention_kernels, bind
from models.kernels.environment import probe
from models.load import load_decoder
from scripts.bench_state_dtypes import SPECS, random_decoder
from scripts.gpu_attention import candidates
from scripts.gpu_checks import Check, Place
from scripts.gpu_models import blocks_of, make_batch, tensors_of
from server.runner import DTYPES

CPU = torch.device("cpu")
# A prompt in two chunks and some steps of three sequences: (tokens remembered, new tokens).
STEPS = ((0, 300), (300, 45), *((345 + step, 1) for step in range(6)))
NUM_SEQUENCES = 3
# What another order of sums may make of a logit, as a share of the largest; in bfloat16 of what is rounded in between.
TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-2, "float16": 1e-2}
FROM_PROCESSOR = 5e-3  # of the same in float32 by other kernels, some of which multiply in fewer bits
STATE_STEPS = {"full": 64, "toy": 8}
# How much farther from float32 states a device's may lead than the processor's, in the mean over all logits.
FARTHER = 1.25


def off_by(mine: Tensor, others: Tensor) -> float:
    """The largest deviation as a share of the largest logit; infinite where there is nonsense in either."""
    deviation = float((mine - others).abs().max() / others.abs().max())
    return deviation if deviation == deviation else float("inf")


def batches(decoder: Decoder, block_size: int, device: torch.device) -> Iterator[ForwardBatch]:
    """The same on every device."""
    generator, vocab_size = torch.Generator().manual_seed(3), decoder.config.vocab_size
    tokens = sum(new for _, new in STEPS)
    for context, new in STEPS:
        made = make_batch(
            context, new, NUM_SEQUENCES, tokens=tokens, block_size=block_size, vocab_size=vocab_size, device=device
        )
        ids = torch.randint(vocab_size, (NUM_SEQUENCES * new,), generator=generator)
        yield replace(made, token_ids=ids.to(device))


@torch.inference_mode()
def logits_of(decoder: Decoder, caches: list[LayerCache], block_size: int, device: torch.device) -> Tensor:
    """(rows, vocab) float32 on the processor, of all steps."""
    return torch.cat([decoder(batch, caches).float().cpu() for batch in batches(decoder, block_size, device)])


def caches_of(
    decoder: Decoder, block_size: int, dtype: torch.dtype, device: torch.device, *, arena: bool
) -> list[LayerCache]:
    """Caches for all steps, in which there is nonsense at first; in one buffer it may be anything."""
    num_blocks = NUM_SEQUENCES * blocks_of(sum(new for _, new in STEPS), block_size)
    rows = row_bytes(decoder.config, block_size, dtype, torch.float32)
    size = num_blocks * rows.block + NUM_SEQUENCES * rows.slot
    shape = CacheShape(num_blocks, block_size, NUM_SEQUENCES, size if arena else None)
    caches = allocate_caches(decoder.config, shape, dtype=dtype, device=device)
    for tensor in tensors_of(caches):
        tensor.fill_(float("nan") if arena else 1e4)
    return caches


def arena_checks(place: Place) -> Iterator[Check]:
    environment, directory = place.environment, place.directories["hybrid"]
    exact_decoder = load_decoder(directory, dtype=torch.float32, device=CPU)
    for name in place.dtypes:
        dtype = DTYPES[name]
        decoder = load_decoder(directory, dtype=dtype, device=place.device)
        spec = next(spec for spec in simple_mixers(decoder.config.layers) if isinstance(spec, AttentionSpec))
        for backend, block_size in candidates(spec, environment, name):
            bind(decoder, environment, dtype, block_size)
            for module in decoder.modules():
                if isinstance(module, Attention):
                    module.kernels = attention_kernels(backend)
            found = {}
            for arena in (False, True):
                caches = caches_of(decoder, block_size, dtype, place.device, arena=arena)
                found[arena] = logits_of(decoder, caches, block_size, place.device)
            deviation = off_by(found[True], found[False])
            what, how = f"one buffer, {name}", f"{backend}, blocks of {block_size}"
            told = f"off by {deviation:.1e}"
            yield Check("hybrid", what, "buffers of their own", told, deviation <= TOLERANCE[name], how)
            bind(exact_decoder, probe(CPU), torch.float32, block_size)
            caches = caches_of(exact_decoder, block_size, torch.float32, CPU, arena=False)
            deviation = off_by(found[True], logits_of(exact_decoder, caches, block_size, CPU))
            passed = deviation <= FROM_PROCESSOR if name == "float32" else None
            yield Check("hybrid", what, "the processor in float32", f"off by {deviation:.1e}", passed, how)


@torch.inference_mode()
def stepped(decoder: Decoder, state_dtype: str, device: torch.device, num_steps: int) -> tuple[Tensor, str]:
    """Logits of a prompt and of steps after each of which states are rounded; and the kernels of the steps."""
    shape, dtype = CacheShape(0, 1, NUM_SEQUENCES), DTYPES[state_dtype]
    caches = allocate_caches(decoder.config, shape, dtype=torch.float32, device=device, state_dtype=dtype)
    choices = bind(decoder, probe(device), torch.float32, 1, dtype)
    generator, vocab_size = torch.Generator().manual_seed(4), decoder.config.vocab_size
    found = []
    for context, new in ((0, 40), *((40 + step, 1) for step in range(num_steps))):
        made = make_batch(
            context, new, NUM_SEQUENCES, tokens=40 + num_steps, block_size=1, vocab_size=vocab_size, device=device
        )
        rows = NUM_SEQUENCES * new
        made = replace(
            made,
            token_ids=torch.randint(vocab_size, (rows,), generator=generator).to(device),
            block_tables=torch.empty(NUM_SEQUENCES, 0, dtype=torch.int64, device=device),
            slot_mapping=torch.full((rows,), -1, device=device),
        )
        found.append(decoder(made, caches).float().cpu())
    step = next(choice for choice in choices if choice.operation in ("selective step", "SSD step", "delta step"))
    return torch.cat(found), step.backend


def mean_share(mine: Tensor, others: Tensor) -> float:
    """The mean deviation as a share of the largest logit."""
    return float((mine - others).abs().mean() / others.abs().max())


def state_checks(place: Place) -> Iterator[Check]:
    num_steps = STATE_STEPS[place.size]
    for subject, spec in SPECS.items():
        # Weights are laid out for a device's kernels, so each has a decoder of its own.
        def logits(name: str, device: torch.device, spec: RecurrentSpec = spec) -> tuple[Tensor, str]:
            return stepped(random_decoder(spec, 256, 2, 512).to(device), name, device, num_steps)

        exact, _ = logits("float32", CPU)
        mine, backend = logits("float32", place.device)
        deviation = off_by(mine, exact)
        against = "the processor in float32"
        passed = deviation <= FROM_PROCESSOR
        yield Check(subject, "--state-dtype float32", against, f"off by {deviation:.1e}", passed, f"step {backend}")
        for name in ("bfloat16", "float16"):
            narrow, backend = logits(name, place.device)
            off, usually = mean_share(narrow, mine), mean_share(logits(name, CPU)[0], exact)
            told = f"off by {off:.1e} in the mean, on the processor by {usually:.1e}"
            passed = off <= FARTHER * usually
            yield Check(subject, f"--state-dtype {name}", "float32 states", told, passed, f"step {backend}")
