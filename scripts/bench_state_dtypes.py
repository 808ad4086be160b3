"""What recurrent states cost in quality, and save, when they are kept in 16 bits between steps.

    python -m scripts.bench_state_dtypes --text FILE...            # all parts but speed
    python -m scripts.bench_state_dtypes --only exams --questions 100
    python -m scripts.bench_state_dtypes --only speed

exams: the embedded Mamba's exactly right answers, every prompt read token by token, so that its state is rounded after
each, and read at once, as a server does. text: its next-token distributions on texts against those with float32 states,
likewise token by token. drift: the same of random models of each kind over 10,000 random tokens, and how far their
states are off. speed: decode steps of random models, in turn.
"""

import argparse
import math
import random
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer
from torch import Tensor, nn

from models.batch import ForwardBatch
from models.cache import CacheShape, StateCache, allocate_caches
from models.config import DeltaNetSpec, LayerSpec, Mamba1Spec, Mamba2Spec, MLPSpec, ModelConfig, RecurrentSpec
from models.decoder import Decoder
from models.delta_net import DeltaNet
from models.embedded import PREFIX, embedded_directory
from models.kernels.bind import bind
from models.kernels.environment import probe
from models.load import load_decoder
from models.ssm import Mamba1, Mamba2
from scripts.embedded_episodes import EpisodeMaker
from scripts.embedded_exams import EXAM_SEED

PARTS = ("exams", "text", "drift", "speed")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
NARROW = ("bfloat16", "float16")
CPU = torch.device("cpu")
LENGTHS = (125, 250, 500, 1000)
VOCAB_SIZE = 1024
SPECS: dict[str, RecurrentSpec] = {
    "Mamba": Mamba1Spec(512, 16, 16, 4, conv_bias=True, proj_bias=False),
    "Mamba-2": Mamba2Spec(8, 64, 64, 1, 4, conv_bias=True, proj_bias=False, chunk_size=64, norm_eps=1e-5),
    "Gated DeltaNet": DeltaNetSpec(4, 8, 64, 64, 4, 1e-5),
}
# In the proportions of published models.
LARGE_SPECS: dict[str, RecurrentSpec] = {
    "Mamba": Mamba1Spec(1024, 16, 32, 4, conv_bias=True, proj_bias=False),
    "Mamba-2": Mamba2Spec(16, 64, 128, 1, 4, conv_bias=True, proj_bias=False, chunk_size=64, norm_eps=1e-5),
    "Gated DeltaNet": DeltaNetSpec(4, 8, 128, 128, 4, 1e-5),
}


class Sequences:
    """Some sequences of a recurrent model, whose states are kept in some dtype."""

    def __init__(self, decoder: Decoder, count: int, dtype: str) -> None:
        self.caches = allocate_caches(
            decoder.config, CacheShape(0, 1, count), dtype=torch.float32, device=CPU, state_dtype=DTYPES[dtype]
        )
        bind(decoder, probe(CPU), torch.float32, 1, DTYPES[dtype])
        self._decoder, self.lengths = decoder, torch.zeros(count, dtype=torch.int64)

    def read(self, which: Sequence[int], tokens: Sequence[Sequence[int]]) -> Tensor:
        """Read some tokens of some of them; logits (all tokens, vocab)."""
        counts = torch.tensor([len(each) for each in tokens])
        rows = int(counts.sum())
        index, empty = torch.tensor(which), torch.empty(len(which), 0, dtype=torch.int64)
        batch = ForwardBatch(
            token_ids=torch.tensor([token for each in tokens for token in each]),
            positions=torch.zeros(rows, dtype=torch.int64),
            query_start=torch.cat((torch.zeros(1, dtype=torch.int64), counts.cumsum(0))),
            context_lens=self.lengths[index],
            block_tables=empty,
            slot_mapping=torch.full((rows,), -1),
            state_slots=index,
            logit_rows=torch.arange(rows),
        )
        self.lengths[index] += counts
        logits: Tensor = self._decoder(batch, self.caches)
        return logits


