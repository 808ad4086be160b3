"""Everything that wants a GPU, in one run: the tests, what models cost, how near that is to what the device allows.

    python -m scripts.gpu_check --out runs/gpu --minutes 12                       # the most valuable part first
    python -m scripts.gpu_check --out runs/gpu --only tests,decode                # some parts
    python -m scripts.gpu_check --out runs/gpu --only transformer,mamba           # train the embedded models
    python -m scripts.gpu_check --out runs/gpu --size toy --device cpu            # minutes, on any machine

Each part is a process of its own whose output goes to a file in the output directory; one that fails is noted and the
next begins. While a part runs, what it has found so far goes to results.json and to measurements.md, a page for
docs/measurements/. Parts for which no time is left are not begun.
"""

import argparse
import json
import os
import platform
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
from rich.console import Console

from models.kernels.environment import probe
from scripts.gpu_checks import CHECKS_FILE, checks_page, read_checks
from scripts.gpu_models import SIZES
from scripts.gpu_report import Page, markdown, speed_pages
from scripts.gpu_speed import PARTS as SPEED_PARTS
from scripts.gpu_speed import ROWS_FILE, read_rows
from scripts.gpu_tests import RECORD_FILE, pages_of, pytest_arguments, read_outcomes

MODELS = ("transformer", "mamba")
USUAL = ("tests", "engine", *SPEED_PARTS, "embedded")
PARTS = (*USUAL, *MODELS)
# Of the time that is left when it begins; what is not named may take all of it.
SHARES = {"tests": 0.45, "engine": 0.4, "decode": 0.5, "attention": 0.6, "prefill": 0.5}
LEAST_S = 2.0
SAVED_EVERY_S = 1.0
LAST_WORDS_S = 15.0  # from being interrupted to being killed


@dataclass(frozen=True, slots=True)
class PartResult:
    """exit_code: negative = the signal that ended it, as when its time was over."""

    name: str
    command: str
    exit_code: int
    seconds: float
    last_line: str


def command_of(part: str, arguments: argparse.Namespace, seconds: float) -> list[str]:
    if part == "tests":
        return pytest_arguments(arguments.out, device=arguments.device, size=arguments.size)
    minutes = f"{seconds / 60:.2f}"
    if part == "engine":
        options = ["--out", str(arguments.out), "--device", arguments.device, "--size", arguments.size]
        return ["-m", "scripts.gpu_engine", *options]
    if part in SPEED_PARTS:
        options = ["--out", str(arguments.out), "--device", arguments.device, "--size", arguments.size]
        return ["-m", "scripts.gpu_speed", "--only", part, *options, "--minutes", minutes]
    if part == "embedded":
        small = ["--context", "64", "--batch", "2", "--repeats", "1"] if arguments.size == "toy" else []
        return ["-m", "scripts.embedded_speed", "--device", arguments.device, *small]
    compiled = ["--compile"] if arguments.device == "cuda" else []
    options = ["--device", arguments.device, "--max-minutes", minutes, "--seed", str(arguments.seed)]
    return ["-m", "scripts.train_embedded", part, "--out", str(arguments.out / part), *options, *compiled]


