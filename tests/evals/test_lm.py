"""lm-eval's own tasks at endpoints: figures that can be computed by hand, and no prompt that is cut unseen."""

import asyncio
import json
import os
import signal
import sqlite3
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from fakes_endpoint import MODEL as PLANTED_MODEL
from fakes_endpoint import Planted, count_chat, serving
from lm_endpoint import FIRST_TOKEN, MODEL, Scripted, scripted
from serving import ServerProcess
from typer.testing import CliRunner

from evals.config import ConfigError, RunConfig, RunStoppedError
from evals.lm.config import LmConfig, parse_metadata
from evals.lm.results import read_results
from evals.lm.run import run_lm
from fathom import app

ROOT = Path(__file__).resolve().parents[2]
TASKS = Path(__file__).parent / "lm_test_tasks"
LONG = 3000  # words; more tokens than lm-eval takes unless it is told
PROMPT_BYTES = {number: len("word " * number) + len("Say yes.") for number in (10, 20, LONG, 100)}


def config_for(url, out, *tasks, num_words=(10, 20), server=None, **options):
    return LmConfig(
        server=RunConfig(endpoint=url, model=MODEL, out=out, **{"max_attempts": 2} | (server or {})),
        tasks=tasks,
        include_paths=(TASKS,),
        metadata={"num_words": list(num_words)},
        **options,
    )


async def run(endpoint, out, *tasks, **options):
    async with scripted(endpoint) as url:
        return await asyncio.to_thread(run_lm, config_for(url, out, *tasks, **options))


def by_task(results):
    return {result.task: result for result in results}


def prompts(endpoint):
    return [prompt for body in endpoint.asked for prompt in body["prompt"]]


@pytest.mark.parametrize(("batch_size", "concurrency"), [(1, 1), (1, 4), (2, 3)])
async def test_figures_are_lm_evals_and_are_kept(tmp_path, batch_size, concurrency):
    endpoint = Scripted()
    options = {"num_words": (10, 20, 30), "batch_size": batch_size, "server": {"concurrency": concurrency}}
    results = by_task(await run(endpoint, tmp_path, "test_choice", "test_generation", **options))
    choice, generation = results["test_choice"], results["test_generation"]
    # " no" has fewer and smaller bytes than " yes", so the second choice is always the likelier one.
    assert (choice.metric, choice.value, choice.stderr, choice.n, choice.num_truncated) == ("acc", 0.0, 0.0, 3, 0)
    assert (generation.metric, generation.value, generation.n) == ("exact_match", 0.0, 3)
    assert sorted(read_results(tmp_path), key=lambda one: one.task) == [choice, generation]
    generated = [body for body in endpoint.asked if not body.get("echo")]
    assert {(body["max_tokens"], body["temperature"], *body["stop"]) for body in generated} == {(8, 0, "\n")}


async def test_whole_texts_are_scored_in_windows(tmp_path):
    endpoint = Scripted(limit=64)
    [result] = await run(endpoint, tmp_path, "test_rolling", num_words=(10, 40))
    texts = [("word " * number).strip() for number in (10, 40)]
    assert max(map(len, prompts(endpoint))) <= 63
    assert prompts(endpoint)[0][0] == FIRST_TOKEN
    # Every byte once: minus the sum of all, over the number of words.
    total = sum(byte / 256 for text in texts for byte in text.encode())
    assert result.value == pytest.approx(2.718281828459045 ** (total / 50))
    assert result.num_truncated == 0


async def test_the_limit_is_the_endpoints_and_not_lm_evals(tmp_path):
    endpoint = Scripted(limit=20_000)
    [result] = await run(endpoint, tmp_path, "test_generation", num_words=(10, LONG))
    assert sorted(map(len, prompts(endpoint))) == [PROMPT_BYTES[10], PROMPT_BYTES[LONG]]
    assert (result.num_truncated, result.config["max_length"]) == (0, 20_000)


