"""What weights in 8 bits cost in quality: the embedded models' next tokens on texts, against those of float32.

    python -m scripts.bench_quantization --text FILE...

Of each model, in bfloat16 and with `--quantization int8`: the mean KL divergence from float32 in nats, the share of
tokens with the same likeliest one, and the bytes of its matrices.
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer
from torch import Tensor

from models.decoder import Decoder
from models.embedded import EMBEDDED, embedded_directory
from models.kernels.bind import bind
from models.kernels.environment import probe
from models.linear import Panels
from models.load import load_decoder
from scripts.bench_state_dtypes import CPU, text_ids

WAYS = {"float32": (torch.float32, False), "bfloat16": (torch.bfloat16, False), "int8": (torch.float32, True)}


def panels_of(part: object) -> Panels | None:
    """What a module, or several joined, has laid out."""
    return next((value for value in vars(part).values() if isinstance(value, Panels)), None)


def matrix_bytes(decoder: Decoder) -> int:
    """Of all matrices of weights that are laid out."""
    parts = [*decoder.modules(), *(module.opening for module in decoder.modules() if hasattr(module, "opening"))]
    return sum(panels.content.nbytes for panels in map(panels_of, parts) if panels is not None)


def log_probabilities(decoder: Decoder, ids: Tensor) -> Tensor:
    """Of the next tokens, (sequences, tokens - 1, vocab) float32."""
    logits: Tensor = decoder.logits(decoder.forward_dense(ids[:, :-1]))
    return logits.log_softmax(-1)


def rows_of(name: str, files: list[Path], count: int, length: int) -> list[tuple[str, ...]]:
    directory = embedded_directory(name)
    ids = text_ids(Tokenizer.from_file(str(directory / "tokenizer.json")), files, count, length)
    exact: Tensor | None = None
    rows: list[tuple[str, ...]] = []
    for way, (dtype, int8) in WAYS.items():
        decoder = load_decoder(directory, dtype=dtype, device=CPU)
        bind(decoder, probe(CPU), dtype, 16, int8=int8)
        found = log_probabilities(decoder, ids)
        exact = found if exact is None else exact
        kl = F.kl_div(found.flatten(0, 1), exact.flatten(0, 1), reduction="batchmean", log_target=True)
        same = (found.argmax(-1) == exact.argmax(-1)).float().mean()
        rows.append((name, way, f"{kl:.1e}", f"{same:.4f}", f"{matrix_bytes(decoder):,}"))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="Quality of weights in 8 bits.")
    parser.add_argument("--text", type=Path, nargs="+", required=True, help="files of plain text")
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=512, help="of each sequence")
    arguments = parser.parse_args()
    title = f"{arguments.sequences} texts of {arguments.tokens:,} tokens"
    table = Table(title=title, title_justify="left")
    for column in ("model", "weights", "KL", "same likeliest", "bytes of matrices"):
        table.add_column(column)
    with torch.inference_mode():
        for name in EMBEDDED:
            for row in rows_of(name, arguments.text, arguments.sequences, arguments.tokens):
                table.add_row(*row)
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
