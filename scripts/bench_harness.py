"""What `fathom eval run` itself costs beside the endpoint's time: retrieval, counting, packing, grading, the store.

    python -m scripts.bench_harness                                    # 500 questions, 8 budgets: a minute a run
    python -m scripts.bench_harness --runs 3 --dataset nq --data DIRECTORY

The endpoint, a process of its own, answers every request after --delay-ms in three chunks and counts tokens at once.
What it took for all answers itself, by its own clock, divided by --concurrency, is what a run cannot be faster than;
what it takes beyond that is overhead. A part of that is the HTTP client's: the same prompts are asked once more by it
alone. What is left is the harness' own: retrieval, packing, grading, the store. The endpoint's processor time is told,
for both share the machine's cores.
"""

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import psutil
import uvloop
from rich.console import Console
from rich.table import Table

from evals.client import ask, open_session
from evals.config import RunConfig
from evals.dialect import Dialect
from evals.prompts import build_messages
from evals.records import SampleRow
from evals.store import Store
from evals.workers import run_workers

BUDGETS = "0,64,128,256,512,1024,2048,4096"
WORDS = ("Port", " Ellison", " maybe")
CHUNKS = len(WORDS)


class Endpoint(asyncio.Protocol):
    """One connection: as little of HTTP as the harness' client speaks, so that the endpoint costs next to nothing."""

    def __init__(self, delay_s: float, took_s: list[float]) -> None:
        self._delay_s, self._took_s, self._buffer = delay_s, took_s, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[:end].lower()
            _, _, rest = head.partition(b"content-length:")
            size = int(rest.split(b"\r\n", 1)[0]) if rest else 0
            if len(self._buffer) < end + 4 + size:
                return
            body, self._buffer = self._buffer[end + 4 : end + 4 + size], self._buffer[end + 4 + size :]
            self._answer(head.split(b" ", 2)[1], body)

    def _answer(self, path: bytes, body: bytes) -> None:
        if path == b"/tokenize":
            self._send({"count": len(json.loads(body).get("prompt", "")) // 4})
        elif path == b"/v1/models":
            self._send({"data": [{"id": "bench", "object": "model"}]})
        else:
            loop = asyncio.get_running_loop()
            # More than all documents can have by the count above: no prompt was cut.
            self._begun_s = loop.time()
            for number in range(CHUNKS):
                loop.call_at(self._begun_s + self._delay_s * (number + 1) / CHUNKS, self._chunk, number, len(body) // 2)

    def _send(self, content: object) -> None:
        body = json.dumps(content).encode()
        self._transport.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
        )

    def _chunk(self, number: int, prompt_tokens: int) -> None:
        events: list[dict[str, object]] = [
            {"choices": [{"index": 0, "delta": {"content": WORDS[number]}, "finish_reason": None}]}
        ]
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        end = b""
        if number == CHUNKS - 1:
            usage = {
                "prompt_tokens": prompt_tokens,
                "completion_tokens": CHUNKS,
                "total_tokens": prompt_tokens + CHUNKS,
            }
            events += [
                {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
                {"choices": [], "usage": usage},
            ]
            end = b"data: [DONE]\n\n"
        body = b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events) + end
        frame = b"%x\r\n%s\r\n" % (len(body), body)
        self._transport.write((head if number == 0 else b"") + frame + (b"0\r\n\r\n" if end else b""))
        if end:
            self._took_s.append(asyncio.get_running_loop().time() - self._begun_s)


async def serve(delay_s: float) -> None:
    took_s: list[float] = []
    server = await asyncio.get_running_loop().create_server(lambda: Endpoint(delay_s, took_s), "127.0.0.1", 0)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    # Until whoever started it closes its input.
    await asyncio.to_thread(sys.stdin.read)
    print(json.dumps(took_s), flush=True)


@dataclass(frozen=True, slots=True)
class Served:
    """An endpoint that runs. took_s: what it took for each answer itself; known once it has ended."""

    url: str
    process: psutil.Process
    took_s: list[float] = field(default_factory=list)


@contextlib.contextmanager
def endpoint(delay_ms: float) -> Iterator[Served]:
    command = [sys.executable, "-m", "scripts.bench_harness", "--as-endpoint", f"--delay-ms={delay_ms}"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        served = Served(process.stdout.readline().strip(), psutil.Process(process.pid))
        yield served
        output, _ = process.communicate()
        served.took_s.extend(json.loads(output))


@dataclass(frozen=True, slots=True)
class Measured:
    """Of one run. asking_s: from the first question to the last answer. peak_mib: until then, from the process' start.
    whole_s, whole_peak_mib: of the whole process, with the report at its end. client: the overhead of the client alone.
    """

    requests: int
    ideal_s: float
    asking_s: float
    whole_s: float
    cpu_s: float
    endpoint_cpu_s: float
    peak_mib: float
    whole_peak_mib: float
    client: float

    @property
    def overhead(self) -> float:
        return self.asking_s / self.ideal_s - 1


async def ask_alone(args: argparse.Namespace, out: Path, url: str) -> float:
    """Seconds that the client alone takes for the prompts of a run: no retrieval, packing, grading, store."""
    with Store(out) as store:
        documents = {name: store.documents(name) for _, name in store.settings()}
        questions: dict[tuple[str, ...], list[SampleRow]] = {}
        for row in store.rows():
            questions.setdefault((row.question_id, row.permission), []).append(row)
    config = RunConfig(endpoint=url, model="bench", out=out, concurrency=args.concurrency)
    waiting, dialect = iter(questions.values()), Dialect()

    async def worker() -> None:
        for rows in waiting:
            for row in rows:
                texts = [documents[row.dataset][name] for name in row.doc_ids]
                answer = await ask(session, config, dialect, build_messages(row.permission, texts, row.question))
                assert answer.error is None, answer.error

    async with open_session(config) as session:
        begun_s = time.perf_counter()
        await run_workers(worker, args.concurrency)
        return time.perf_counter() - begun_s


def measure_alone(args: argparse.Namespace, out: Path) -> float:
    """What the client alone takes beyond the endpoint's own time, as a share of that."""
    with endpoint(args.delay_ms) as served, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        took_s = runner.run(ask_alone(args, out, served.url))
    return took_s / (sum(served.took_s) / args.concurrency) - 1


def measure(args: argparse.Namespace, out: Path) -> Measured:
    """One whole `fathom eval run` into an empty directory."""
    with endpoint(args.delay_ms) as served:
        command = [sys.executable, "-m", "fathom", "eval", "run", "--endpoint", served.url, "--model", "bench"]
        command += ["--out", str(out), "--n", str(args.n), "--budgets", args.budgets, "--dataset", args.dataset]
        command += ["--concurrency", str(args.concurrency), *(["--data", args.data] if args.data else [])]
        before = served.process.cpu_times()
        begun_s = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        output = process.stdout.read() if process.stdout else b""
        _, status, used = os.wait4(process.pid, 0)
        whole_s = time.perf_counter() - begun_s
        after = served.process.cpu_times()
    if status:
        raise SystemExit(f"the run failed:\n{output.decode()}")
    with Store(out) as store:
        [manifest] = store.manifests().values()
        requests = sum(row.attempts for row in store.rows())
    [session] = manifest["sessions"]
    asking = datetime.fromisoformat(session["finished"]) - datetime.fromisoformat(session["started"])
    return Measured(
        requests=requests,
        ideal_s=sum(served.took_s) / args.concurrency,
        asking_s=asking.total_seconds(),
        whole_s=whole_s,
        cpu_s=used.ru_utime + used.ru_stime,
        endpoint_cpu_s=after.user + after.system - before.user - before.system,
        peak_mib=session["peak_memory_bytes"] / 2**20,
        whole_peak_mib=used.ru_maxrss / 1024,
        client=measure_alone(args, out),
    )


def run(args: argparse.Namespace) -> None:
    table = Table(title=f"{args.dataset}: {args.n} questions, budgets {args.budgets}", title_justify="left")
    for name in (
        "requests",
        "ideal s",
        "asking s",
        "overhead",
        "client's",
        "process s",
        "CPU s",
        "endpoint CPU s",
        "peak MiB",
        "with report",
    ):
        table.add_column(name, justify="right")
    results = []
    for _ in range(args.runs):
        out = Path(tempfile.mkdtemp(prefix="bench-harness-"))
        try:
            results.append(measure(args, out))
        finally:
            shutil.rmtree(out)
        one = results[-1]
        table.add_row(
            str(one.requests), f"{one.ideal_s:.1f}", f"{one.asking_s:.1f}", f"{100 * one.overhead:.1f} %",
            f"{100 * one.client:.1f} %", f"{one.whole_s:.1f}", f"{one.cpu_s:.1f}", f"{one.endpoint_cpu_s:.1f}",
            f"{one.peak_mib:.0f}", f"{one.whole_peak_mib:.0f}",
        )  # fmt: skip
    Console().print(table)
    best = min(results, key=lambda one: one.overhead)
    shares = {"overhead": best.overhead, "client": best.client, "own": best.overhead - best.client}
    print(json.dumps({name: round(share, 4) for name, share in shares.items()} | {"peak_mib": round(best.peak_mib)}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=500)
    parser.add_argument("--budgets", default=BUDGETS)
    parser.add_argument("--dataset", default="world")
    parser.add_argument("--data")
    parser.add_argument("--concurrency", type=int, default=4)
    parser.add_argument("--delay-ms", type=float, default=50.0)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--as-endpoint", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.as_endpoint:
        asyncio.run(serve(args.delay_ms / 1000))
    else:
        run(args)


if __name__ == "__main__":
    main()
