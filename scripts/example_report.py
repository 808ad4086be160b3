"""Make the report in docs/ anew: both embedded models under every condition, with doubt, latency and memory.

    python -m scripts.example_report            # about six minutes on two cores, from the top of a checkout

Writes docs/example-report.html, docs/example-report.md, docs/example-conditions.png and the README's figures. A run
that was stopped goes on with the same command; what it asked stays in runs/example.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from evals.demo import FATHOM, MODELS, ServerProcess, child_environment

DOCS = Path("docs")  # the page says how it was made: in words that hold on every machine
BUDGETS, DRAWN_BUDGETS = "0,128,256,512,1024,2048,4096", "0,256,1024"
CONDITIONS = ("oracle", "natural", "gold+distractors", "no-gold", "conflict")
SEED, DRAWS = 11, 4
README = Path("README.md")
BEGIN, END = "<!-- example figures: written by scripts/example_report.py -->", "<!-- end of example figures -->"


def commands(url: str, out: Path, num_questions: int) -> list[list[str]]:
    """The two runs: all conditions, and then further answers to some of the prompts."""
    asked = ["eval", "run", "--endpoint", url, "--out", str(out), "--n", str(num_questions), "--seed", str(SEED)]
    # One at a time: the time to a first token is then that of one prompt alone.
    asked += ["--concurrency", "1", "--logprobs", *(word for model in MODELS for word in ("--model", model))]
    conditions = [word for name in CONDITIONS for word in ("--condition", name)]
    permissions = ["--permission", "must_answer", "--permission", "may_abstain"]
    return [
        [*asked, "--budgets", BUDGETS, *conditions, *permissions],
        [*asked, "--budgets", DRAWN_BUDGETS, "--draws", str(DRAWS)],
    ]


def figures(summary: dict[str, Any]) -> str:
    """A table of hallucinated shares by condition, at the shortest and the longest context, and how costs grow."""
    told = [one for one in summary["models"] if one["permission"] == "must_answer"]
    lines = ["| hallucinated, in % | " + " | ".join(MODELS) + " |", "|---|" + "---|" * len(MODELS)]
    for condition in CONDITIONS:
        own = {one["model"]: one for one in told if one["condition"] == condition}
        cells = " | ".join(_shares(own[model]["points"]) for model in MODELS)
        lines.append(f"| `{condition}` | {cells} |")
    natural = {one["model"]: one["growth"]["ttft"] for one in told if one["condition"] == "natural"}
    fits = [natural[model] for model in MODELS]
    cells = " | ".join(f"{fit['exponent']:.2f} [{fit['low']:.2f}, {fit['high']:.2f}]" for fit in fits)
    return "\n".join([*lines, f"| exponent of TTFT in the context's length | {cells} |"])


def _shares(points: list[dict[str, Any]]) -> str:
    """At the shortest context with documents, and at the longest."""
    measured = [point for point in points if point["budget"] > 0] or points
    ends = [measured[0], measured[-1]] if len(measured) > 1 else measured
    return " to ".join(
        f"{100 * point['hallucinated']['rate']:.0f} [{100 * point['hallucinated']['low']:.0f},"
        f" {100 * point['hallucinated']['high']:.0f}]"
        for point in ends
    )


def write_readme(summary: dict[str, Any]) -> None:
    text = README.read_text(encoding="utf-8")
    block = f"{BEGIN}\n\n{figures(summary)}\n\n{END}"
    text, found = re.subn(f"{re.escape(BEGIN)}.*?{re.escape(END)}", lambda _: block, text, flags=re.DOTALL)
    if not found:
        raise SystemExit(f"{README} lacks the line {BEGIN}")
    README.write_text(text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=40)
    parser.add_argument("--out", type=Path, default=Path("runs") / "example")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with ServerProcess(MODELS, options.out / "server.log") as server:
        url = server.wait_ready()
        for command in commands(url, options.out, options.questions):
            done = subprocess.run([*FATHOM, *command], env=child_environment(), check=False)
            if done.returncode:
                sys.exit(done.returncode)
    pictures = options.out / "pictures"
    tables = ["--markdown", str(DOCS / "example-report.md"), "--png", str(pictures)]
    subprocess.run([*FATHOM, "eval", "report", str(options.out), *tables], check=True, stdout=subprocess.DEVNULL)
    shutil.copyfile(options.out / "report.html", DOCS / "example-report.html")
    write_readme(json.loads((options.out / "summary.json").read_text(encoding="utf-8")))
    shutil.copyfile(pictures / "world-conditions_chart.png", DOCS / "example-conditions.png")


if __name__ == "__main__":
    main()
