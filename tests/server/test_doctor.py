"""`fathom doctor` as a user types it, and what it would say of a GPU."""

import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

import server.doctor
from models.kernels.environment import Environment, Package
from models.kernels.interface import Operation
from server.doctor import examine, show

ROOT = Path(__file__).resolve().parents[2]
GPU = Environment(
    "cuda", "NVIDIA H200", (9, 0), "2.13.0", True, {"triton": Package("3.7.1", None), "flash-attn": Package(None, "")}
)


def doctor(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fathom", "doctor", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_as_json():
    done = doctor("--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["torch"] == torch.__version__
    assert {row["operation"] for row in report["operations"]} == set(Operation.__args__)
    assert (report["hardware"]["gpu"] is None) == (not torch.cuda.is_available())


@pytest.mark.slow
def test_of_a_model():
    done = doctor("embedded:mamba")
    assert done.returncode == 0, done.stderr
    assert "Operations of embedded:mamba" in done.stdout
    assert "SSD scan" in done.stdout
    assert "attention" not in done.stdout


@pytest.mark.parametrize("model", ["embedded:nothing", "/there/is/none"])
def test_no_such_model(model):
    assert server.doctor.main([model]) == 2


def test_what_it_says_of_a_gpu(monkeypatch):
    monkeypatch.setattr(server.doctor, "probe", lambda _: GPU)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (100 << 30, 140 << 30))
    report = examine(None)
    backends = {row["operation"]: row["backend"] for row in report["operations"]}
    assert (backends["attention"], backends["SSD step"], backends["SSD scan"]) == ("varlen_attn", "triton", "torch")
    shown = io.StringIO()
    show(Console(file=shown, width=140), report, None)
    for text in ("NVIDIA H200", "compute capability 9.0", "100.0 of 140.0 GiB", "pip install flash-attn"):
        assert text in shown.getvalue()


def test_a_package_that_cannot_be_imported_is_told(monkeypatch):
    broken = replace(GPU, packages={**GPU.packages, "mamba-ssm": Package("2.3", "import mamba_ssm fails: no CUDA")})
    monkeypatch.setattr(server.doctor, "probe", lambda _: broken)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (1 << 30, 2 << 30))
    shown = io.StringIO()
    show(Console(file=shown, width=140), examine(None), None)
    assert "mamba-ssm: 2.3, but import mamba_ssm fails: no CUDA" in shown.getvalue()
