"""The whole server under load and under violence: many streams at once, a killed engine, a shutdown."""

import asyncio
import random
import signal
import socket
import subprocess
import sys
import time

import httpx
import openai
import psutil
import pytest
from server_checks import assert_idle
from serving import ROOT, ServerProcess
from typer.testing import CliRunner

from evals.datasets.world import WorldConfig
from evals.datasets.world_questions import load_world
from evals.prompts import build_messages
from fathom import app

MODELS = ("embedded:transformer", "embedded:mamba")
NUM_STREAMS = 64
DEATH_TOLD_WITHIN_S = 5.0


@pytest.fixture(scope="module")
def requests() -> list[dict]:
    """Chats of very different lengths, turn by turn to both models, greedy."""
    dataset = load_world(WorldConfig(seed=3, num_entities=120, num_questions=NUM_STREAMS))
    rng = random.Random(4)
    return [
        {
            "model": MODELS[number % 2],
            "messages": build_messages("must_answer", dataset.documents[: rng.choice((0, 1, 3, 9, 30))], question.text),
            "temperature": 0,
            "max_tokens": rng.choice((1, 7, 40)),
            "extra_body": {"ignore_eos": True},
        }
        for number, question in enumerate(dataset.questions)
    ]


async def read(client: openai.AsyncOpenAI, request: dict) -> tuple[str, str | None]:
    """Text and finish reason of one streamed answer."""
    stream = await client.chat.completions.create(**request, stream=True)
    text, reason = "", None
    async for chunk in stream:
        text += chunk.choices[0].delta.content or ""
        reason = chunk.choices[0].finish_reason or reason
    return text, reason


def client_of(server: ServerProcess) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120)


async def test_many_streams_at_once_are_each_as_if_alone(server, requests):
    async with client_of(server) as client:
        alone = [await read(client, request) for request in requests]
        together = await asyncio.gather(*[read(client, request) for request in requests])
    assert {reason for _, reason in alone} == {"length"}
    assert together == alone
    assert len({text for text, _ in alone}) > NUM_STREAMS // 2
    assert_idle(server)


async def test_a_small_cache_preempts_and_nothing_changes(server, requests):
    """Too few blocks for all that were admitted to grow: they take turns, by preemption."""
    same_model = [request | {"max_tokens": 120} for request in requests if request["model"] == MODELS[0]][:12]
    async with client_of(server) as client:
        alone = [await read(client, request) for request in same_model]
    with ServerProcess(MODELS[0], "--threads", "1", "--cache-gib", "0.008") as small:
        small.wait_ready()
        async with client_of(small) as client:
            together = await asyncio.gather(*[read(client, request) for request in same_model])
        assert together == alone
        assert small.metrics()[f'fathom_engine_preemptions_total{{model="{MODELS[0]}"}}'] > 0
        assert_idle(small, MODELS[:1])


async def read_for_ever(client: openai.AsyncOpenAI, model: str, started: asyncio.Semaphore) -> None:
    """Read a stream that does not end by itself."""
    stream = await client.completions.create(
        model=model, prompt="The", max_tokens=20_000, stream=True, extra_body={"ignore_eos": True}
    )
    async for _ in stream:
        started.release()


async def time_of_death(client: openai.AsyncOpenAI, model: str, started: asyncio.Semaphore) -> float:
    """When the client was told that its stream will never end."""
    with pytest.raises(openai.APIError, match="engine"):
        await read_for_ever(client, model, started)
    return time.monotonic()


async def test_a_killed_engine_is_told_to_every_client_and_comes_back():
    with ServerProcess(*MODELS, "--threads", "1") as server:
        server.wait_ready()
        async with client_of(server) as client:
            started = asyncio.Semaphore(0)
            streams = [asyncio.create_task(time_of_death(client, MODELS[0], started)) for _ in range(16)]
            for _ in range(64):
                await started.acquire()
            server.engine(MODELS[0]).kill()
            killed = time.monotonic()
            ends = await asyncio.wait_for(asyncio.gather(*streams), DEATH_TOLD_WITHIN_S)
            assert max(ends) - killed < DEATH_TOLD_WITHIN_S
            health = server.wait_health(503, timeout_s=5)
            assert health["models"][MODELS[0]]["state"] == "restarting"
            assert health["models"][MODELS[1]]["state"] == "ready"
            options = {"prompt": "The", "max_tokens": 3, "extra_body": {"ignore_eos": True}}
            with pytest.raises(openai.InternalServerError) as refused:
                await client.completions.create(model=MODELS[0], **options)
            assert refused.value.status_code == 503
            assert int(refused.value.response.headers["Retry-After"]) >= 1
            assert (await client.completions.create(model=MODELS[1], **options)).usage.completion_tokens == 3
            server.wait_health(200, timeout_s=60)
            assert (await client.completions.create(model=MODELS[0], **options)).usage.completion_tokens == 3
        assert_idle(server)


async def wait_for_work(server: ServerProcess, **figures: int) -> dict[str, float]:
    """Wait until the transformer's engine reports these figures; returns all metrics."""
    deadline = time.monotonic() + 60
    while True:
        metrics = await asyncio.to_thread(server.metrics)
        found = {name: metrics[f'fathom_engine_{name}{{model="{MODELS[0]}"}}'] for name in figures}
        if found == figures:
            return metrics
        assert time.monotonic() < deadline, f"{found}, not {figures}"
        await asyncio.sleep(0.05)


