"""Make the report in docs/ anew: both embedded models under every condition, with doubt, latency and memory.

    python -m scripts.example_report            # about twenty minutes on two cores

Writes docs/example-report.html, docs/example-report.md and docs/example-conditions.png. A run that was stopped goes on
with the same command; what it asked stays in runs/example.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from evals.demo import FATHOM, MODELS, ServerProcess, child_environment

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
BUDGETS, DRAWN_BUDGETS = "0,128,256,512,1024,2048,4096", "0,256,1024"
CONDITIONS = ("oracle", "natural", "gold+distractors", "no-gold", "conflict")
SEED, DRAWS = 11, 4


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=40)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "example")
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
    shutil.copyfile(pictures / "world-conditions_chart.png", DOCS / "example-conditions.png")


if __name__ == "__main__":
    main()
