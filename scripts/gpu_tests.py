"""Which tests want a GPU, in which order, and what came of them: family by family, file by file."""

import json
import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from scripts.gpu_report import Page

ROOT = Path(__file__).resolve().parents[1]
RECORD_FILE = "tests.jsonl"
# Kernels alone, then in models; what is not named comes last.
FIRST = (
    "test_triton_attention.py",
    "test_triton_recurrent.py",
    "test_gpu_libraries.py",
    "test_kernels.py",
    "test_decode_graphs.py",
    "test_exactness.py",
)
WITHOUT_KERNELS = frozenset({"dense forward", "bfloat16"})  # checks of the twin that needs no cache
WORKERS = 6  # processes that share the GPU; most of the time goes to the reference on the CPU


@dataclass(frozen=True, slots=True)
class Outcome:
    """One test. deviation: the largest of a float32 logit from transformers'."""

    test: str
    outcome: str
    family: str | None
    backends: str | None
    deviation: float | None

    @property
    def file(self) -> str:
        return self.test.partition("::")[0]

    @property
    def check(self) -> str:
        return self.test.partition("::")[2].partition("[")[0].removeprefix("test_").replace("_", " ")


def pytest_arguments(out: Path, *, device: str, size: str) -> list[str]:
    """Arguments of pytest; on a CPU, where nothing bears the mark's condition, one check of the same tests."""
    folder = ROOT / "tests" / "models"
    ordered = [*(folder / name for name in FIRST), *sorted(folder.glob("test_*.py"))]
    files = [str(path.relative_to(ROOT)) for path in dict.fromkeys(ordered)] + ["tests/server/test_runner.py"]
    if device == "cuda":
        marked = ["-m", "gpu"]
        if find_spec("xdist") is not None:
            marked += ["-n", str(min(WORKERS, max(1, (os.cpu_count() or 1) // 2)))]
    else:
        marked = ["-k", "whole_prefill and (llama or mamba2)" if size == "toy" else "whole_prefill"]
    record = ["-p", "scripts.gpu_recorder", "--record", str(out / RECORD_FILE)]
    return ["-m", "pytest", "-q", *record, "--continue-on-collection-errors", *marked, *files]


def read_outcomes(directory: Path) -> list[Outcome]:
    path = directory / RECORD_FILE
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    return [Outcome(**json.loads(line)) for line in lines if line.endswith("\n")]


def count(outcomes: list[Outcome], outcome: str) -> str:
    return str(sum(one.outcome == outcome for one in outcomes))


def grouped(outcomes: list[Outcome], field: str) -> dict[str, list[Outcome]]:
    groups: dict[str, list[Outcome]] = {}
    for one in outcomes:
        if (value := getattr(one, field)) is not None:
            groups.setdefault(value, []).append(one)
    return groups


def family_row(family: str, outcomes: list[Outcome]) -> tuple[str, ...]:
    """The largest deviation, in which check, and the kernels of all checks that go through them."""
    largest = max(outcomes, key=lambda one: -1.0 if one.deviation is None else one.deviation)
    paged = [(one.backends or "").split(", ") for one in outcomes if one.check not in WITHOUT_KERNELS]
    backends = ", ".join(dict.fromkeys(part for parts in paged for part in parts))
    deviation = ("", "") if largest.deviation is None else (f"{largest.deviation:.1e}", largest.check)
    failed = ", ".join(one.check for one in outcomes if one.outcome == "failed")
    return family, backends, *deviation, count(outcomes, "passed"), failed


def pages_of(outcomes: list[Outcome]) -> list[Page]:
    families = Page(
        "Logits against transformers', float32",
        ("model", "backends", "largest deviation", "in", "passed", "failed"),
        [family_row(*group) for group in sorted(grouped(outcomes, "family").items())],
    )
    files = Page(
        "Tests",
        ("file", "passed", "failed", "skipped"),
        [
            (name, *(count(group, outcome) for outcome in ("passed", "failed", "skipped")))
            for name, group in sorted(grouped(outcomes, "file").items())
        ],
    )
    failures = [(one.test,) for one in outcomes if one.outcome == "failed"]
    return [page for page in (families, files, Page("Failed", ("test",), failures)) if page.rows]
