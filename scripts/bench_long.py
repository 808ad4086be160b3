"""One request after the other of ever more tokens to the embedded Mamba, and the memory of its engine meanwhile.

    python -m scripts.bench_long                              # 1,000 to 1,000,000 tokens
    python -m scripts.bench_long --tokens 1000 10000 --prefix-cache

Prompts are random token ids, answers are streamed; of one token (`--max-tokens`), so that the time of a request is that
to its first token, whether it has a text or not. RSS is the engine process's own, as the kernel counts it: before a
request, at its highest during it (counted anew for each where the kernel lets us), and after. A table, then one line of
JSON.
"""

import argparse
import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx2
import psutil
from rich.console import Console
from rich.table import Table

MODEL = "embedded:mamba"
VOCAB = range(300, 1500)
TOKENS = (1_000, 10_000, 100_000, 500_000, 1_000_000)
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Read:
    """What one request took. Seconds on our clock, bytes of the engine process, and of the sequence in its cache."""

    tokens: int
    seconds: float
    completion_tokens: int
    rss_before: int
    rss_peak: int
    rss_after: int
    state_bytes: int
    kv_bytes: int


@contextmanager
def serving(*options: str) -> Iterator[tuple[str, psutil.Process]]:
    """A server of the model: its address, and its engine's process."""
    command = [sys.executable, "-m", "fathom", "serve", MODEL, "--port", "0", "--no-access-log", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("ready: "):
                children = psutil.Process(process.pid).children(recursive=True)
                [engine] = [child for child in children if "server.engine_start" in child.cmdline()]
                yield line.split()[1], engine
                return
        raise SystemExit("the server did not start")
    finally:
        process.terminate()
        process.wait()


def reset_peak(engine: psutil.Process) -> None:
    """Have the kernel count the process's highest memory from now on."""
    try:
        Path(f"/proc/{engine.pid}/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        print("the peak cannot be reset here: it is that of all requests so far", file=sys.stderr)


def peak_bytes(engine: psutil.Process) -> int:
    lines = Path(f"/proc/{engine.pid}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def ask(http: httpx2.Client, engine: psutil.Process, tokens: list[int], max_tokens: int) -> Read:
    body = {
        "model": MODEL,
        "prompt": tokens,
        "max_tokens": max_tokens,
        "temperature": 1,
        "seed": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    content = json.dumps(body)
    reset_peak(engine)
    before = engine.memory_info().rss
    started_s, last = time.perf_counter(), {}
    with http.stream("POST", "/v1/completions", content=content, headers={"Content-Type": "application/json"}) as lines:
        if lines.status_code != 200:
            raise SystemExit(lines.read().decode())
        for line in lines.iter_lines():
            if line.startswith("data: {"):
                last = json.loads(line.removeprefix("data: "))
    seconds = time.perf_counter() - started_s
    return Read(
        tokens=len(tokens),
        seconds=seconds,
        completion_tokens=last["usage"]["completion_tokens"],
        rss_before=before,
        rss_peak=peak_bytes(engine),
        rss_after=engine.memory_info().rss,
        state_bytes=last["fathom"]["state_bytes"],
        kv_bytes=last["fathom"]["kv_bytes"],
    )


def show(reads: list[Read]) -> None:
    table = Table(title=f"{MODEL}, one request at a time", title_justify="left")
    titles = ("prompt tokens", "seconds", "tokens/s", "RSS before, MiB", "highest", "after", "bytes per prompt token")
    for column in (*titles, "state, bytes", "keys and values, bytes"):
        table.add_column(column, justify="right")
    for read in reads:
        sizes = [f"{size / MIB:,.0f}" for size in (read.rss_before, read.rss_peak, read.rss_after)]
        grown = (read.rss_peak - read.rss_before) / read.tokens
        table.add_row(
            *(f"{read.tokens:,}", f"{read.seconds:,.2f}", f"{read.tokens / read.seconds:,.0f}"),
            *(*sizes, f"{grown:,.0f}", f"{read.state_bytes:,}", f"{read.kv_bytes:,}"),
        )
    Console(width=140).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description="Long prompts to the embedded Mamba, and its engine's memory.")
    parser.add_argument("--tokens", type=int, nargs="+", default=list(TOKENS))
    parser.add_argument("--max-tokens", type=int, default=1, help="of each answer")
    parser.add_argument("--prefix-cache", action="store_true", help="keep what was computed, which takes memory too")
    arguments = parser.parse_args()
    rng, reads = random.Random(0), []
    options = ["--threads", "2", *([] if arguments.prefix_cache else ["--no-prefix-cache"])]
    with serving(*options) as (url, engine), httpx2.Client(base_url=url, timeout=3600.0) as http:
        ask(http, engine, rng.choices(VOCAB, k=100), arguments.max_tokens)  # the first pays for what is set up once
        for count in arguments.tokens:
            reads.append(ask(http, engine, rng.choices(VOCAB, k=count), arguments.max_tokens))
            print(f"{count:,} tokens: {reads[-1].seconds:.2f} s", file=sys.stderr)
    show(reads)
    print(json.dumps([asdict(read) for read in reads]))


if __name__ == "__main__":
    main()
