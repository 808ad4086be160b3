"""A real server with a cache directory is killed and started again: what was asked before is known."""

import time
from pathlib import Path

import httpx
import psutil
import pytest
from serving import ServerProcess

MODELS = ("embedded:transformer", "embedded:mamba")
CONTEXT = [5 + number % 200 for number in range(700)]


def start(directory: Path) -> ServerProcess:
    return ServerProcess(*MODELS, "--threads", "1", "--cache-gib", "0.1", "--cache-dir", str(directory)).wait_ready()


def ask(server: ServerProcess, model: str) -> tuple[str, int]:
    """The answer, and how many tokens of the prompt were known."""
    body = {"model": model, "prompt": CONTEXT, "max_tokens": 8, "temperature": 0, "ignore_eos": True}
    answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=60).json()
    return answer["choices"][0]["text"], answer["usage"]["prompt_tokens_details"]["cached_tokens"]


def wait_written(server: ServerProcess, model: str, files: int) -> None:
    deadline = time.monotonic() + 30
    while server.metrics()[f'fathom_engine_disk_writes_total{{model="{model}"}}'] < files:
        assert time.monotonic() < deadline, server.log
        time.sleep(0.1)


@pytest.mark.slow
def test_a_killed_server_knows_its_contexts_when_it_is_back(tmp_path):
    with start(tmp_path) as server:
        answers = {model: ask(server, model) for model in MODELS}
        wait_written(server, MODELS[0], 3)  # two whole runs of keys and values, and the rest
        wait_written(server, MODELS[1], 1)
        # Engines first: they could not finish what they were at.
        engines = [server.engine(model) for model in MODELS]
        for process in (*engines, psutil.Process(server.process.pid)):
            process.kill()
        server.process.wait(10)
    assert {known for _, known in answers.values()} == {0}
    with start(tmp_path) as server:
        assert sum("--cache-dir: read" in line for line in server.log) == 2
        for model in MODELS:
            text, known = ask(server, model)
            assert (text, known) == (answers[model][0], len(CONTEXT) - 1)
            metrics = server.metrics()
            assert metrics[f'fathom_engine_disk_bytes_read_total{{model="{model}"}}'] > 0
            assert metrics[f'fathom_engine_disk_pieces{{model="{model}"}}'] >= 1
            assert metrics[f'fathom_engine_disk_read_seconds_total{{model="{model}"}}'] > 0
            cache = httpx.get(f"{server.url}/v1/fathom/cache", params={"model": model}, timeout=60).json()
            assert cache["totals"]["disk_bytes"] == metrics[f'fathom_engine_disk_bytes{{model="{model}"}}']
            assert cache["entries"][0]["tier"] == "device"
