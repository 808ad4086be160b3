"""Further answers to the same prompts: asked for once, all of them, as they were to be."""

import collections

import pytest
from fakes_endpoint import MODEL, Planted, serving

from evals.config import ConfigError, RunConfig, RunStoppedError
from evals.dialect import NO_DRAW_TEMPERATURE, NO_LOGPROBS, NO_SEED
from evals.draws import seed_of
from evals.records import Question
from evals.retry import MAX_FIRST_REFUSALS
from evals.runner import run_eval, run_evals
from evals.store import Store

NUM_QUESTIONS, NUM_DRAWS = 6, 3
BUDGETS = (0, 60)
TOTAL = NUM_QUESTIONS * len(BUDGETS)


def config_for(url, out, **options):
    defaults = {"model": MODEL, "budgets": BUDGETS, "num_questions": NUM_QUESTIONS, "draws": NUM_DRAWS}
    return RunConfig(endpoint=url, out=out, **defaults | options)


def held(directory):
    with Store(directory) as store:
        return list(store.rows()), list(store.draws())


def say_the_seed(body):
    return f"Town{body['seed'] % 2}" if body["temperature"] else "Town0"


def draws_of(planted):
    return [body for body in planted.asked if body.get("temperature")]


async def test_draws_are_asked_of_every_prompt_when_all_samples_are_there(dataset, tmp_path):
    planted, progress = Planted(draw=say_the_seed), []
    async with serving(planted) as url:
        [result] = await run_evals([config_for(url, tmp_path)], dataset, progress=lambda *told: progress.append(told))
    assert (result.asked, result.draws, result.failed, result.failed_draws) == (TOTAL, TOTAL * NUM_DRAWS, 0, 0)
    greedy, drawn = planted.asked[:TOTAL], planted.asked[TOTAL:]
    assert {body["temperature"] for body in greedy} == {0}
    assert not any("seed" in body for body in greedy)
    assert {body["temperature"] for body in drawn} == {0.7}
    prompts = collections.Counter(str(body["messages"]) for body in drawn)
    assert prompts == {str(body["messages"]): NUM_DRAWS for body in greedy}
    assert len({body["seed"] for body in drawn}) == TOTAL * NUM_DRAWS
    rows, draws = held(tmp_path)
    by_key = {(row.budget, row.question_id): row for row in rows}
    for draw in draws:
        row = by_key[draw.budget, draw.question_id]
        assert draw.answer == f"Town{seed_of(row, draw.draw) % 2}"
        assert draw.verdict == ("correct" if draw.answer in row.answers else "hallucinated")
        assert (draw.temperature, draw.logprob, draw.completion_tokens) == (0.7, None, 1)
    assert progress[-1] == ("planted, draws", TOTAL * NUM_DRAWS, TOTAL * NUM_DRAWS)
    assert (MODEL, TOTAL, TOTAL) in progress


async def test_a_run_without_draws_goes_on_with_them_and_with_more(dataset, tmp_path):
    planted = Planted(draw=say_the_seed)
    async with serving(planted) as url:
        await run_eval(config_for(url, tmp_path, draws=0), dataset)
        assert held(tmp_path)[1] == []
        first = await run_eval(config_for(url, tmp_path), dataset)
        before = held(tmp_path)
        again = await run_eval(config_for(url, tmp_path), dataset)
        more = await run_eval(config_for(url, tmp_path, draws=NUM_DRAWS + 1, num_questions=7), dataset)
    assert (first.asked, first.draws, again.asked, again.draws) == (0, TOTAL * NUM_DRAWS, 0, 0)
    assert (more.asked, more.draws) == (len(BUDGETS), TOTAL + len(BUDGETS) * (NUM_DRAWS + 1))
    assert all(draw in held(tmp_path)[1] for draw in before[1])
    assert len({(str(body["messages"]), body["seed"]) for body in draws_of(planted)}) == first.draws + more.draws


