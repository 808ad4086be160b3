"""Everything that wants a GPU, in one run: the tests, the embedded models, what a sequence costs. A table last.

    python -m scripts.gpu_check --out runs/gpu                        # about 25 minutes
    python -m scripts.gpu_check --out runs/gpu --only tests,speed     # a part of it

Each part is a process of its own whose output goes to a file in the output directory; one that fails is noted and
the next begins. With --device cpu and --minutes 0.2 it shows on any machine that all parts work together.
"""

import argparse
import json
import platform
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

MODELS = ("transformer", "mamba")
PARTS = ("tests", *MODELS, "speed")


@dataclass(frozen=True, slots=True)
class PartResult:
    name: str
    command: str
    exit_code: int
    seconds: float
    last_line: str


def command_of(part: str, arguments: argparse.Namespace) -> list[str]:
    if part == "tests":
        # Without a GPU nothing bears the mark's condition, and the same tests run on the CPU.
        marked = ["-m", "gpu"] if arguments.device == "cuda" else ["-k", "dense_forward"]
        return ["-m", "pytest", "-q", "tests/models", "tests/server/test_runner.py", *marked]
    if part == "speed":
        return ["-m", "scripts.embedded_speed", "--device", arguments.device]
    compiled = ["--compile"] if arguments.device == "cuda" else []
    options = ["--device", arguments.device, "--max-minutes", str(arguments.minutes), "--seed", str(arguments.seed)]
    return ["-m", "scripts.train_embedded", part, "--out", str(arguments.out / part), *options, *compiled]


def run_part(part: str, arguments: argparse.Namespace) -> PartResult:
    command = command_of(part, arguments)
    log = arguments.out / f"{part}.log"
    started_s = time.perf_counter()
    with log.open("w", encoding="utf-8") as output:
        exit_code = subprocess.run([sys.executable, *command], stdout=output, stderr=subprocess.STDOUT).returncode
    lines = log.read_text(encoding="utf-8").strip().splitlines() or [""]
    return PartResult(part, " ".join(["python", *command]), exit_code, time.perf_counter() - started_s, lines[-1])


def hardware(device: str) -> dict[str, str]:
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else f"CPU, {platform.machine()}",
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
        "python": platform.python_version(),
    }


def show(results: list[PartResult], about: dict[str, str]) -> None:
    table = Table(title=", ".join(f"{key} {value}" for key, value in about.items()))
    for column in ("part", "exit", "seconds", "last line"):
        table.add_column(column, overflow="fold")
    for result in results:
        table.add_row(result.name, str(result.exit_code), f"{result.seconds:.0f}", result.last_line)
    Console(width=160).print(table)


def main() -> int:
    parser = argparse.ArgumentParser(description="Run all that wants a GPU.")
    parser.add_argument("--out", type=Path, required=True, help="directory for logs, checkpoints and results.json")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--minutes", type=float, default=9.0, help="for the training of each model")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default=",".join(PARTS), help=f"some of {','.join(PARTS)}")
    arguments = parser.parse_args()
    parts = arguments.only.split(",")
    if wrong := set(parts) - set(PARTS):
        parser.error(f"--only: {', '.join(sorted(wrong))} is none of {', '.join(PARTS)}")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device here")
    arguments.out.mkdir(parents=True, exist_ok=True)
    about, results = hardware(arguments.device), []
    for part in parts:
        results.append(run_part(part, arguments))
        record = {"hardware": about, "parts": [asdict(result) for result in results]}
        (arguments.out / "results.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    show(results, about)
    return max(result.exit_code for result in results)


if __name__ == "__main__":
    sys.exit(main())
