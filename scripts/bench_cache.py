"""What the prefix cache saves, on a real server over HTTP, with random prompts of token ids.

    python -m scripts.bench_cache                                  # all parts, all models
    python -m scripts.bench_cache --only sweep --questions 30 --longest 32000
    python -m scripts.bench_cache --only composition --models random-hybrid

sweep: questions after ever longer beginnings of their contexts, against the longest beginning alone; and the same on a
server without the cache. hit: a second question about a long context, time to first token against the first's.
composition: five prompts that share a beginning, each with a tail of its own. state: bytes that the embedded Mamba's
sequences hold. A table, then one line of JSON.

The models are the embedded ones and a small hybrid of random weights, attention and Mamba-2 side by side in each layer,
which is made for the run: what is found in the cache does not hang on what a model says.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx2
from rich.console import Console
from rich.table import Table

from scripts.random_models import write_random_model

HYBRID = "random-hybrid"
MODELS = ("embedded:transformer", "embedded:mamba", HYBRID)
PARTS = ("sweep", "hit", "composition", "state")
QUESTION_TOKENS = 24
NUM_BUDGETS = 8
VOCAB = range(300, 1500)


@dataclass(frozen=True, slots=True)
class Asked:
    """What one request took: seconds to its first token, tokens found in the cache, bytes held."""

    seconds: float
    cached_tokens: int
    kv_bytes: int
    state_bytes: int


class Client:
    def __init__(self, url: str, model: str) -> None:
        self._http = httpx2.Client(base_url=url, timeout=3600.0)
        self._model = model

    def ask(self, tokens: list[int]) -> Asked:
        """One token after a prompt of token ids."""
        body = {"model": self._model, "prompt": tokens, "max_tokens": 1, "temperature": 0, "ignore_eos": True}
        started_s = time.perf_counter()
        answer = self._http.post("/v1/completions", json=body)
        seconds = time.perf_counter() - started_s
        answer.raise_for_status()
        content = answer.json()
        cached = content["usage"]["prompt_tokens_details"]["cached_tokens"]
        return Asked(seconds, cached, content["fathom"]["kv_bytes"], content["fathom"]["state_bytes"])


@contextmanager
def serving(arguments: argparse.Namespace, *options: str) -> Iterator[str]:
    """A server of the models that are measured; its address."""
    with tempfile.TemporaryDirectory() as directory:
        models = arguments.models.split(",")
        if HYBRID in models:
            write_random_model("hybrid", Path(directory))
            models[models.index(HYBRID)] = f"{HYBRID}={directory}"
        with started(*models, *options, *arguments.options) as url:
            yield url


@contextmanager
def started(*options: str) -> Iterator[str]:
    command = [sys.executable, "-m", "fathom", "serve", "--port", "0", "--no-access-log", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("ready: "):
                yield line.split()[1]
                return
        raise SystemExit("the server did not start")
    finally:
        process.terminate()
        process.wait()


def random_tokens(rng: random.Random, count: int) -> list[int]:
    return [rng.choice(VOCAB) for _ in range(count)]


def sweep(client: Client, arguments: argparse.Namespace, *, caches: bool) -> dict[str, object]:
    """Seconds of all budgets in order, and of the longest alone, each context asked once in either way."""
    rng = random.Random(1)
    budgets = [arguments.longest >> shift for shift in reversed(range(NUM_BUDGETS))]
    nested = alone = 0.0
    for number in range(arguments.questions if caches else arguments.questions_uncached):
        for way in ("nested", "alone"):
            context, question = random_tokens(rng, arguments.longest), random_tokens(rng, QUESTION_TOKENS)
            asked = budgets if way == "nested" else budgets[-1:]
            seconds = sum(client.ask(context[:budget] + question).seconds for budget in asked)
            nested, alone = (nested + seconds, alone) if way == "nested" else (nested, alone + seconds)
        print(f"  question {number + 1}: ratio so far {nested / alone:.2f}", file=sys.stderr)
    return {"nested_s": round(nested, 2), "alone_s": round(alone, 2), "ratio": round(nested / alone, 3)}


def hit(client: Client, arguments: argparse.Namespace) -> dict[str, object]:
    rng = random.Random(2)
    shares, firsts, seconds = [], [], []
    for _ in range(3):
        context = random_tokens(rng, arguments.longest)
        first = client.ask(context + random_tokens(rng, QUESTION_TOKENS))
        second = client.ask(context + random_tokens(rng, QUESTION_TOKENS))
        shares.append(second.seconds / first.seconds)
        firsts.append(first.seconds)
        seconds.append(second.seconds)
    return {
        "first_s": round(statistics.median(firsts), 3),
        "second_s": round(statistics.median(seconds), 4),
        "share": round(statistics.median(shares), 4),
    }


def composition(client: Client, shared: int, tail: int) -> dict[str, object]:
    rng = random.Random(shared)
    beginning = random_tokens(rng, shared)
    found = [client.ask(beginning + random_tokens(rng, tail)).cached_tokens for _ in range(5)]
    return {"cached_tokens": found, "share": round(sum(found[1:]) / (4 * shared), 3)}


def state(client: Client, arguments: argparse.Namespace) -> dict[str, object]:
    rng = random.Random(3)
    lengths = [1000, 10_000, arguments.state_tokens]
    asked = [client.ask(random_tokens(rng, length)) for length in lengths]
    return {"tokens": lengths, "held": [asdict(one) for one in asked]}


def measure(arguments: argparse.Namespace) -> dict[str, dict[str, object]]:
    parts, found = arguments.only.split(","), dict[str, dict[str, object]]()
    models = arguments.models.split(",")
    with serving(arguments) as url:
        for model in models:
            client, results = Client(url, model), dict[str, object]()
            client.ask(list(VOCAB)[:200])
            if "sweep" in parts:
                results["sweep"] = sweep(client, arguments, caches=True)
            if "hit" in parts:
                results["hit"] = hit(client, arguments)
            if "composition" in parts:
                results["700+300"], results["1500+700"] = composition(client, 700, 300), composition(client, 1500, 700)
            if "state" in parts and model == "embedded:mamba":
                results["state"] = state(client, arguments)
            found[model] = results
    if "sweep" in parts and arguments.questions_uncached:
        with serving(arguments, "--no-prefix-cache") as url:
            for model in models:
                found[model]["sweep, no cache"] = sweep(Client(url, model), arguments, caches=False)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what the prefix cache saves.")
    parser.add_argument("--only", default=",".join(PARTS), help=f"some of {','.join(PARTS)}")
    parser.add_argument("--models", default=",".join(MODELS), help=f"some of {','.join(MODELS)}")
    parser.add_argument("--questions", type=int, default=30, help="of the sweep")
    parser.add_argument("--questions-uncached", type=int, default=2, help="of the sweep without the cache")
    parser.add_argument("--longest", type=int, default=32_000, help="tokens of the longest context")
    parser.add_argument("--state-tokens", type=int, default=1_000_000, help="tokens of the part `state`")
    parser.add_argument("options", nargs="*", help="further options of `fathom serve`, after --")
    arguments = parser.parse_args()
    for option, given, choices in (("only", arguments.only, PARTS), ("models", arguments.models, MODELS)):
        if wrong := set(given.split(",")) - set(choices):
            parser.error(f"--{option}: {', '.join(sorted(wrong))} is none of {', '.join(choices)}")
    found = measure(arguments)
    table = Table(title=f"prefix cache, contexts of up to {arguments.longest:,} tokens")
    for column in ("model", "part", "result"):
        table.add_column(column)
    for model, results in found.items():
        for part, result in results.items():
            table.add_row(model, part, json.dumps(result))
    Console(width=150).print(table)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