def wait(process: subprocess.Popen[bytes], seconds: float, save: Callable[[], object]) -> int:
    """The exit code, at the latest when the time is over: then the process group is asked to end, and made to."""
    until_s = time.monotonic() + seconds
    while time.monotonic() < until_s:
        try:
            return process.wait(timeout=SAVED_EVERY_S)
        except subprocess.TimeoutExpired:
            save()
    os.killpg(process.pid, signal.SIGINT)  # pytest then ends with what it has
    try:
        process.wait(timeout=LAST_WORDS_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return process.returncode or -signal.SIGINT


def run_part(part: str, arguments: argparse.Namespace, seconds: float, save: Callable[[], object]) -> PartResult:
    command = command_of(part, arguments, seconds)
    log = arguments.out / f"{part}.log"
    # Tests' references are small and computed by several processes at once.
    environment = {**os.environ, "OMP_NUM_THREADS": "2"} if part == "tests" else None
    # What knows the time limit itself gets a little more, to end by itself.
    patience = seconds if part == "tests" else seconds + LAST_WORDS_S
    started_s = time.perf_counter()
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            [sys.executable, *command],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
        exit_code = wait(process, patience, save)
    lines = log.read_text(encoding="utf-8").strip().splitlines() or [""]
    taken_s = time.perf_counter() - started_s
    return PartResult(part, shlex.join(["python", *command]), exit_code, taken_s, lines[-1])


def describe(device: str) -> dict[str, str]:
    """What the results depend on beside the code."""
    environment = probe(torch.device(device))
    packages = {name: package.version or "not installed" for name, package in environment.packages.items()}
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "device": torch.cuda.get_device_name() if device == "cuda" else f"CPU, {platform.machine()}",
        "memory": f"{torch.cuda.mem_get_info()[1] / 1e9:.1f} GB" if device == "cuda" else "the machine's",
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
        "python": platform.python_version(),
        **packages,
        "command": shlex.join(["python", "-m", "scripts.gpu_check", *sys.argv[1:]]),
    }


def parts_page(results: list[PartResult]) -> Page:
    rows = [(one.name, str(one.exit_code), f"{one.seconds:.0f}", one.last_line.strip("= ")) for one in results]
    return Page("Parts", ("part", "exit", "seconds", "last line"), rows)


def embedded_page(out: Path) -> Page:
    log = out / "embedded.log"
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    return Page("The embedded models, through the engine", ("",), [(line,) for line in lines if "tokens/s" in line])


def save_results(out: Path, about: dict[str, str], results: list[PartResult]) -> list[Page]:
    """Write what there is by now, and return it as tables."""
    outcomes, checks, rows = read_outcomes(out), read_checks(out), read_rows(out)
    record = {
        "about": about,
        "parts": [asdict(result) for result in results],
        "tests": [asdict(outcome) for outcome in outcomes],
        "engine": [asdict(check) for check in checks],
        "speed": [asdict(row) for row in rows],
    }
    pages = [*pages_of(outcomes), checks_page(checks), *speed_pages(rows), embedded_page(out), parts_page(results)]
    pages = [page for page in pages if page.rows]
    texts = {"results.json": json.dumps(record, indent=1) + "\n", "measurements.md": markdown(about, pages)}
    for name, text in texts.items():
        # Never half a file, whenever the machine goes away.
        unfinished = out / f"{name}.part"
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(out / name)
    return pages


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Run all that wants a GPU.")
    parser.add_argument("--out", type=Path, required=True, help="directory for logs, results.json and measurements.md")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--size", choices=tuple(SIZES), default="full", help="toy: what only shows that all runs")
    parser.add_argument("--minutes", type=float, default=25.0, help="for everything")
    parser.add_argument("--seed", type=int, default=1, help="of the training")
    parser.add_argument("--only", default=",".join(USUAL), help=f"some of {','.join(PARTS)}, in the order given")
    arguments = parser.parse_args()
    if wrong := set(arguments.only.split(",")) - set(PARTS):
        parser.error(f"--only: {', '.join(sorted(wrong))} is none of {', '.join(PARTS)}")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device here")
    return arguments


def main() -> int:
    arguments = read_arguments()
    until_s = time.monotonic() + 60 * arguments.minutes
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in (ROWS_FILE, RECORD_FILE, CHECKS_FILE):
        (arguments.out / name).unlink(missing_ok=True)
    about, results = describe(arguments.device), list[PartResult]()
    parts = arguments.only.split(",")
    for part in parts:
        share = 1.0 if part == parts[-1] else SHARES.get(part, 1.0)
        seconds = share * (until_s - time.monotonic() - LAST_WORDS_S)
        if seconds < LEAST_S:
            results.append(PartResult(part, "", 0, 0.0, "no time was left"))
            continue
        results.append(run_part(part, arguments, seconds, lambda: save_results(arguments.out, about, results)))
        save_results(arguments.out, about, results)
    pages = save_results(arguments.out, about, results)
    Console(width=160).print(*(page.rich() for page in pages))
    return max(abs(result.exit_code) for result in results)


if __name__ == "__main__":
    sys.exit(main())
