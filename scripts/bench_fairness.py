"""What one client's crowd of long prompts does to another's short questions, on a real server over HTTP.

    python -m scripts.bench_fairness --model embedded:mamba --prompts 100 --tokens 8000

Short questions are asked one after the other, first alone, then while another API key's long prompts are open, all at
once. Time to first token of the short ones, median and 99th percentile, and their ratio: with the fair policy and, for
comparison, first come first served. A table, then one line of JSON.
"""

import argparse
import asyncio
import json
import random
import subprocess
import sys
import time

import httpx2
from rich.console import Console
from rich.table import Table

VOCAB = range(300, 1500)
SHORT_TOKENS = 40


def start(model: str, policy: str, options: list[str]) -> tuple[subprocess.Popen[str], str]:
    command = [sys.executable, "-m", "fathom", "serve", model, "--port", "0", "--no-access-log", "--policy", policy]
    command += ["--api-key", "many", "--api-key", "few", "--max-queue", "500", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("ready: "):
            return process, line.split()[1]
    raise SystemExit("the server did not start")


class Asker:
    def __init__(self, url: str, model: str, key: str) -> None:
        self._model, self._rng = model, random.Random(key)
        headers = {"Authorization": f"Bearer {key}"}
        limits = httpx2.Limits(max_connections=500)
        self.http = httpx2.AsyncClient(base_url=url, timeout=3600.0, headers=headers, limits=limits)

    async def ask(self, num_tokens: int) -> float:
        """Seconds to the one token after a random prompt."""
        prompt = [self._rng.choice(VOCAB) for _ in range(num_tokens)]
        body = {"model": self._model, "prompt": prompt, "max_tokens": 1, "temperature": 0, "ignore_eos": True}
        started_s = time.perf_counter()
        answer = await self.http.post("/v1/completions", json=body)
        answer.raise_for_status()
        return time.perf_counter() - started_s


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


async def measure(url: str, arguments: argparse.Namespace) -> dict[str, float]:
    many, few = (Asker(url, arguments.model, key) for key in ("many", "few"))
    for asker in (many, few):
        await asker.ask(SHORT_TOKENS)
    await many.ask(arguments.tokens)  # the engine learns its speed
    alone = [await few.ask(SHORT_TOKENS) for _ in range(arguments.shorts)]
    crowd = [asyncio.create_task(many.ask(arguments.tokens)) for _ in range(arguments.prompts)]
    await asyncio.sleep(1.0)
    beside: list[float] = []
    while not all(task.done() for task in crowd) and len(beside) < arguments.shorts:
        beside.append(await few.ask(SHORT_TOKENS))
        await asyncio.sleep(0.05)
    open_then = sum(not task.done() for task in crowd)
    for task in crowd:
        task.cancel()
    await asyncio.gather(*crowd, return_exceptions=True)
    figures = {
        f"{name}_p{round(100 * q)}_s": quantile(v, q)
        for name, v in (("alone", alone), ("beside", beside))
        for q in (0.5, 0.99)
    }
    figures |= {
        "ratio_p50": figures["beside_p50_s"] / figures["alone_p50_s"],
        "ratio_p99": figures["beside_p99_s"] / figures["alone_p99_s"],
    }
    return {name: round(value, 4) for name, value in figures.items()} | {
        "asked": len(beside),
        "long_still_open": open_then,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure fairness between two API keys.")
    parser.add_argument("--model", default="embedded:mamba")
    parser.add_argument("--prompts", type=int, default=100, help="long ones, all at once")
    parser.add_argument("--tokens", type=int, default=8000, help="of each of them")
    parser.add_argument("--shorts", type=int, default=100, help="short questions, one after the other")
    parser.add_argument("--policies", default="fair,first-come")
    parser.add_argument("options", nargs="*", help="further options of `fathom serve`, after --")
    arguments = parser.parse_args()
    found = {}
    for policy in arguments.policies.split(","):
        process, url = start(arguments.model, policy, arguments.options)
        try:
            found[policy] = asyncio.run(measure(url, arguments))
        finally:
            process.terminate()
            process.wait()
    table = Table(
        title=f"short questions beside {arguments.prompts} prompts of {arguments.tokens:,} tokens, {arguments.model}"
    )
    for column in ("policy", *next(iter(found.values()))):
        table.add_column(column, justify="right")
    for policy, figures in found.items():
        table.add_row(policy, *map(str, figures.values()))
    Console(width=160).print(table)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