def random_decoder(spec: RecurrentSpec, hidden_size: int, num_layers: int, vocab_size: int) -> Decoder:
    """Random weights, with steps and decays as the papers draw them: some heads forget slowly."""
    generator = torch.Generator().manual_seed(0)
    layers = (LayerSpec(spec, MLPSpec(2 * hidden_size)),) * num_layers
    decoder = Decoder(ModelConfig("random", hidden_size, vocab_size, layers, 1e-5, True, None, ()))
    for parameter in decoder.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5, generator=generator)
    for module in decoder.modules():
        if isinstance(module, Mamba1 | Mamba2 | DeltaNet):
            uniform = torch.rand(module.A_log.shape, generator=generator)
            module.A_log.data = (1 + 15 * uniform).log()
            bias = module.dt_proj.bias if isinstance(module, Mamba1) else module.dt_bias
            assert bias is not None
            steps = (math.log(1e-3) + math.log(100) * torch.rand(bias.shape, generator=generator)).exp()
            bias.data = steps + (-torch.expm1(-steps)).log()
    return decoder.eval().requires_grad_(False)


def exams(decoder: Decoder, tokenizer: Tokenizer, lengths: Sequence[int], num_questions: int) -> list[tuple[str, ...]]:
    """Rows: tokens of documents, how they are read, and the share of exact answers about facts by dtype."""
    maker = EpisodeMaker(random.Random(EXAM_SEED), tokenizer)
    rows: list[tuple[str, ...]] = []
    for length in lengths:
        asked = [maker.exam("must_answer", length, "fact") for _ in range(num_questions)]
        for way in ("token by token", "at once"):
            by_token = way == "token by token"
            shares = [f"{answered(decoder, asked, dtype, by_token=by_token):.3f}" for dtype in DTYPES]
            rows.append((str(length), way, *shares))
    return rows


def answered(decoder: Decoder, asked: list[tuple[list[int], list[int]]], dtype: str, *, by_token: bool) -> float:
    """The share of answers of which every token is the likeliest one after those before."""
    sequences = Sequences(decoder, len(asked), dtype)
    right, done = [True] * len(asked), [0] * len(asked)
    texts = [prompt + target[:-1] for prompt, target in asked]
    while which := [i for i, text in enumerate(texts) if done[i] < len(text)]:
        pieces = []
        for i in which:
            stop = done[i] + 1 if by_token or done[i] else len(asked[i][0])
            pieces.append(texts[i][done[i] : stop])
            done[i] = stop
        ends = torch.tensor([len(piece) for piece in pieces]).cumsum(0) - 1
        for i, likeliest in zip(which, sequences.read(which, pieces)[ends].argmax(-1).tolist(), strict=True):
            prompt, target = asked[i]
            if done[i] >= len(prompt):
                right[i] &= likeliest == target[done[i] - len(prompt)]
    return sum(right) / len(right)


def states_off(mine: Sequences, exact: Sequences) -> float:
    """How far states are from exact ones, as a share of their size, in the mean over layers."""
    pairs = [
        (mine_layer.ssm_state.float(), layer.ssm_state)
        for mine_layer, layer in zip(mine.caches, exact.caches, strict=True)
        if isinstance(mine_layer, StateCache) and isinstance(layer, StateCache)
    ]
    return statistics.mean(float((found - wanted).norm() / wanted.norm()) for found, wanted in pairs)