async def test_draws_that_failed_are_asked_again_and_of_failed_samples_none(dataset, tmp_path):
    async with serving(Planted(draw=say_the_seed, refusals=[400, 500])) as url:
        config = config_for(url, tmp_path, concurrency=1)
        first = await run_eval(config, dataset)
        assert (first.failed, first.draws) == (2, (TOTAL - 2) * NUM_DRAWS)
        second = await run_eval(config, dataset)
        assert (second.asked, second.draws) == (2, 2 * NUM_DRAWS)
    planted = Planted(draw=say_the_seed)
    async with serving(planted) as url:
        config = config_for(url, tmp_path / "draws", concurrency=1)
        await run_eval(config_for(url, tmp_path / "draws", draws=0), dataset)
        planted.refusals += [400] * 4
        first = await run_eval(config, dataset)
        failed = [draw for draw in held(tmp_path / "draws")[1] if draw.error]
        second = await run_eval(config, dataset)
    assert (first.failed, first.failed_draws, first.first_error) == (0, 4, "status 400: planted refusal")
    assert {draw.verdict for draw in failed} == {"unscored"}
    assert (second.draws, second.failed_draws) == (4, 0)
    assert not any(draw.error for draw in held(tmp_path / "draws")[1])


async def test_an_endpoint_that_refuses_all_draws_is_left_alone(dataset, tmp_path):
    async with serving(planted := Planted()) as url:
        await run_eval(config_for(url, tmp_path, draws=0), dataset)
        planted.refused_models[MODEL] = 403
        with pytest.raises(
            RunStoppedError, match=r"--draws: .* refuses the first 5 draws of planted alike.*status 403"
        ):
            await run_eval(config_for(url, tmp_path, concurrency=1), dataset)
    assert len(planted.asked) == TOTAL + MAX_FIRST_REFUSALS


async def test_what_draws_do_without_is_said_and_kept(dataset, tmp_path):
    fields = {"seed": (400, "Unknown field: seed"), "logprobs": (422, "logprobs is not supported by this model")}
    said = []
    async with serving(planted := Planted(unknown_fields=fields)) as url:
        options = {"logprobs": True, "scrape_interval_s": 0}
        [result] = await run_evals([config_for(url, tmp_path, **options)], dataset, say=said.append)
        assert (result.failed, result.failed_draws, result.draws) == (0, 0, TOTAL * NUM_DRAWS)
        planted.unknown_fields["temperature"] = (400, "temperature does not support 0.7. Only the default is supported")
        await run_evals([config_for(url, tmp_path, draws=NUM_DRAWS + 1, **options)], dataset, say=said.append)
    first, then = (NO_LOGPROBS, NO_SEED), (NO_SEED, NO_LOGPROBS, NO_DRAW_TEMPERATURE)
    assert said == [f"planted: {change}" for change in (*first, *then)]
    with Store(tmp_path) as store:
        assert store.run_notes()[MODEL, "people"].request_changes == (NO_LOGPROBS, NO_SEED, NO_DRAW_TEMPERATURE)
    rows, draws = held(tmp_path)
    assert {(one.logprob, one.logprob_tokens) for one in (*rows, *draws)} == {(None, None)}
    assert len(draws) == TOTAL * (NUM_DRAWS + 1)


async def test_draws_of_two_temperatures_are_not_mixed(dataset, tmp_path):
    async with serving(planted := Planted(models=(MODEL, "second"))) as url:
        await run_eval(config_for(url, tmp_path, temperature=0.5), dataset)
        asked = len(planted.asked)
        for model in (MODEL, "second"):
            with pytest.raises(
                ConfigError, match=r"draws of planted on people at --temperature 0.5, now it is 0.7\. Use"
            ):
                await run_eval(config_for(url, tmp_path, model=model), dataset)
        assert len(planted.asked) == asked
        # Whoever wants no draws has no temperature.
        assert (await run_eval(config_for(url, tmp_path, draws=0), dataset)).asked == 0


