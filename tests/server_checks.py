"""What must hold of a server at rest."""

import time
from collections.abc import Sequence

import httpx
from serving import ServerProcess


def refusal(answer: httpx.Response) -> dict:
    """The error of a refused request, which always has the same shape."""
    assert set(answer.json()) == {"error"}
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    return answer.json()["error"]


def assert_idle(
    server: ServerProcess,
    models: Sequence[str] = ("embedded:transformer", "embedded:mamba"),
    timeout_s: float = 5.0,
) -> None:
    """Everything is free: no block and no state slot is held, nothing runs or waits."""
    deadline = time.monotonic() + timeout_s
    while True:
        metrics = server.metrics()
        figures = {
            model: {
                name: metrics[f'fathom_engine_{name}{{model="{model}"}}']
                for name in ("blocks", "free_blocks", "state_slots", "free_state_slots", "running", "waiting")
            }
            for model in models
        }
        if all(
            each["blocks"] == each["free_blocks"]
            and each["state_slots"] == each["free_state_slots"]
            and each["running"] == each["waiting"] == 0
            for each in figures.values()
        ):
            return
        assert time.monotonic() < deadline, f"still held: {figures}"
        time.sleep(0.02)
