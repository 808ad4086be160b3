"""Our conditions as lm-eval's tasks: the prompts and verdicts of `fathom eval run`, through lm-eval's own models."""

import asyncio
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from fakes_endpoint import MODEL, Planted, serving
from serving import ServerProcess

from evals.config import ConfigError, RunConfig
from evals.datasets import load_dataset
from evals.lm.run import tasks_directory
from evals.lm_tasks.documents import build_documents, documents_of, grade_of
from evals.lm_tasks.settings import read_settings
from evals.records import CONDITIONS, SERVED
from evals.runner import run_eval
from evals.store import Store
from evals.tokens import estimate

ROOT = Path(__file__).resolve().parents[2]
BUDGETS, NUM_QUESTIONS, SEED = [0, 128, 384], 8, 5
TOKENIZER = ROOT / "models/embedded/transformer"
SETTINGS = {"budgets": BUDGETS, "n": NUM_QUESTIONS, "seed": SEED, "permission": "may_abstain"}
WORLD = {"dataset": "world", "condition": "natural"}


def any_answer(prompt: str) -> str:
    """One of all kinds, decided by the prompt alone."""
    rng = random.Random(prompt)
    return rng.choice(["I don't know.", "", prompt, rng.choice(prompt.split(". "))])


def lm_eval(out, url, model, *tasks, metadata, chat=True):
    """lm-eval's own command line and model; its samples, and its figures by task."""
    path = "chat/completions" if chat else "completions"
    # Its default of 2,048 tokens holds where it has a tokenizer of its own; chats are sent as they are.
    arguments = f"model={model},base_url={url}/v1/{path},num_concurrent=2,tokenizer_backend=none"
    command = [sys.executable, "-m", "lm_eval", "run", "--tasks", ",".join(tasks), "--model_args", arguments]
    command += ["--model", "local-chat-completions" if chat else "local-completions"]
    command += ["--include_path", str(tasks_directory()), "--metadata", json.dumps(metadata)]
    command += ["--output_path", str(out), "--log_samples", *(["--apply_chat_template"] if chat else [])]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    samples = [json.loads(line) for file in out.rglob("samples_*.jsonl") for line in file.read_text().splitlines()]
    [figures] = [json.loads(file.read_text())["results"] for file in out.rglob("results_*.json")]
    return samples, figures


def verdicts_of(samples):
    """lm-eval's samples as key -> verdict, by the metrics that they were given."""
    found = {}
    for sample in samples:
        doc = sample["doc"]
        [verdict] = [name for name in ("correct", "hallucinated", "abstained", "unscored") if sample.get(name) == 1.0]
        assert sample[f"{verdict}_{doc['budget']}"] == 1.0
        found[doc["condition"], doc["budget"], doc["question"]["id"]] = verdict
    return found


async def run_ours(url, out, model, conditions):
    config = RunConfig(
        endpoint=url,
        model=model,
        out=out,
        budgets=tuple(BUDGETS),
        conditions=conditions,
        permissions=("may_abstain",),
        num_questions=NUM_QUESTIONS,
        seed=SEED,
    )
    result = await run_eval(config, load_dataset("world", path=None, seed=SEED))
    assert result.counting == SERVED
    with Store(out) as store:
        return {(row.condition, row.budget, row.question_id): row for row in store.rows()}


def messages_asked(planted):
    return sorted(json.dumps(body["messages"]) for body in planted.asked)


@pytest.mark.slow
async def test_both_roads_ask_the_same_and_judge_alike(tmp_path):
    planted = Planted(answer=any_answer)
    async with serving(planted) as url:
        rows = await run_ours(url, tmp_path / "ours", MODEL, CONDITIONS)
        ours = messages_asked(planted)
        planted.asked.clear()
        samples, figures = await asyncio.to_thread(
            lm_eval, tmp_path / "lm", url, MODEL, "fathom_world", metadata={"fathom": SETTINGS}
        )
        assert messages_asked(planted) == ours
    assert verdicts_of(samples) == {key: row.verdict for key, row in rows.items()}
    assert {row.verdict for row in rows.values()} == {"correct", "hallucinated", "abstained", "unscored"}
    assert {sample["doc"]["counting"] for sample in samples} == {SERVED}
    # A share is of the scored answers, with lm-eval's standard error; over all budgets without one.
    at = [row.verdict for key, row in rows.items() if key[:2] == ("natural", 384)]
    scored = len(at) - at.count("unscored")
    natural = figures["fathom_world_natural"]
    assert natural["hallucinated_384,none"] == pytest.approx(at.count("hallucinated") / scored)
    assert natural["unscored_384,none"] == pytest.approx(at.count("unscored") / len(at))
    assert natural["hallucinated_384_stderr,none"] > 0
    assert natural["hallucinated_stderr,none"] == "N/A"


