"""A check of what options change on a device, where it is made, and the table of all. Nothing is checked here."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from models.kernels.environment import Environment, probe
from scripts.gpu_models import Size
from scripts.gpu_report import Page
from server.config import Dtype

CHECKS_FILE = "engine.jsonl"


@dataclass(frozen=True, slots=True)
class Check:
    """passed: None where what was found is told only. backends: of attention, where one was chosen."""

    subject: str
    what: str
    against: str
    found: str
    passed: bool | None = None
    backends: str = ""


@dataclass(frozen=True, slots=True)
class Place:
    """Where it is checked, and the checkpoints by kind."""

    device: torch.device
    directories: dict[str, Path]
    size: Size

    @property
    def environment(self) -> Environment:
        return probe(self.device)

    @property
    def dtypes(self) -> tuple[Dtype, ...]:
        """float32, in which tokens are the same whatever the order of sums, and what is served on a GPU."""
        return ("float32", "bfloat16") if self.size == "full" else ("float32",)

    @property
    def checkpoints(self) -> dict[str, Path]:
        """Those that are checked: of toys the one that has all kinds of layers."""
        return self.directories if self.size == "full" else {"hybrid": self.directories["hybrid"]}


def read_checks(directory: Path) -> list[Check]:
    """What has been checked; a line that is still being written is left out."""
    path = directory / CHECKS_FILE
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    return [Check(**json.loads(line)) for line in lines if line.endswith("\n")]


def checks_page(checks: list[Check]) -> Page:
    words = {True: "passed", False: "FAILED", None: "told"}
    rows = [(each.subject, each.what, each.against, each.found, words[each.passed], each.backends) for each in checks]
    return Page("Options of the engine", ("model", "what", "against", "found", "", "kernels"), rows)
