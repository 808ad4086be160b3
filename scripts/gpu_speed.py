"""How fast models of random weights run on a device, and how near that is to what its memory and its matrices allow.

    python -m scripts.gpu_speed --out runs/speed --minutes 8                        # published shapes, on a GPU
    python -m scripts.gpu_speed --out runs/speed --only attention                   # a part of it
    python -m scripts.gpu_speed --out runs/speed --size toy --device cpu            # seconds, on any machine

Every row is in speed.jsonl as soon as it is measured, after those of former runs. Ceilings are measured first, in the
same process. When the minutes are over the rest is left out. `scripts.gpu_check` runs the parts one by one.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console

from models.kernels.environment import probe
from scripts.gpu_attention import attention_rows
from scripts.gpu_bench import Bench, captured_rows, decode_rows, prefill_rows
from scripts.gpu_models import SIZES, Sizes
from scripts.gpu_report import Row, speed_pages
from scripts.gpu_timing import time_copy, time_matmul

ROWS_FILE = "speed.jsonl"
PARTS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "decode": decode_rows,
    "attention": attention_rows,
    "prefill": prefill_rows,
    "captured": captured_rows,
}


def read_rows(directory: Path) -> list[Row]:
    """What has been measured; a line that is still being written is left out."""
    path = directory / ROWS_FILE
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    return [Row(**json.loads(line)) for line in lines if line.endswith("\n")]


def measure_ceilings(sizes: Sizes, device: torch.device, dtype: torch.dtype, parts: list[str]) -> tuple[Row, Row]:
    copy, moved = time_copy(sizes.copy_bytes, device)
    product, operations = time_matmul(sizes.matmul, dtype, device)
    before = ", ".join(parts)
    name, size = str(dtype).removeprefix("torch."), sizes.matmul
    return (
        Row("ceiling", "copy", f"{sizes.copy_bytes >> 20} MiB, read and written",
            seconds=copy.median_s, spread=copy.spread, bytes_moved=moved, note=before),
        Row("ceiling", "matrix product", f"{size} x {size} x {size}, {name}",
            seconds=product.median_s, spread=product.spread, operations=operations, note=before),
    )  # fmt: skip


def measured_rows(parts: list[str], sizes: Sizes, device: torch.device) -> Iterator[Row]:
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    copy, product = measure_ceilings(sizes, device, dtype, parts)
    yield copy
    yield product
    assert copy.seconds is not None
    assert copy.bytes_moved is not None
    assert product.seconds is not None
    assert product.operations is not None
    bench = Bench(
        sizes,
        device,
        dtype,
        probe(device),
        copy_rate=copy.bytes_moved / copy.seconds,
        matmul_rate=product.operations / product.seconds,
    )
    for part in parts:
        yield from PARTS[part](bench)


def main() -> int:
    parser = argparse.ArgumentParser(description="Time models of random weights.")
    parser.add_argument("--out", type=Path, required=True, help=f"directory for {ROWS_FILE}")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--size", choices=tuple(SIZES), default="full")
    parser.add_argument("--minutes", type=float, default=10.0, help="no row is begun later")
    parser.add_argument("--only", default=",".join(PARTS), help=f"some of {','.join(PARTS)}")
    arguments = parser.parse_args()
    parts = arguments.only.split(",")
    if wrong := set(parts) - set(PARTS):
        parser.error(f"--only: {', '.join(sorted(wrong))} is none of {', '.join(PARTS)}")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device here")
    arguments.out.mkdir(parents=True, exist_ok=True)
    until_s = time.monotonic() + 60 * arguments.minutes
    console = Console(width=160)
    with (arguments.out / ROWS_FILE).open("a", encoding="utf-8") as file:
        for row in measured_rows(parts, SIZES[arguments.size], torch.device(arguments.device)):
            file.write(json.dumps(asdict(row)) + "\n")
            file.flush()
            if time.monotonic() > until_s:
                console.print(f"{arguments.minutes:g} minutes are over: the rest is left out")
                break
    rows = read_rows(arguments.out)
    console.print(*(page.rich() for page in speed_pages(rows)))
    console.print(f"{sum(row.seconds is not None for row in rows)} rows measured, {len(rows)} in all")
    return 0


if __name__ == "__main__":
    sys.exit(main())
