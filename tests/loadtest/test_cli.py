import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from loadtest.cli import app
from loadtest.latency import FORMULAS

from .conftest import StartServer

RUN = ["run", "--endpoint", "http://127.0.0.1:9", "--model", "steady"]


def plain(text: str) -> str:
    """Without colours, frames and line breaks."""
    return re.sub(r"\s+", " ", re.sub(r"\x1b\[[0-9;]*m", "", text))


def test_a_run_prints_what_it_writes(start_server: StartServer, tmp_path: Path) -> None:
    server = start_server("--ttft", "0.02", "--gap", "0.002")
    out = tmp_path / "run"
    options = ["--rate", "20", "--duration", "1", "--context", "100", "--output", "8", "--ttft-slo", "5"]
    arguments = ["run", "--endpoint", server.url, "--model", "steady", "--out", str(out), *options]
    result = CliRunner().invoke(app, arguments)
    summary = json.loads((out / "summary.json").read_text())
    # 3 is right too: on a busy machine the client may rightly distrust itself.
    assert result.exit_code == (0 if summary["verdict"]["trustworthy"] else 3), result.output
    assert summary["schema"] == "fathom.load/1"
    assert (summary["config"]["rate"], summary["config"]["seed"]) == (20.0, 0)
    assert summary["slo"]["limits"] == {"ttft_s": 5.0, "tpot_s": None, "e2e_s": None}
    printed = plain(result.output)
    num = summary["requests"]["dispatched"]
    assert num == len(server.calls())
    assert f"{num} measured requests, {num} completed, 0 failed, 0 unfinished" in printed
    for formula in FORMULAS.values():
        assert formula in printed
    p50 = summary["latency"]["tpot_s"]["completed"]["p50"]
    assert f"{p50 * 1000:.1f}" in printed
    assert sorted(path.name for path in out.iterdir()) == [
        "locust.json",
        "locust.log",
        "plan.jsonl",
        "requests.jsonl",
        "summary.json",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "no answer from http://127.0.0.1:9"),
        (["--rate", "0"], "--rate must be a number > 0, got 0.0"),
        (["--e2e-slo", "-1"], "--e2e-slo must be"),
        (["--endpoint", "http://[bad"], "--endpoint has a bad host"),
        (["--endpoint", "http://a..b:80"], "--endpoint has a bad host"),
    ],
)
def test_errors_end_with_2_and_name_the_cause(tmp_path: Path, options: list[str], message: str) -> None:
    result = CliRunner().invoke(app, [*RUN, "--out", str(tmp_path / "run"), *options])
    assert result.exit_code == 2
    assert message in plain(result.output)
    assert not (tmp_path / "run").exists()


def test_out_is_checked_before_anything_is_asked(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "summary.json").write_text("")
    for name, message in (
        ("file", "is not an empty directory"),
        ("full", "is not an empty directory"),
        ("file/x/y", "cannot be made: [Errno 20] Not a directory"),
        ("new/" + "x" * 300, "cannot be made: [Errno 36] File name too long"),
    ):
        result = CliRunner().invoke(app, [*RUN, "--out", str(tmp_path / name)])
        assert result.exit_code == 2, result.output
        assert "error: --out" in plain(result.output)
        assert message in plain(result.output)
    assert not (tmp_path / "new").exists()


def test_unknown_options_are_refused(tmp_path: Path) -> None:
    for options in (["--rates", "1"], ["--arrivals", "bursty"]):
        assert CliRunner().invoke(app, [*RUN, "--out", str(tmp_path), *options]).exit_code == 2