@pytest.mark.parametrize("task", ["test_generation", "test_choice"])
async def test_what_fits_exactly_is_asked_and_one_token_more_is_not(tmp_path, task):
    answer = {"test_generation": 8, "test_choice": 1}[task]
    prompt = {"test_generation": PROMPT_BYTES[100], "test_choice": len("word " * 100 + "The answer is yes")}[task]
    endpoint = Scripted(limit=prompt + answer)
    await run(endpoint, tmp_path, task, num_words=(10, 100))
    assert max(map(len, prompts(endpoint))) == prompt
    too_small = Scripted(limit=prompt + answer - 1)
    words = (
        f"{task}, document 1 has a prompt of {prompt} tokens and asks for {answer}, more than the {prompt + answer - 1}"
    )
    with pytest.raises(ConfigError, match=words):
        await run(too_small, tmp_path, "test_rolling", task, num_words=(10, 100))
    assert too_small.asked == [], "not even of the task before"


@pytest.mark.parametrize("batch_size", [1, 2])
async def test_what_may_be_cut_is_counted(tmp_path, batch_size):
    endpoint = Scripted(limit=200)
    tasks, options = ("test_generation", "test_choice"), {"truncate": "allow", "batch_size": batch_size}
    results = by_task(await run(endpoint, tmp_path, *tasks, num_words=(10, 100, LONG), **options))
    assert {task: result.num_truncated for task, result in results.items()} == {"test_generation": 2, "test_choice": 4}
    assert {len(prompt) for prompt in prompts(endpoint)} >= {PROMPT_BYTES[10], 200 - 8, 200 - 1}


async def test_answers_that_are_there_are_not_asked_for_again(tmp_path):
    endpoint = Scripted(limit=200)
    async with scripted(endpoint) as url:
        config = config_for(url, tmp_path, "test_generation", "test_choice", num_words=(10, 100), truncate="allow")
        first = await asyncio.to_thread(run_lm, config)
        num_asked = len(endpoint.asked)
        again = await asyncio.to_thread(run_lm, config)
    assert len(endpoint.asked) == num_asked == 2 + 4
    figures = [[(one.task, one.value, one.num_truncated) for one in results] for results in (first, again)]
    assert figures[0] == figures[1]
    assert sum(one.num_truncated for one in again) == 3


@pytest.mark.parametrize("task", ["test_generation", "test_choice"])
async def test_a_server_that_cuts_is_found_out(tmp_path, task):
    with pytest.raises(RunStoppedError, match=rf"task {task}, document 1: the server cut the prompt: .* of which 100"):
        await run(Scripted(sees=100), tmp_path, task, num_words=(10, 100))
    if task == "test_generation":
        [result] = await run(Scripted(sees=100), tmp_path, task, num_words=(10, 100), truncate="allow")
        assert result.num_truncated == 1


async def test_an_answer_as_long_as_the_context_leaves_no_room(tmp_path):
    with pytest.raises(
        ConfigError, match="document 0 asks for 8 tokens, which leaves no room for a prompt in the 8 of"
    ):
        await run(Scripted(limit=8), tmp_path, "test_generation", truncate="allow")


async def test_scores_of_another_number_of_tokens_are_refused(tmp_path):
    with pytest.raises(RunStoppedError, match=r"test_choice, document .*: .* log-probabilities for .* tokens and one"):
        await run(Scripted(extra=False), tmp_path, "test_choice")


async def test_an_endpoint_that_dies_is_named_and_what_it_answered_is_kept(tmp_path):
    endpoint = Scripted(dies=2)
    async with scripted(endpoint) as url:
        config = config_for(url, tmp_path, "test_generation", num_words=(10, 20, 30, 40), server={"concurrency": 1})
        with pytest.raises(RunStoppedError, match=rf"task test_generation, document \d: --endpoint {url}/v1/comp"):
            await asyncio.to_thread(run_lm, config)
        assert (len(endpoint.asked), read_results(tmp_path)) == (2, [])
        endpoint.dies = None
        await asyncio.to_thread(run_lm, config)
    assert len(endpoint.asked) == 4