def compare(decoder: Decoder, ids: Tensor, what: str) -> list[tuple[str, ...]]:
    """Read ids (sequences, tokens) token by token with states of each dtype; rows of how far what they give parts."""
    count, length = ids.shape
    runs = {dtype: Sequences(decoder, count, dtype) for dtype in DTYPES}
    found: dict[str, list[tuple[float, float]]] = {dtype: [] for dtype in NARROW}
    for t in range(length):
        logits = {dtype: run.read(range(count), ids[:, t : t + 1].tolist()) for dtype, run in runs.items()}
        exact = logits["float32"].log_softmax(-1)
        for dtype, points in found.items():
            kl = F.kl_div(logits[dtype].log_softmax(-1), exact, reduction="batchmean", log_target=True)
            points.append((float(kl), float((logits[dtype].argmax(-1) == exact.argmax(-1)).float().mean())))
    rows: list[tuple[str, ...]] = []
    for dtype, points in found.items():
        means = [
            statistics.mean(values) for part in (points, points[-length // 4 :]) for values in zip(*part, strict=True)
        ]
        off = states_off(runs[dtype], runs["float32"])
        rows.append(
            (what, dtype, f"{means[0]:.1e}", f"{means[2]:.1e}", f"{means[1]:.4f}", f"{means[3]:.4f}", f"{off:.1e}")
        )
    return rows


def text_ids(tokenizer: Tokenizer, files: Sequence[Path], count: int, length: int) -> Tensor:
    """Runs of tokens (count, length) from the beginning of texts, one after the other."""
    ids: list[int] = []
    for file in files:
        ids += tokenizer.encode(file.read_text(encoding="utf-8")[: 8 * count * length]).ids
    if len(ids) < count * length:
        raise SystemExit(f"--text: {len(ids):,} tokens, of which {count * length:,} are wanted")
    return torch.tensor(ids[: count * length]).view(count, length)


def speed(spec: RecurrentSpec, what: str, *, batch: int, steps: int, repeats: int) -> list[tuple[str, ...]]:
    """Rows: bytes of a sequence and decode steps per second, the median of turns taken by the dtypes."""
    decoder = random_decoder(spec, 512, 12, VOCAB_SIZE)
    runs = {dtype: Sequences(decoder, batch, dtype) for dtype in DTYPES}
    seconds: dict[str, list[float]] = {dtype: [] for dtype in DTYPES}
    tokens = [[7]] * batch
    for run in runs.values():
        for _ in range(3):
            run.read(range(batch), tokens)
    for _ in range(repeats):
        for dtype, run in runs.items():
            started_s = time.perf_counter()
            for _ in range(steps):
                run.read(range(batch), tokens)
            seconds[dtype].append((time.perf_counter() - started_s) / steps)
    rows: list[tuple[str, ...]] = []
    for dtype, times in seconds.items():
        size = decoder.config.cache_needs(4, DTYPES[dtype].itemsize).bytes_per_sequence
        rows.append((what, dtype, f"{size:,}", f"{1 / statistics.median(times):.1f}"))
    return rows


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*row)
    Console(width=140).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description="Quality and speed of recurrent states in 16 bits.")
    parser.add_argument("--only", default="exams,text,drift", help=f"some of {','.join(PARTS)}")
    parser.add_argument("--text", type=Path, nargs="*", default=[], help="files of plain text")
    parser.add_argument("--questions", type=int, default=100, help="per length")
    parser.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS), help="tokens of the exams' documents")
    parser.add_argument("--tokens", type=int, default=2048, help="of each of eight texts")
    parser.add_argument("--drift-tokens", type=int, default=10_000)
    parser.add_argument("--models", default="Mamba-2,Gated DeltaNet", help=f"of drift and speed: {','.join(SPECS)}")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    parts = arguments.only.split(",")
    if wrong := set(parts) - set(PARTS):
        parser.error(f"--only: {', '.join(sorted(wrong))} is none of {', '.join(PARTS)}")
    models = [name for name in SPECS if name in arguments.models.split(",")]
    torch.set_flush_denormal(True)
    directory = embedded_directory(PREFIX + "mamba")
    decoder = load_decoder(directory, dtype=torch.float32, device=CPU)
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    apart = ("", "states", "KL", "KL, last quarter", "same likeliest", "last quarter", "states off by")
    with torch.inference_mode():
        if "exams" in parts:
            rows = exams(decoder, tokenizer, arguments.lengths, arguments.questions)
            show(f"facts, {arguments.questions} questions each", ("tokens", "read", *DTYPES), rows)
        if "text" in parts:
            ids = text_ids(tokenizer, arguments.text, 8, arguments.tokens)
            show(f"8 texts of {arguments.tokens:,} tokens", apart, compare(decoder, ids, "embedded Mamba"))
        if "drift" in parts:
            ids = torch.randint(VOCAB_SIZE, (1, arguments.drift_tokens), generator=torch.Generator().manual_seed(1))
            for name in models:
                rows = compare(random_decoder(SPECS[name], 256, 2, VOCAB_SIZE), ids, name)
                show(f"a run of {arguments.drift_tokens:,} random tokens", apart, rows)
        for name in models if "speed" in parts else ():
            rows = speed(LARGE_SPECS[name], name, batch=arguments.batch, steps=5, repeats=arguments.repeats)
            show(
                f"decode, {arguments.batch} sequences", ("", "states", "bytes of a sequence", "steps per second"), rows
            )


if __name__ == "__main__":
    main()
