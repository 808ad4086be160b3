"""A pytest plugin: each test's outcome, deviations and kernels go to a file as soon as it has run.

python -m pytest -p scripts.gpu_recorder --record runs/gpu/tests.jsonl tests/models
"""

import json
from collections.abc import Generator
from pathlib import Path

import pytest
from torch import nn

from models.attention import Attention
from models.ssm import RecurrentMixer

MODULES = {
    "_torch": "torch",
    "_triton": "triton",
    "_numba": "numba",
    "triton_backend": "triton",
    "mamba_backends": "mamba packages",
}


def backend_of(function: object) -> str:
    """The backend that a kernel belongs to, by the module that defines it."""
    module, name = str(getattr(function, "__module__", "")), str(getattr(function, "__qualname__", ""))
    if module.endswith("flash_backends"):
        return "varlen_attn" if name.startswith("varlen") else "flash-attn"
    return next((backend for ending, backend in MODULES.items() if module.endswith(ending)), module)


def backends_of(decoder: nn.Module) -> list[str]:
    """`operation backend` of all that a decoder's mixers compute with now, each once."""
    found: dict[str, None] = {}
    for module in decoder.modules():
        if isinstance(module, Attention):
            found[f"attention {backend_of(module.kernels.attend)}"] = None
        elif isinstance(module, RecurrentMixer):
            found[f"scan {backend_of(module.kernels.scan)}"] = None
            found[f"step {backend_of(module.kernels.step)}"] = None
    return list(found)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record", type=Path, default=None, help="file for a line of JSON per test")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    try:
        return (yield)
    finally:
        pair = getattr(item, "funcargs", {}).get("pair")
        if pair is not None:
            item.user_properties.append(("family", pair.name))
            item.user_properties.append(("backends", ", ".join(backends_of(pair.ours))))


class Recorder:
    """Writes what is reported where all reports come together."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.passed:
            return
        properties = dict(report.user_properties)
        deviations = [
            value for name, value in report.user_properties if isinstance(value, float) and name == "deviation"
        ]
        line = {
            "test": report.nodeid,
            "outcome": report.outcome,
            "family": properties.get("family"),
            "backends": properties.get("backends"),
            "deviation": max(deviations, default=None),
        }
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def pytest_configure(config: pytest.Config) -> None:
    path = config.getoption("--record")
    if path is not None and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Recorder(path))