async def test_without_a_tokenizer_nothing_is_asked_unless_cuts_are_allowed(tmp_path):
    blind = Scripted(tokenizes=False)
    with pytest.raises(ConfigError, match="--tokenizer: without one nobody sees whether a prompt is cut"):
        await run(blind, tmp_path, "test_generation")
    with pytest.raises(ConfigError, match="--tokenizer: test_choice wants log-likelihoods"):
        await run(blind, tmp_path, "test_choice", truncate="allow")
    assert blind.asked == []
    [result] = await run(blind, tmp_path, "test_generation", truncate="allow")
    assert result.num_truncated is None
    assert {type(body["prompt"]) for body in blind.asked} == {str}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_length": 5000}, "--max-length 5000 is more than the 4096 tokens"),
        ({"chat": True, "tokenizer": "missing"}, r"--tokenizer: missing is no tokenizer\.json"),
    ],
)
async def test_options_that_do_not_fit_the_endpoint(tmp_path, options, words):
    endpoint = Scripted()
    with pytest.raises(ConfigError, match=words):
        await run(endpoint, tmp_path, "test_generation", **options)
    assert endpoint.asked == []


async def test_a_limit_that_nobody_says_must_be_given(tmp_path):
    with pytest.raises(ConfigError, match="--max-length: the endpoint does not say"):
        await run(Scripted(limit=None), tmp_path, "test_generation")
    [result] = await run(Scripted(limit=None), tmp_path, "test_generation", max_length=300)
    assert result.config["max_length"] == 300


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tasks": ("",)}, "--tasks must be names"),
        ({"limit": 0}, "--limit must be at least 1"),
        ({"num_fewshot": -1}, "--num-fewshot must be at least 0"),
        ({"chat": True, "batch_size": 2}, "--batch: a chat request holds one chat"),
        ({"truncate": "some"}, "--truncate must be one of refuse, allow"),
        ({"include_paths": (Path("missing"),)}, "--include-path missing is no directory"),
    ],
)
def test_options_that_cannot_be(tmp_path, options, words):
    server = RunConfig(endpoint="http://127.0.0.1:9", model=MODEL, out=tmp_path)
    with pytest.raises(ConfigError, match=words):
        LmConfig(**{"server": server, "tasks": ("a",)} | options)


def test_metadata_is_an_object():
    assert parse_metadata(None) == {}
    for text in ("{", "[1]"):
        with pytest.raises(ConfigError, match="--metadata"):
            parse_metadata(text)


async def test_the_command_reports_and_says_what_is_wrong(tmp_path):
    endpoint = Scripted()
    async with scripted(endpoint) as url:

        def invoke(*more, task="test_generation"):
            words = ["eval", "lm", "--tasks", task, "--endpoint", url, "--model", MODEL, "--out", str(tmp_path)]
            done = CliRunner().invoke(app, [*words, "--include-path", str(TASKS), *more], env={"COLUMNS": "140"})
            return done.exit_code, done.output

        code, output = await asyncio.to_thread(invoke, "--limit", "2")
        assert (code, "report.html" in output) == (0, True), output
        code, output = await asyncio.to_thread(invoke, "--max-length", "40")
        assert (code, "document 0 has a prompt of 58 tokens" in output) == (2, True)
        code, output = await asyncio.to_thread(invoke, task="test_generatoin")
        assert (code, "'test_generatoin' is not known; near it are test_generation" in output) == (2, True)
        code, output = await asyncio.to_thread(invoke, "--metadata", '{"num_words": 3}')
        assert (code, "test_generation cannot be loaded: TypeError" in output) == (2, True)
    [figure] = json.loads((tmp_path / "summary.json").read_text())["lm"]
    assert (figure["task"], figure["n"], figure["num_truncated"], figure["config"]["limit"]) == (
        "test_generation",
        2,
        0,
        2,
    )
    page = (tmp_path / "report.html").read_text()
    assert "s tasks</h2>" in page
    assert "test_generation" in page
    with closing(sqlite3.connect(tmp_path / "samples.sqlite")) as database:
        assert database.execute("SELECT count(*) FROM lm_results").fetchone() == (1,)
    directory = CliRunner().invoke(app, ["eval", "lm-tasks"]).output.strip()
    assert (Path(directory) / "fathom_world.yaml").is_file()


