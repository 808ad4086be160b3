"""Many runs against an endpoint whose true rates are known: do the intervals cover them as often as they say?

    python -m scripts.planted_runs --runs 500

The whole road is taken: a dataset, contexts packed by number of documents, real requests to a server that answers by
what it reads, verdicts by the words of its answers, the store, the summary. The server finds out from the prompt alone
whether the evidence is there and how many documents there are, and is wrong, silent or right at the rates below. Runs
share one pass: each has questions of its own.
"""

import argparse
import asyncio
import hashlib
import json
import math
import re
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from aiohttp import web

from evals.config import RunConfig
from evals.datasets.files import dataset
from evals.records import Dataset, Document, Question, SampleRow
from evals.runner import run_evals
from evals.store import Store
from evals.summary import summarise

NUM_DOCUMENTS, CLUSTER_SIZE = 64, 2
BUDGETS = (0, 2, 4, 8, 16, 32)  # documents; of so many in any order the evidence is among k of them in k of 64 cases
MODELS = ("turns", "level")  # one whose rates depend on the length, one where nothing changes anything
TURN = 8


def wrong_rate(model: str, num_documents: int, *, present: bool) -> float:
    """P(hallucinated), by whether the evidence is there: with it, more documents help up to `TURN` and hurt beyond."""
    if model == "level":
        return 0.4
    if num_documents == 0:
        return 0.8
    if not present:
        return 0.5
    steps = math.log2(num_documents / TURN)
    return 0.15 - 0.15 * min(0.0, steps) + 0.1 * max(0.0, steps)


def silent_rate(model: str, *, present: bool) -> float:
    return 0.2 if model == "level" else 0.04 if present else 0.3


def recall(num_documents: int) -> float:
    return num_documents / NUM_DOCUMENTS


def true_rate(model: str, num_documents: int) -> float:
    with_it, without = (wrong_rate(model, num_documents, present=present) for present in (True, False))
    return recall(num_documents) * with_it + (1 - recall(num_documents)) * without


def draw(*names: object) -> float:
    """From 0 to 1, the same for the same names."""
    digest = hashlib.blake2b(" ".join(map(str, names)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def make_dataset(num_questions: int) -> Dataset:
    """Each question has its evidence among the documents that all share; which ones it meets first is its own draw."""
    documents = [Document(f"d{i}", f"Street {i}", f"In street {i} lives family {i}.") for i in range(NUM_DOCUMENTS)]
    questions = [
        Question(
            id=f"q{number}",
            text=f"In census {number}, who lives in street {number % NUM_DOCUMENTS}?",
            answers=(f"family {number % NUM_DOCUMENTS}",),
            gold_ids=(f"d{number % NUM_DOCUMENTS}",),
            kind="planted",
            cluster=f"c{number // CLUSTER_SIZE}",
        )
        for number in range(num_questions)
    ]
    return dataset("planted", documents, questions, "made by scripts/planted_runs.py")


def answer(model: str, prompt: str) -> str:
    """By what the prompt says, and half of the time by a difficulty that a cluster's questions share."""
    number = int(re.findall(r"In census (\d+)", prompt)[-1])
    street = number % NUM_DOCUMENTS
    num_documents = prompt.count("Document: ")
    present = f"Document: Street {street} |" in prompt
    if draw(model, number, num_documents, "own") < 0.5:
        value = draw(model, number, num_documents)
    else:
        value = draw(model, "cluster", number // CLUSTER_SIZE)
    wrong = wrong_rate(model, num_documents, present=present)
    if value < wrong:
        return f"family {street + NUM_DOCUMENTS}"
    return "I don't know." if value < wrong + silent_rate(model, present=present) else f"family {street}"


async def chat(request: web.Request) -> web.StreamResponse:
    body = await request.json()
    text = answer(body["model"], body["messages"][-1]["content"])
    chunks = [
        {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]},
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
    ]
    lines = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks]
    return web.Response(text="".join([*lines, "data: [DONE]\n\n"]), content_type="text/event-stream")


async def models(_: web.Request) -> web.Response:
    return web.json_response({"data": [{"id": name} for name in MODELS]})


async def ask(num_questions: int, out: Path) -> None:
    application = web.Application(client_max_size=1 << 26)
    application.add_routes([web.post("/v1/chat/completions", chat), web.get("/v1/models", models)])
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    [address] = runner.addresses
    configs = [
        RunConfig(
            endpoint=f"http://127.0.0.1:{address[1]}",
            model=model,
            out=out,
            budgets=BUDGETS,
            unit="documents",
            conditions=("natural", "gold+distractors") if model == "turns" else ("natural",),
            permissions=("may_abstain",),
            retriever="random",
            num_questions=num_questions,
            concurrency=16,
            scrape_interval_s=0,
        )
        for model in MODELS
    ]
    try:
        await run_evals(configs, make_dataset(num_questions))
    finally:
        await runner.cleanup()


def split(rows: Iterable[SampleRow], questions_per_run: int) -> dict[int, list[SampleRow]]:
    runs: dict[int, list[SampleRow]] = {}
    for row in rows:
        runs.setdefault(int(row.question_id[1:]) // questions_per_run, []).append(row)
    return runs


def check(rows: Sequence[SampleRow]) -> dict[str, list[bool]]:
    """Of one run: for each kind of interval, whether it covers the truth; and what is declared an effect."""
    found: dict[str, list[bool]] = {"rate": [], "with evidence": [], "without": [], "difference": [], "turning": []}
    summary = summarise(rows)
    for one in summary["models"]:
        model = one["model"]
        if one["condition"] != "natural":
            if model == "turns":
                found["turning"].append(_covers(one["turning"], TURN))
            continue
        for point in one["points"]:
            budget, change = point["budget"], point["vs_closed_book"]
            found["rate"].append(_covers(point["hallucinated"], true_rate(model, budget)))
            if budget > 0:
                for name, part, present in (("with evidence", "present", True), ("without", "absent", False)):
                    interval = point["gold"][part]["hallucinated"]
                    if interval["n"] >= 10:
                        found[name].append(_covers(interval, wrong_rate(model, budget, present=present)))
                truth = true_rate(model, budget) - true_rate(model, 0)
                found["difference"].append(_covers(change, truth))
        if model == "level":
            changes = [point["vs_closed_book"] for point in one["points"] if point["vs_closed_book"]]
            found["no effect declared one"] = [any(change["p_adjusted"] < 0.05 for change in changes)]
    return found


def _covers(interval: Mapping[str, Any], truth: float) -> bool:
    return bool(interval["low"] <= truth <= interval["high"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--questions", type=int, default=60, help="of each run")
    options = parser.parse_args()
    totals: dict[str, list[bool]] = {}
    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(ask(options.runs * options.questions, Path(directory)))
        with Store(Path(directory)) as store:
            runs = split(store.rows(), options.questions)
    for rows in runs.values():
        for name, hits in check(rows).items():
            totals.setdefault(name, []).extend(hits)
    print(f"{len(runs)} runs of {options.questions} questions, {len(BUDGETS)} budgets, {len(MODELS)} models")
    for name, hits in totals.items():
        if hits:
            print(f"{name:24} {sum(hits) / len(hits):.3f} of {len(hits):,}")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