async def test_logprobs_are_those_of_all_samples_or_of_none(dataset, tmp_path):
    """Of another model's too: they take time, and latencies are compared."""
    planted = Planted(models=(MODEL, "second"), logprob=lambda body, _: -0.5 if body["temperature"] else -0.25)
    async with serving(planted) as url:
        await run_eval(config_for(url, tmp_path / "with", logprobs=True), dataset)
        await run_eval(config_for(url, tmp_path / "without"), dataset)
        for model in (MODEL, "second"):
            with pytest.raises(ConfigError, match="--logprobs was on, now it is off"):
                await run_eval(config_for(url, tmp_path / "with", model=model), dataset)
            with pytest.raises(ConfigError, match="--logprobs was off, now it is on"):
                await run_eval(config_for(url, tmp_path / "without", model=model, logprobs=True), dataset)
    # "nothing of the kind" has four words.
    rows, draws = held(tmp_path / "with")
    assert {(row.logprob, row.logprob_tokens) for row in rows} == {(-1.0, 4)}
    assert {(draw.logprob, draw.logprob_tokens) for draw in draws} == {(-2.0, 4)}
    assert {row.logprob for row in held(tmp_path / "without")[0]} == {None}


async def test_with_a_cold_cache_the_draws_of_a_prompt_share_what_they_have_computed(dataset, tmp_path):
    async with serving(planted := Planted()) as url:
        await run_eval(config_for(url, tmp_path, cache="cold"), dataset)
    salts = collections.defaultdict(set)
    for body in draws_of(planted):
        salts[str(body["messages"])].add(body["cache_salt"])
    assert {len(own) for own in salts.values()} == {1}
    assert len(set.union(*salts.values())) == TOTAL


async def test_of_altered_documents_draws_see_the_same(dataset, tmp_path):
    """They stand in no dataset, but in the store; whoever repeats what they say hallucinates."""

    def believe(body):
        prompt = body["messages"][-1]["content"]
        return prompt[prompt.rindex(" lives in ") :].split()[2]

    options = {"conditions": ("conflict",), "budgets": (60,)}
    async with serving(planted := Planted(draw=believe)) as url:
        await run_eval(config_for(url, tmp_path, **options), dataset)
    assert {str(body["messages"]) for body in planted.asked[:NUM_QUESTIONS]} == {
        str(body["messages"]) for body in draws_of(planted)
    }
    rows, draws = held(tmp_path)
    answers = {row.question_id: row.answer for row in rows}
    assert all(draw.answer == answers[draw.question_id] for draw in draws)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"draws": -1}, "--draws must be from 0 to 100, got -1"),
        ({"draws": 101}, "--draws must be from 0 to 100, got 101"),
        ({"temperature": 0}, "--temperature must be above 0 and at most 2, got 0"),
        ({"temperature": 2.5}, "--temperature must be above 0 and at most 2, got 2.5"),
        ({"endpoint": "replay:answers.jsonl"}, "--draws and --logprobs ask a server for more; --endpoint replay:FILE"),
        ({"temperature": float("nan")}, "--temperature must be above 0 and at most 2, got nan"),
    ],
)
def test_bad_options_are_named(tmp_path, options, words):
    with pytest.raises(ConfigError, match=words):
        RunConfig(**{"endpoint": "http://x", "model": MODEL, "out": tmp_path, "draws": 1} | options)


async def test_where_nobody_knows_the_answers_draws_have_no_verdict(dataset, tmp_path):
    questions = tuple(Question(f"q{i}", f"What of {i}?", (), (), "own", f"c{i}", known=False) for i in range(2))
    own = type(dataset)("mine", dataset.documents, questions, "digest", "here")
    async with serving(Planted(draw=say_the_seed)) as url:
        await run_eval(config_for(url, tmp_path, num_questions=2), own)
    assert {draw.verdict for draw in held(tmp_path)[1]} == {"unscored"}
