"""The engine client with a real engine process on a tiny checkpoint: answers, refusals, death, silence, the end."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
import torch
from engine_stand_ins import COMPLAIN, SAY, replace_engine
from fakes import drain, make_request, tokens_of
from tiny_models import KINDS, MAX_POSITIONS, write_tiny_model

import server.process
from server.config import EngineConfig
from server.engine_process import build
from server.process import (
    EngineBusyError,
    EngineClient,
    EngineDiedError,
    EngineUnavailableError,
    QueueFullError,
    RequestTooLongError,
    TooManyAtOnceError,
)
from server.request import EngineRequest, EngineStats, TokenOutput

ROOT = Path(__file__).resolve().parents[2]
START_TIMEOUT_S = 120.0
GONE_WITHIN_S = 60.0  # importing torch on a busy machine takes its time
CONFIG = EngineConfig(
    device="cpu", threads=1, cache_bytes=8 << 20, max_running=20, max_queue=10, step_tokens=64, prefill_chunk=16
)


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: write_tiny_model(kind, tmp_path_factory.mktemp(kind)) for kind in KINDS}


@contextlib.asynccontextmanager
async def serving(directory: Path, config: EngineConfig = CONFIG) -> AsyncIterator[EngineClient]:
    client = EngineClient("tiny", directory, config)
    await client.start()
    try:
        await client.wait_ready(START_TIMEOUT_S)
        yield client
    finally:
        await client.stop()
        assert client.pid is None


def endless(request_id: str) -> EngineRequest:
    return make_request(request_id, [1, 2, 3], MAX_POSITIONS - 3, ignore_eos=True)


async def read(client: EngineClient, request: EngineRequest) -> list[TokenOutput]:
    return [output async for outputs in client.generate(request) for _, output in outputs]


async def read_first(client: EngineClient, request: EngineRequest):
    """An open request that has begun to be answered."""
    outputs = client.generate(request)
    await anext(outputs)
    return outputs


async def read_all(outputs) -> None:
    async for _ in outputs:
        pass


async def idle_stats(client: EngineClient, timeout_s: float = 5.0) -> EngineStats:
    """The statistics once nothing runs, in which nothing may be held."""
    deadline = time.monotonic() + timeout_s
    while True:
        stats = await client.fetch_stats()
        if stats.num_running == stats.num_waiting == 0:
            assert stats.free_blocks == stats.num_blocks
            assert stats.free_state_slots == stats.num_state_slots > 0
            return stats
        assert time.monotonic() < deadline, f"still at work: {stats}"
        await asyncio.sleep(0.01)


async def until(condition, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come in time"
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("kind", KINDS)
async def test_answers_are_those_of_an_engine_in_this_process(directories, kind):
    requests = [make_request(f"r{n}", range(1, 2 + 7 * n), 20, ignore_eos=True) for n in range(6)]
    torch.set_num_threads(1)
    here, ready = build("tiny", directories[kind], CONFIG)
    async with serving(directories[kind]) as client:
        assert client.info == ready.info
        assert client.plan == ready.plan
        assert client.info.kind == kind
        # Interrupts of a terminal go to its foreground group; see server/engine_start.py for the session.
        assert (os.getpgid(client.pid), os.getsid(client.pid)) == (client.pid, os.getsid(0))
        answers = await asyncio.gather(*[read(client, request) for request in requests])
        stats = await idle_stats(client)
        assert (stats.finished, stats.generation_tokens) == (6, 120)
        assert client.num_open == 0
    for request, outputs in zip(requests, answers, strict=True):
        here.add_request(request)
        assert tokens_of(outputs) == tokens_of(drain(here)[request.request_id])
        assert outputs[-1].finish_reason == "length"
        assert outputs[-1].usage is not None
        assert outputs[-1].usage.completion_tokens == 20


async def test_refusals_closing_and_aborting(directories):
    async with serving(directories["transformer"]) as client:
        with pytest.raises(RequestTooLongError, match=r"4097 tokens.* context of 4096") as long:
            await read(client, make_request("long", [1, 2], MAX_POSITIONS - 1))
        assert (long.value.num_tokens, long.value.limit) == (4097, 4096)

        streams = [await read_first(client, endless(f"r{n}")) for n in range(20)]
        waiting = [asyncio.create_task(read(client, endless(f"w{n}"))) for n in range(10)]
        await until(lambda: client.num_open == 30, 5)
        with pytest.raises(QueueFullError, match="30 requests are open") as full:
            await read(client, make_request("one more", [1], 1))
        assert full.value.retry_after_s > 0
        with pytest.raises(TooManyAtOnceError, match="31 are more than may ever be open at once, which is 30"):
            await read_all(client.generate(*[endless(f"never{n}") for n in range(31)]))
        with pytest.raises(TooManyAtOnceError, match="prompt: 31 are more than may ever be open") as several:
            await read_all(client.generate(*[endless(f"never{n}") for n in range(31)], num_prompts=31))
        assert several.value.param == "prompt"
        with pytest.raises(ValueError, match="'r0' is in use"):
            await read(client, endless("r0"))

        # Closing the iterator, cancelling its reader and asking for it: three ways to abort.
        await client.abort("r19")
        last = [output async for outputs in streams.pop() for _, output in outputs][-1]
        assert last.finish_reason == "abort"
        assert last.usage is not None
        assert last.usage.kv_bytes > 0
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        with pytest.raises(QueueFullError, match="n: 12 more are too many now: 19 of at most 30 are open"):
            await read_all(client.generate(*[endless(f"m{n}") for n in range(12)]))
        assert client.num_open == 19
        await streams[0].aclose()
        assert await read(client, make_request("now there is room", [1], 2, ignore_eos=True))
        for stream in streams:
            await stream.aclose()
        stats = await idle_stats(client)
        assert (stats.aborted, stats.finished) == (30, 1)
        assert client.num_open == 0
        assert client.num_failed == 0


async def test_a_killed_engine_is_told_to_every_request_and_comes_back(directories):
    async with serving(directories["transformer"]) as client:
        streams = [await read_first(client, endless(f"r{n}")) for n in range(16)]
        streams.append(client.generate(endless("one of two"), endless("the other")))
        await anext(streams[-1])
        first_pid = client.pid
        os.kill(first_pid, signal.SIGKILL)

        async def wait_for_death(stream) -> None:
            with pytest.raises(EngineDiedError, match=r"killed by signal 9 \(SIGKILL\)"):
                await read_all(stream)

        await asyncio.wait_for(asyncio.gather(*map(wait_for_death, streams)), 5)
        assert client.num_failed == 18
        assert client.num_open == 0
        assert client.state == "restarting"
        assert "SIGKILL" in client.last_error
        assert await client.fetch_stats() == EngineStats()
        with pytest.raises(EngineUnavailableError, match="the engine is restarting"):
            await client.fetch_cache(10)
        with pytest.raises(EngineUnavailableError, match="the engine is restarting: killed by signal 9") as refused:
            await read(client, make_request("early", [1], 1))
        assert refused.value.retry_after_s > 0
        await client.wait_ready(START_TIMEOUT_S)
        assert (client.num_restarts, client.last_error) == (1, None)
        assert client.pid not in (None, first_pid)
        assert len(tokens_of(await read(client, make_request("next", [1], 3, ignore_eos=True)))) == 3
        await idle_stats(client)


async def test_a_stuck_engine_is_replaced_and_holds_nobody_up(directories, monkeypatch):
    monkeypatch.setattr(server.process, "CACHE_TIMEOUT_S", 0.1)
    config = EngineConfig(device="cpu", threads=1, cache_bytes=8 << 20, stall_timeout_s=3)
    async with serving(directories["mamba"], config) as client:
        stream = await read_first(client, endless("r"))
        os.kill(client.pid, signal.SIGSTOP)
        with pytest.raises(EngineBusyError, match=r"did not answer within 0\.1 s"):
            await client.clear_cache()
        # Nobody waits for it to listen.
        started = time.monotonic()
        for number in range(2000):
            task = asyncio.create_task(read(client, endless(f"hasty{number}")))
            await asyncio.sleep(0)
            task.cancel()
        assert time.monotonic() - started < 2
        with pytest.raises(EngineDiedError, match=r"stuck: no word for 3 s \(--stall-timeout-s\)"):
            await asyncio.wait_for(read_all(stream), 20)
        await client.wait_ready(START_TIMEOUT_S)
        assert await read(client, make_request("next", [1], 1))


async def test_an_error_inside_the_engine_is_told_with_its_reason(directories):
    async with serving(directories["mamba"]) as client:
        stream = await read_first(client, endless("innocent"))
        with pytest.raises(EngineDiedError, match="IndexError"):
            await read(client, make_request("no such token", [10**6], 1))
        with pytest.raises(EngineDiedError, match="IndexError"):
            await read_all(stream)
        await client.wait_ready(START_TIMEOUT_S)


async def test_a_step_that_takes_long_on_our_side_is_not_held_against_the_engine(directories):
    config = EngineConfig(device="cpu", threads=1, cache_bytes=8 << 20, stall_timeout_s=2)
    async with serving(directories["mamba"], config) as client:
        time.sleep(3)
        await asyncio.sleep(1.5)
        assert (client.state, client.num_restarts) == ("ready", 0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"directory": "nothing"}, "config.json"),
        ({"max_context": MAX_POSITIONS + 1}, "--max-context 4,097 is more than the model's 4,096 positions"),
        ({"cache_bytes": 100}, "--cache-gib .* is too small"),
    ],
)
async def test_what_can_never_work_fails_at_once_and_for_good(directories, tmp_path, changes, words):
    options = {name: value for name, value in changes.items() if name != "directory"}
    directory = tmp_path if "directory" in changes else directories["transformer"]
    client = EngineClient("tiny", directory, EngineConfig(device="cpu", threads=1, **options))
    await client.start()
    with pytest.raises(EngineUnavailableError, match=words) as failed:
        await client.wait_ready(START_TIMEOUT_S)
    assert failed.value.state == client.state == "failed"
    assert client.pid is None
    assert client.num_restarts == 0
    with pytest.raises(EngineUnavailableError, match=words):
        await read(client, make_request("r", [1], 1))
    await client.stop()


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ([sys.executable, "-c", "raise SystemExit(7)"], "exit code 7"),
        ([sys.executable, "-c", "import os; os.abort()"], r"killed by signal 6 \(SIGABRT\)"),
        (["/no/such/python"], "it cannot be started: .*No such file"),
        ([sys.executable, "-c", SAY.format(what=COMPLAIN)], "no memory"),
        (
            [sys.executable, "-c", SAY.format(what='os.write(outbox, framed(b"nonsense")); time.sleep(600)')],
            "it said what cannot be understood",
        ),
    ],
)
async def test_an_engine_that_keeps_dying_at_its_start_is_tried_again_and_says_why(monkeypatch, command, words):
    replace_engine(monkeypatch, *command)
    client = EngineClient("tiny", Path(), CONFIG)
    await client.start()
    await until(lambda: client.num_restarts == 2, 20)
    await until(lambda: client.pid is None, 20)
    assert client.state == "restarting"
    with pytest.raises(EngineUnavailableError, match=f"the engine is restarting: {words}"):
        await client.wait_ready(0.01)
    started = time.monotonic()
    await client.stop()
    assert time.monotonic() - started < 2
    assert (client.state, client.pid) == ("stopped", None)
    restarts = client.num_restarts
    await asyncio.sleep(1)
    assert client.num_restarts == restarts


async def test_an_engine_that_hangs_while_it_loads_is_replaced_in_every_life(monkeypatch):
    replace_engine(monkeypatch, sys.executable, "-c", "import time; time.sleep(600)")
    client = EngineClient("tiny", Path(), EngineConfig(start_timeout_s=1))
    await client.start()
    with pytest.raises(EngineUnavailableError, match=r"not ready within 1 s \(--start-timeout-s\)"):
        await client.wait_ready(6)
    await until(lambda: client.num_restarts == 2, 20)
    await client.stop()


async def test_what_stands_in_the_current_directory_is_not_taken_for_the_engine(directories, monkeypatch, tmp_path):
    for name in ("server", "models"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('not ours')")
    monkeypatch.chdir(tmp_path)
    client = EngineClient("tiny", directories["mamba"], CONFIG)
    await client.start()
    await until(lambda: client.state != "starting", START_TIMEOUT_S)
    assert (client.state, client.last_error) == ("ready", None)
    await client.stop()


@pytest.mark.parametrize("after_s", [None, 0.0, 0.3])
async def test_stopping_before_it_serves(directories, after_s):
    """At once, while the process is being made, and while it loads: it ends soon and is not started again."""
    others = set(psutil.Process().children())
    client = EngineClient("tiny", directories["mamba"], CONFIG)
    await client.start()
    waiting = asyncio.create_task(client.wait_ready(START_TIMEOUT_S))
    if after_s is not None:
        await asyncio.sleep(after_s)
    children = set(psutil.Process().children()) - others
    started = time.monotonic()
    await client.stop()
    assert time.monotonic() - started < 3
    with pytest.raises(EngineUnavailableError, match="the engine is stopped"):
        await waiting
    assert (client.state, client.pid) == ("stopped", None)
    assert not any(child.is_running() for child in children)
    with pytest.raises(RuntimeError, match="was started before"):
        await client.start()


async def test_stopping_what_serves_fails_its_requests_and_may_be_done_twice(directories):
    async with serving(directories["mamba"]) as client:
        stream = await read_first(client, endless("r"))
        await client.stop()
        with pytest.raises(EngineDiedError, match="the server is shutting down"):
            await read_all(stream)
        with pytest.raises(EngineUnavailableError, match="the engine is stopped"):
            await read(client, endless("s"))
        await client.stop()


async def test_stopping_what_was_never_started(directories):
    client = EngineClient("tiny", directories["mamba"], CONFIG)
    await client.stop()
    with pytest.raises(EngineUnavailableError, match="the engine is stopped"):
        await client.wait_ready(START_TIMEOUT_S)


PARENT = """
import asyncio, sys
from pathlib import Path
from server.config import EngineConfig
from server.process import EngineClient
from server.request import EngineRequest, SamplingParams

async def main():
    client = EngineClient("tiny", Path(sys.argv[1]), EngineConfig(device="cpu", threads=1, cache_bytes=8 << 20))
    await client.start()
    if sys.argv[2] == "loading":
        while client.pid is None:
            await asyncio.sleep(0.01)
        print(client.pid, flush=True)
        await asyncio.sleep(600)
    await client.wait_ready(120)
    if sys.argv[2] == "idle":
        print(client.pid, flush=True)
        await asyncio.sleep(600)
    request = EngineRequest("r", (1, 2, 3), SamplingParams(4000, ignore_eos=True))
    async for _ in client.generate(request):
        print(client.pid, flush=True)

asyncio.run(main())
"""


@pytest.mark.parametrize("when", ["loading", "idle", "generating"])
def test_an_engine_ends_with_the_process_that_started_it(directories, when):
    command = [sys.executable, "-c", PARENT, str(directories["transformer"]), when]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as parent:
        assert parent.stdout is not None
        engine = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    assert engine.is_running()
    psutil.wait_procs([engine], timeout=GONE_WITHIN_S)
    assert not engine.is_running()