@pytest.mark.slow
async def test_both_roads_agree_on_a_model_that_is_served(tmp_path):
    model = "embedded:transformer"
    with ServerProcess(model, "--threads", "1") as server:
        url = (await asyncio.to_thread(server.wait_ready)).url
        rows = await run_ours(url, tmp_path / "ours", model, ("natural",))
        tasks = "fathom_world_natural", "fathom_world_closed"
        samples, _ = await asyncio.to_thread(
            lm_eval, tmp_path / "lm", url, model, *tasks, metadata={"fathom": SETTINGS}
        )
    assert verdicts_of(samples) == {key: row.verdict for key, row in rows.items()}
    answers = {
        (one["doc"]["condition"], one["doc"]["budget"], one["doc"]["question"]["id"]): one["resps"][0][0]
        for one in samples
    }
    assert answers == {key: row.answer for key, row in rows.items()}
    assert len({row.verdict for row in rows.values()}) > 1


def test_a_prompt_without_a_template_is_one_text_that_ends_with_a_cue():
    code = (
        "import json; from lm_eval.tasks import TaskManager\n"
        f"made = TaskManager(include_path={str(tasks_directory())!r}, include_defaults=False,"
        " metadata={'fathom': {'budgets': [0, 128], 'n': 2}}).load(['fathom_world_oracle', 'fathom_needle'])\n"
        "task = made['tasks']['fathom_world_oracle']\n"
        "task.build_all_requests(limit=1)\n"
        "[one] = task.instances\n"
        "print(json.dumps([one.args, [doc['depth'] for doc in made['tasks']['fathom_needle'].test_docs()]]))"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    (text, options), depths = json.loads(done.stdout.splitlines()[-1])
    assert text.startswith("Use the documents to answer the question.")
    assert text.count("\n\nDocument: ") >= 1
    assert text.endswith("?\n\nAnswer:")
    assert (options["until"], options["max_gen_toks"]) == (["\n"], 32)
    assert all(depth is not None for depth in depths)


def test_documents_are_counted_by_a_tokenizer_or_an_estimate():
    by_file = read_settings({"fathom": SETTINGS, "tokenizer": str(TOKENIZER)}, WORLD)
    counted, estimated = build_documents(by_file), build_documents(read_settings({"fathom": SETTINGS}, WORLD))
    assert {one["counting"] for one in counted} == {f"tokenizer {TOKENIZER}"}
    assert {one["counting"] for one in estimated} == {"estimate: bytes / 3"}
    for one in estimated:
        assert sum(estimate(f"Document: {d.title} | {d.text}\n\n") for d in documents_of(one)) == one["document_tokens"]
        assert one["document_tokens"] <= one["budget"]
    assert grade_of(estimated[0], "I don't know.").verdict == "abstained"


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"fathom": {"budget": [0]}}, r"fathom\.budget is not known; there are: budgets, unit"),
        ({"budgets": [0, 128]}, "budgets: belongs under 'fathom'"),
        ({"fathom": [0, 128]}, "fathom must be an object"),
        ({"fathom": {"n": True}}, r"fathom\.n cannot be True"),
        ({"fathom": {"budgets": [0, "x"]}}, r"fathom\.budgets must be whole numbers"),
        ({"fathom": {"budgets": [256, 128]}}, "--budgets must be ascending"),
        ({"fathom": {"budgets": [0]}}, r"fathom\.budgets: natural needs one above 0"),
        ({"fathom": {"permission": "may_lie"}}, "--permission must be one of"),
        ({"fathom": {"dataset": "needle"}}, r"fathom\.dataset: this task has its own, world"),
    ],
)
def test_metadata_that_cannot_be(metadata, words):
    with pytest.raises(ConfigError, match=words):
        read_settings(metadata, WORLD)


def test_a_tokenizer_that_is_named_must_be_there():
    settings = read_settings({"fathom": {"tokenizer": "missing"}}, WORLD)
    with pytest.raises(ConfigError, match=r"--metadata tokenizer: missing is no tokenizer\.json"):
        build_documents(settings)


def test_arguments_of_models_are_left_to_them():
    arguments = {"model": "m", "base_url": "http://h:1/v1/chat/completions", "seed": 7, "tokenizer": "org/name", "x": 1}
    settings = read_settings({**arguments, "fathom": {"seed": 3}, "version": 1}, WORLD)
    assert (settings.config.seed, settings.config.model, settings.tokenizer) == (3, "m", None)
    assert (settings.config.root_url, settings.has_endpoint) == ("http://h:1", True)
    assert not read_settings({"pretrained": "x"}, WORLD).has_endpoint


def test_a_task_without_a_dataset_of_its_own_needs_one():
    with pytest.raises(ConfigError, match=r"fathom\.dataset: this task needs the name of one"):
        read_settings({}, {"condition": "oracle"})
    settings = read_settings({"fathom": {"dataset": "own", "data": "~/mine"}}, {"condition": "oracle"})
    assert settings.data == Path("~/mine").expanduser()