async def test_a_killed_engine_is_a_503_to_every_request_without_an_answer():
    """Whatever it was at: decoding an answer that is sent whole, in the middle of a long prompt, or in the queue."""
    arguments = ("--threads", "1", "--max-running", "8", "--step-tokens", "8")
    with ServerProcess(MODELS[0], *arguments) as server:
        server.wait_ready()
        async with httpx.AsyncClient(base_url=server.url, timeout=120) as http:

            def post(prompt: list[int], *, stream: bool) -> asyncio.Task[httpx.Response]:
                body = {"model": MODELS[0], "prompt": prompt, "max_tokens": 2000, "ignore_eos": True, "stream": stream}
                return asyncio.create_task(http.post("/v1/completions", json=body))

            decoding = [post([5], stream=False)]
            await wait_for_work(server, running=1)
            long = [5 + number % 200 for number in range(30_000)]
            prefilling = [post(long, stream=True)]
            await wait_for_work(server, running=2)
            # The long prompt takes all that a step has room for.
            queued = [post([5], stream=False), post([5], stream=True)]
            metrics = await wait_for_work(server, running=2, waiting=2)
            assert 1 < metrics[f'fathom_engine_prompt_tokens_total{{model="{MODELS[0]}"}}'] < len(long)
            server.engine(MODELS[0]).kill()
            told = asyncio.gather(*decoding, *prefilling, *queued)
            answers = await asyncio.wait_for(told, DEATH_TOLD_WITHIN_S)
        assert [answer.status_code for answer in answers] == [503] * 4
        for answer in answers:
            assert answer.json()["error"]["code"] == "engine_died"
            assert "killed by signal 9 (SIGKILL)" in answer.json()["error"]["message"]
            assert int(answer.headers["Retry-After"]) >= 1


def test_it_listens_on_the_loopback_address_alone_unless_told_otherwise(server):
    port = int(server.url.rpartition(":")[2])
    assert server.url == f"http://127.0.0.1:{port}"
    # All of 127.0.0.0/8 is this machine: a server bound to every address would answer there as well.
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", port), timeout=5)
    main = psutil.Process(server.process.pid)
    sockets = [each for process in (main, *main.children(recursive=True)) for each in process.net_connections("inet")]
    listening = [each.laddr for each in sockets if each.status == psutil.CONN_LISTEN]
    assert listening == [("127.0.0.1", port)]


async def test_a_full_queue_refuses_and_keeps_what_it_took():
    arguments = ("--threads", "1", "--max-running", "2", "--max-queue", "1", "--step-tokens", "64")
    with ServerProcess(MODELS[1], *arguments, "--api-key", "secret") as server:
        server.wait_ready()
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as http:
            body = {"model": MODELS[1], "prompt": "The", "max_tokens": 400, "ignore_eos": True}
            assert (await http.post("/v1/completions", json=body)).status_code == 401
            assert (await http.get("/v1/models", headers={"Authorization": "Bearer wrong"})).status_code == 401
            assert (await http.get("/health")).status_code == 200
            http.headers["Authorization"] = "Bearer secret"
            answers = await asyncio.gather(*[http.post("/v1/completions", json=body) for _ in range(12)])
        accepted = [answer for answer in answers if answer.status_code == 200]
        refused = [answer for answer in answers if answer.status_code == 429]
        assert len(accepted) + len(refused) == 12
        assert len(accepted) >= 3
        assert refused
        assert all(answer.json()["usage"]["completion_tokens"] == 400 for answer in accepted)
        assert all(int(answer.headers["Retry-After"]) >= 1 for answer in refused)
        assert all("3 requests" in answer.json()["error"]["message"] for answer in refused)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(30) == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["embedded:nothing"], "there are: embedded:transformer, embedded:mamba"),
        (["no/such/directory"], "there is no directory"),
        (["embedded:mamba", "embedded:mamba"], "is served already"),
        (["embedded:mamba", "--block-size", "0"], "--block-size must be at least 1"),
        (["embedded:mamba", "--step-tokens", "8"], "--step-tokens 8 must be at least --max-running 64"),
        (["embedded:mamba", "--colour", "red"], "No such option"),
        (["embedded:mamba", "--dtype", "int3"], "int3"),
    ],
)
def test_wrong_command_lines(arguments, words):
    # In this process: that it ends as a process of its own does, the next test shows.
    done = CliRunner().invoke(app, ["serve", "--port", "0", *arguments])
    assert (done.exit_code, type(done.exception)) == (2, SystemExit)
    assert words in done.stderr


def test_a_taken_port_is_told_at_once():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            [sys.executable, "-m", "fathom", "serve", "embedded:mamba", "--port", port],
            capture_output=True,
            text=True,
            cwd=ROOT,
            timeout=60,
        )
    assert done.returncode == 2
    assert f"--port {port} cannot be bound" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_model_that_cannot_be_served_ends_the_server():
    server = ServerProcess(MODELS[0], "--max-context", "1000000")
    assert server.process.wait(60) == 1
    assert any("--max-context 1,000,000 is more than the model's 32,768 positions" in line for line in server.log)
    server.stop()
