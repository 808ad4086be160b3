"""`fathom doctor`: what this machine computes with, and what would make it faster.

Run as a process of its own by the command line, which itself loads no torch:  python -m server.doctor [MODEL]
"""

import argparse
import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, get_args

import psutil
import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from models.config import ModelConfig
from models.errors import ModelError
from models.families import read_config
from models.kernels.choose import LARGE_BLOCK, Choice, Need, choices_for, choose, preferred_block_size
from models.kernels.environment import Environment, probe
from models.kernels.interface import Operation
from server.checkpoints import resolve_model
from server.config import ConfigError
from server.hub import HubModel, open_snapshot

GIB = 1 << 30
USUAL_HEAD_DIM, USUAL_WIDTH = 128, 4  # of most published models; a model's own are taken where one is given


def usual_choices(environment: Environment, dtype: str) -> tuple[Choice, ...]:
    """What most models would get."""
    need = Need(dtype, LARGE_BLOCK, head_dim=USUAL_HEAD_DIM, width=USUAL_WIDTH)
    return tuple(choose(operation, environment, need) for operation in get_args(Operation))


def examine(config: ModelConfig | None) -> dict[str, Any]:
    """Everything that is shown, as plain values; the choices are a model's own where its config is given."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    environment = probe(device)
    dtype = "bfloat16" if environment.is_gpu else "float32"
    hardware: dict[str, Any] = {
        "processor": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads used by torch",
        "memory_gib": round(psutil.virtual_memory().total / GIB, 1),
        "gpu": None,
    }
    if environment.is_gpu:
        free, total = torch.cuda.mem_get_info(device)
        hardware["gpu"] = {
            "name": environment.device_name,
            "capability": ".".join(map(str, environment.capability or ())),
            "memory_gib": round(total / GIB, 1),
            "free_gib": round(free / GIB, 1),
            "cuda": torch.version.cuda,
        }
    block_size = LARGE_BLOCK
    if config is None:
        choices = usual_choices(environment, dtype)
    else:
        block_size = preferred_block_size(config.layers, environment, dtype)
        choices = choices_for(config.layers, environment, dtype, block_size)
    return {
        "python": platform.python_version(),
        "torch": environment.torch_version,
        "hardware": hardware,
        "packages": {name: asdict(package) for name, package in environment.packages.items()},
        "dtype": dtype,
        "block_size": block_size,
        "operations": [
            {"operation": c.operation, "backend": c.backend, "passed_over": [list(p) for p in c.passed_over]}
            for c in choices
        ],
    }


def show(console: Console, report: dict[str, Any], model: str | None) -> None:
    hardware, gpu = report["hardware"], report["hardware"]["gpu"]
    console.print(f"python {report['python']}, torch {report['torch']}", highlight=False)
    console.print(f"processor: {hardware['processor']}, {hardware['memory_gib']} GiB of memory", highlight=False)
    if gpu is None:
        console.print("GPU: torch sees none; everything runs on the processor", highlight=False)
    else:
        console.print(
            f"GPU: {gpu['name']}, compute capability {gpu['capability']}, {gpu['free_gib']} of {gpu['memory_gib']} GiB "
            f"free, CUDA {gpu['cuda']}",
            highlight=False,
        )
    for name, package in report["packages"].items():
        state = package["version"] or "not installed"
        if package["version"] and package["problem"]:
            state += f", but {package['problem']}"
        console.print(f"{name}: {escape(state)}", highlight=False)
    what = f"of {model}" if model else f"of a usual model (head_dim {USUAL_HEAD_DIM})"
    table = Table(title=f"Operations {escape(what)} in {report['dtype']}", title_justify="left")
    for column in ("operation", "backend", "passed over, and why"):
        table.add_column(column, overflow="fold")
    for row in report["operations"]:
        reasons = "\n".join(f"{name}: {reason}" for name, reason in row["passed_over"])
        table.add_row(row["operation"], row["backend"], escape(reasons))
    console.print(table)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="fathom doctor")
    parser.add_argument("model", nargs="?")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args(arguments)
    config = None
    try:
        if chosen.model:
            _, place = resolve_model(chosen.model)
            # Of a model of the Hub, its config is all that is fetched beside its other small files.
            config = read_config(open_snapshot(place).directory if isinstance(place, HubModel) else place)
    except (ConfigError, ModelError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    report = examine(config)
    if chosen.json:
        print(json.dumps(report, indent=1))
    else:
        show(Console(), report, chosen.model)
    return 0


if __name__ == "__main__":
    sys.exit(main())
