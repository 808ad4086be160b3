"""What the server's own process takes of a processor for each token, without a model's computing beside it.

    python -m scripts.bench_api                                          # about a minute
    python -m scripts.bench_api --streams 8,64 --step-ms 20 --model DIRECTORY

The engine process is a stand-in that gives every open request a token per step and computes nothing. CPU time is that
of the process with HTTP, detokenizing and JSON in it, the least of the runs; at the default pace it mostly sleeps
between steps, as it does beside a model.
"""

import argparse
import asyncio
import json
import random
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from server.checkpoints import CheckpointOptions
from server.cli import MIB, ServerConfig, host_and_serve
from server.config import EngineConfig
from server.engine_child import EngineChild
from server.holding import Holding
from server.mailbox import Mailbox
from server.messages import Abort, Add, AskStats, Outputs, Ready, Stats, Stop
from server.request import EngineInfo, EngineRequest, EngineStats, SequenceUsage, TokenOutput

CONTEXT = 4096
STATS_EVERY_S = 1.0


def serve(model: str, step_ms: float) -> int:
    """A server on a free port, whose engine is the stand-in."""
    command = EngineChild._command

    def stand_in(child: EngineChild, inbox: int, outbox: int) -> list[str]:
        options = [word for word in command(child, inbox, outbox) if word.startswith("--")]
        return [sys.executable, "-P", "-m", "scripts.bench_api", f"--step-ms={step_ms}", "--as-engine", *options]

    EngineChild._command = stand_in  # type: ignore[method-assign,assignment]
    config = ServerConfig("127.0.0.1", 0, (), MIB, 60.0, 5, access_log=False)
    return host_and_serve([model], EngineConfig(device="cpu"), CheckpointOptions(None, False), config)


def stand_in_engine(step_s: float, options: list[str]) -> None:
    """Speaks as an engine until told to stop."""
    given = dict(option.removeprefix("--").split("=", 1) for option in options)
    vocab_size = json.loads((Path(given["directory"]) / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    mailbox, holding = Mailbox(int(given["inbox"]), int(given["outbox"])), Holding()
    info = EngineInfo("stand-in", "transformer", CONTEXT, vocab_size, 1, 16, 1, 1, 1, (), "cpu", "float32")
    mailbox.send(Ready(info, "nothing is computed"))
    running: dict[str, tuple[EngineRequest, int]] = {}
    reported_s = 0.0
    while True:
        for message in mailbox.receive(0 if running else 500):
            match message:
                case Stop():
                    return
                case Add(request):
                    holding.add(request)
                    running[request.request_id] = request, 0
                case Abort(request_id):
                    running.pop(request_id, None)
                case AskStats(number):
                    mailbox.send(Stats(number, EngineStats()))
        started_s = time.monotonic()
        if running:
            outputs, begun = holding.pass_on([(name, step(running, name, vocab_size)) for name in list(running)])
            if outputs or begun:
                mailbox.send(Outputs(outputs, begun))
            time.sleep(max(0.0, step_s - (time.monotonic() - started_s)))
        if started_s - reported_s > STATS_EVERY_S:
            reported_s = started_s
            mailbox.send(Stats(0, EngineStats()))


def step(running: dict[str, tuple[EngineRequest, int]], name: str, vocab_size: int) -> TokenOutput:
    """One more token of a request, from the middle of the vocabulary, where there are words."""
    request, num_tokens = running[name]
    token_ids = (random.randrange(vocab_size // 4, vocab_size // 2),)
    running[name] = request, num_tokens + 1
    if num_tokens + 1 < request.params.max_tokens:
        return TokenOutput(token_ids)
    del running[name]
    usage = SequenceUsage(len(request.token_ids), 0, num_tokens + 1, 0.0, 0.0, 0.0, 0, 0, 0)
    return TokenOutput(token_ids, "length", usage)


async def ask(port: int, model: str, num_tokens: int, stream: bool) -> None:
    """One completion, read to its end."""
    asked = {"model": model, "prompt": [1] * 16, "max_tokens": num_tokens, "stream": stream}
    body = json.dumps(asked).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n"
    writer.write(f"{head}Content-Type: application/json\r\n\r\n".encode() + body)
    status = await reader.readline()
    assert b" 200 " in status, status
    while await reader.read(1 << 16):
        pass
    writer.close()


async def measure(server: subprocess.Popen[str], port: int, args: argparse.Namespace, num: int, stream: bool) -> float:
    """Microseconds of CPU time for each token."""
    clock = ~server.pid << 3 | 2  # the process's CPU time, as clock_getcpuclockid(3) of Linux makes it
    before_s = time.clock_gettime(clock)
    await asyncio.gather(*(ask(port, args.model, args.tokens, stream) for _ in range(num)))
    return (time.clock_gettime(clock) - before_s) / (num * args.tokens) * 1e6


def run(args: argparse.Namespace) -> None:
    command = [sys.executable, "-m", "scripts.bench_api", "--as-server", f"--step-ms={args.step_ms}"]
    with subprocess.Popen([*command, f"--model={args.model}"], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        ready = next((line for line in server.stdout if line.startswith("ready: ")), None)
        assert ready is not None, "the server does not start"
        port = int(ready.split()[1].rpartition(":")[2])
        table = Table("at once", "streamed, us/token", "whole, us/token")
        figures = []
        for num in args.streams:
            least = []
            for stream in (True, False):
                runs = [asyncio.run(measure(server, port, args, num, stream)) for _ in range(args.runs)]
                least.append(round(min(runs), 1))
            table.add_row(str(num), *map(str, least))
            figures.append({"at_once": num, "streamed_us": least[0], "whole_us": least[1]})
        server.terminate()
    Console().print(table)
    print(json.dumps({"step_ms": args.step_ms, "tokens": args.tokens, "runs": figures}))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded:transformer", help="Whose tokenizer; as for fathom serve.")
    parser.add_argument("--streams", type=lambda text: [int(each) for each in text.split(",")], default=[1, 8, 16, 64])
    parser.add_argument("--step-ms", type=float, default=8.0)
    parser.add_argument("--tokens", type=int, default=200, help="Of each answer.")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--as-server", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--as-engine", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.as_engine is not None:
        stand_in_engine(args.step_ms / 1000, args.as_engine)
        return 0
    if args.as_server:
        return serve(args.model, args.step_ms)
    run(args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
