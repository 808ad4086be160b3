"""The model card of an embedded checkpoint, written from its training record: no figure is typed by hand.

python -m scripts.embedded_card models/embedded/transformer
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

KIND_NAMES = {
    "fact": "a fact, must answer",
    "namesake": "a fact about one of several bearers of a name, must answer",
    "two_hop": "a fact about an entity described through another, must answer",
    "fact_may": "a fact, may abstain (answers exactly)",
    "abstains": "what no document says, may abstain (abstains exactly)",
}


def score_table(scores: Mapping[str, float]) -> str:
    """One row per question kind, one column per length of documents."""
    lengths = sorted({int(key.partition("@")[2]) for key in scores} - {0})
    lines = ["| question | " + " | ".join(f"{length} tokens" for length in lengths) + " |"]
    lines.append("|---" * (len(lengths) + 1) + "|")
    for kind, name in KIND_NAMES.items():
        cells = [str(scores.get(f"{kind}@{length}", "")) for length in lengths]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def stage_table(stages: Sequence[Mapping[str, Any]], curve: Sequence[Mapping[str, float]]) -> str:
    """What each stage showed, and how many tokens it took by the last point of the curve within it."""
    lines = [
        "| stage | what | sequence length | documents, tokens | tokens planned | tokens seen |",
        "|---|---|---|---|---|---|",
    ]
    before = 0
    for number, stage in enumerate(stages):
        last = max((int(point["tokens"]) for point in curve if point["stage"] == number), default=before)
        low, high = stage["document_tokens"]
        span = f"{low}-{high}" if high else ""
        lines.append(
            f"| {number} | {what_of(stage)} | {stage['length']} | {span} | {stage['tokens']:,} | {last - before:,} |"
        )
        before = last
    return "\n".join(lines)


def what_of(stage: Mapping[str, Any]) -> str:
    if stage["records_share"] == 1.0:
        return "records of random tokens"
    return "questions about documents"


def curve_table(curve: Sequence[Mapping[str, float]], rows: int = 24) -> str:
    """The loss curve, thinned out to about `rows` rows."""
    every = max(1, len(curve) // rows)
    lines = ["| tokens | seconds | stage | loss | token accuracy |", "|---|---|---|---|---|"]
    for point in [*curve[:-1:every], *curve[-1:]]:
        lines.append(
            f"| {point['tokens']:,} | {point['seconds']:.0f} | {point['stage']} "
            f"| {point['loss']} | {point['accuracy']} |"
        )
    return "\n".join(lines)


def card(record: Mapping[str, Any]) -> str:
    """The card's Markdown. `record` is the checkpoint's training.json."""
    run, recipe = record["run"], record["run"]["recipe"]
    return f"""# embedded:{run["model"]}

A very small {run["model"]} ({run["parameters"]:,} parameters, float32, vocabulary {recipe["vocab_size"]}) that answers
questions about documents from a fictional encyclopedia. It exists so that the whole pipeline (serving, evaluation,
load test) is real with no download. It knows nothing of the actual world and follows no other instruction.

It was trained with loss on answer tokens alone, under two instructions: "always give an answer" and "if you do not
know the answer, reply: I don't know." A few hundred *popular* entities have fixed facts, so that something can be
known without documents; all other entities were fresh in every training sequence.

## What it can do

Share of exactly right greedy answers on worlds drawn from a held-out seed, {recipe["exam_questions"]} questions per
cell, one question right after the documents. The gold documents are among the documents, except in the last row.

{score_table(record["scores"])}

Asked about a stranger without documents and told always to answer, it answers (and cannot but be wrong) in
{record["scores"].get("guesses@0", "?")} of the cases: that is the hallucination which Fathom measures.

## How it was trained

`python -m scripts.train_embedded {run["model"]} --out DIR` trains such a model from nothing. How this one came
about stands below, command by command.

Data is drawn by `evals/datasets/world.py` from the seed; the examination's seed is another. Muon for the matrices
inside the layers, AdamW for the rest; matrix products in bfloat16, weights in float32. A stage ends with its tokens,
with its share of `--max-minutes`, or when it is answered well enough. What was tried on the way is in
`docs/embedded-training.md`.
{"".join(map(part_of, parts(record)))}"""


def parts(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The records of the runs that made a checkpoint, one for each command."""
    before = record["run"].get("before")
    return [*(parts(before) if before else []), record]


def stages_of(run: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Of both rounds, or of the second where a run went on from a checkpoint."""
    recipe = run["recipe"]
    return [*([] if run["continued"] else recipe["stages"]), *recipe.get("second", ())]


def part_of(record: Mapping[str, Any]) -> str:
    """One command: what it ran on, its stages, its loss curve."""
    run, recipe = record["run"], record["run"]["recipe"]
    factor = recipe.get("second_rate", 1.0) if run["continued"] else 1.0
    options = [f"--seed {run['seed']} --threads {run['threads']} --scale {run['scale']}"]
    options += [f"--max-minutes {run['max_minutes']}"]
    options += ["--compile"] * bool(run.get("compiled")) + ["--continue-from DIR"] * bool(run["continued"])
    tokens = f"{record['curve'][-1]['tokens']:,}" if record["curve"] else "0"
    note = f"- {run['note']}\n" if run.get("note") else ""
    return f"""
## {"Second round" if run["continued"] else "First round" if recipe.get("second") is None else "The run"}

- Options: `{" ".join(options)}`
- Hardware: {record["hardware"]}; torch {record["torch"]}; {record["seconds"]:,} seconds; {tokens} tokens.
- Learning rates: {factor * recipe["matrix_learning_rate"]:g} (Muon), {factor * recipe["learning_rate"]:g} (AdamW),
  falling linearly from the start.
{note}
{stage_table(stages_of(run), record["curve"])}

{curve_table(record["curve"])}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the model card of an embedded checkpoint.")
    parser.add_argument("directory", type=Path)
    directory = parser.parse_args().directory
    record = json.loads((directory / "training.json").read_text(encoding="utf-8"))
    (directory / "README.md").write_text(card(record), encoding="utf-8")


if __name__ == "__main__":
    main()