async def run_chats(planted, out, *, budgets=(0, 128), **options):
    async with serving(planted) as url:
        server = RunConfig(endpoint=url, model=PLANTED_MODEL, out=out, max_attempts=2)
        metadata = {"fathom": {"budgets": list(budgets), "n": 4}}
        config = LmConfig(server=server, tasks=("fathom_world_natural",), metadata=metadata, chat=True, **options)
        return await asyncio.to_thread(run_lm, config)


async def test_chats_are_measured_with_their_template(tmp_path):
    planted = Planted(answer=lambda _: "I don't know.", max_context=5000)
    figures = {one.metric: one for one in await run_chats(planted, tmp_path)}
    assert (figures["abstained_128"].value, figures["abstained_128"].num_truncated) == (1.0, 0)
    assert [message["role"] for message in planted.asked[0]["messages"]] == ["system", "user"]
    longest = max(count_chat(body["messages"]) for body in planted.asked)
    await run_chats(Planted(max_context=longest + 32), tmp_path / "fits")
    too_small = Planted(max_context=longest + 31)
    words = rf"task fathom_world_natural, document \d has a prompt of {longest} tokens and asks for 32"
    with pytest.raises(ConfigError, match=words):
        await run_chats(too_small, tmp_path / "too-small")
    assert too_small.asked == []
    with pytest.raises(RunStoppedError, match=r"fathom_world_natural, document \d: the server cut the prompt"):
        await run_chats(Planted(max_context=5000, sees=longest - 1), tmp_path / "cut")


async def test_a_run_that_was_interrupted_goes_on(tmp_path):
    endpoint = Scripted(delay_s=0.3)
    async with scripted(endpoint) as url:
        words = [
            "eval",
            "lm",
            "--tasks",
            "test_generation",
            "--endpoint",
            url,
            "--model",
            MODEL,
            "--out",
            str(tmp_path),
        ]
        words += ["--include-path", str(TASKS), "--concurrency", "2"]
        words += ["--metadata", json.dumps({"num_words": list(range(1, 31))})]

        async def start():
            command = [sys.executable, "-m", "fathom", *words]
            pipe = asyncio.subprocess.PIPE
            environment = os.environ | {"COLUMNS": "140"}
            return await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe, cwd=ROOT, env=environment)

        process = await start()
        while len(endpoint.asked) < 6:
            assert process.returncode is None
            await asyncio.sleep(0.02)
        process.send_signal(signal.SIGINT)
        printed, _ = await process.communicate()
        assert (process.returncode, b"the same command goes on" in printed) == (130, True)
        before = len(endpoint.asked)
        assert before < 30
        endpoint.delay_s = 0.0
        process = await start()
        printed, errors = await process.communicate()
        assert process.returncode == 0, errors.decode()
    # What was under way when it was stopped is asked again, and nothing else.
    assert 30 <= len(endpoint.asked) <= 30 + 2


@pytest.mark.slow
def test_a_model_that_is_served_reads_more_than_lm_evals_default(tmp_path):
    model, tasks = "embedded:transformer", ("test_generation", "test_choice")
    with ServerProcess(model, "--threads", "1") as server:
        server.wait_ready()

        def config(num_words, **options):
            config = config_for(server.url, tmp_path, *tasks, num_words=num_words, **options)
            return replace(config, server=replace(config.server, model=model))

        with pytest.raises(
            ConfigError, match=r"test_generation, document 1 has a prompt of [\d,]+ tokens .* the 2,048"
        ):
            run_lm(config((10, 2100), max_length=2048))
        assert num_read(server) == 0
        results = run_lm(config((10, 2100)))
        # The long prompt of one task, and of the other with each of two choices.
        assert num_read(server) > 3 * 2100
    assert [(one.task, one.n, one.num_truncated) for one in results] == [(task, 2, 0) for task in tasks]


def num_read(server):
    metrics = server.metrics().items()
    return sum(value for name, value in metrics if name.startswith("fathom_request_prompt_tokens_sum"))
