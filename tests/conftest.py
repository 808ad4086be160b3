"""How tests are dealt out, and a table of what they measured: largest deviation from the reference, model by model."""

import os

# Before torch is imported, and for every process that a test starts: threads that have no core of their own, for other
# tests run beside them, must not spin while they wait for one another.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest
import torch

if not torch.cuda.is_available():
    # Triton's kernels run in its interpreter then. It reads this when it is imported, and transformers imports it.
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object | None:
    if config.getvalue("dist") != "loadgroup":
        return None
    from dealing import Dealing  # pytest-xdist is not everywhere

    return Dealing(config, log)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    # From the reports, for with several workers the tests ran in other processes.
    largest: dict[str, dict[str, float]] = {}
    for report in terminalreporter.stats.get("passed", []):
        test, _, case = report.nodeid.rpartition("::")[2].partition("[")
        for name, value in report.user_properties:
            if name == "deviation":
                row = largest.setdefault(case.rstrip("]"), {})
                row[test] = max(row.get(test, 0.0), value)
    if not largest:
        return
    checks = sorted({test for row in largest.values() for test in row})
    terminalreporter.section("largest deviation of a float32 logit from transformers'")
    width = max(map(len, largest))
    for number, check in enumerate(checks, start=1):
        terminalreporter.write_line(f"  {number}: {check.removeprefix('test_').replace('_', ' ')}")
    terminalreporter.write_line(" " * width + "".join(f"{number:>9}" for number in range(1, len(checks) + 1)))
    for case, row in sorted(largest.items()):
        cells = "".join(f"{row[check]:9.1e}" if check in row else " " * 9 for check in checks)
        terminalreporter.write_line(f"{case:{width}}{cells}".rstrip())
