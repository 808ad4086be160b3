"""Whole runs against an endpoint whose true behaviour is known."""

import collections
import dataclasses
import itertools

import pytest
from fakes_endpoint import MODEL, Planted, count_chat, count_tokens, serving

from evals import retry
from evals.config import ConfigError, RunConfig, RunStoppedError
from evals.dialect import NO_STREAM_OPTIONS, NO_TEMPERATURE
from evals.prompts import build_messages, render_document
from evals.records import CONDITIONS, ESTIMATED, SERVED, WITHOUT_LENGTH, Dataset, Question, RunNote
from evals.retry import MAX_FIRST_REFUSALS
from evals.runner import run_eval, run_evals
from evals.store import Store
from evals.summary import summarise

BUDGETS = (0, 20, 60, 200)
NUM_QUESTIONS = 12


def read_answer(prompt: str) -> str:
    """What a perfect reader says: the town of the person asked for, if a document names it."""
    person = prompt.rpartition("does ")[2].partition(" live")[0]
    place = prompt.find(f"{person} lives in ")
    return prompt[place:].split()[3] if place >= 0 else "Atlantis"


def config_for(url, out, **options):
    defaults = {"model": MODEL, "budgets": BUDGETS, "num_questions": NUM_QUESTIONS, "scrape_interval_s": 0}
    return RunConfig(endpoint=url, out=out, **defaults | options)


def rows_of(directory):
    with Store(directory) as store:
        return list(store.rows())


async def test_verdicts_of_a_perfect_reader(dataset, tmp_path):
    async with serving(Planted(answer=read_answer)) as url:
        result = await run_eval(config_for(url, tmp_path), dataset)
    assert (result.total, result.asked, result.failed, result.kind) == (48, 48, 0, "mamba")
    rows = rows_of(tmp_path)
    assert len(rows) == 48
    for row in rows:
        assert (row.verdict == "correct") == row.gold_in_context
        assert row.verdict in ("correct", "hallucinated")
        assert row.gold_in_context == (row.budget > 0), "BM25 puts the person's own document first"
        assert (row.kv_bytes, row.state_bytes, row.peak_bytes) == (0, 64, 64)
        assert row.ttft_s > 0
    [series] = summarise(rows)["models"]
    assert [point["hallucinated"]["rate"] for point in series["points"]] == [1, 0, 0, 0]
    assert [point["recall"]["rate"] for point in series["points"]] == [0, 1, 1, 1]


async def test_contexts_nest_and_keep_to_their_budget(dataset, tmp_path):
    planted = Planted()
    async with serving(planted) as url:
        await run_eval(config_for(url, tmp_path, concurrency=1), dataset)
    by_question = collections.defaultdict(list)
    for row in rows_of(tmp_path):
        by_question[row.question_id].append(row)
    texts = {document.id: render_document(document) for document in dataset.documents}
    for rows in by_question.values():
        rows.sort(key=lambda row: row.budget)
        assert [row.budget for row in rows] == list(BUDGETS)
        assert rows[0].doc_ids == ()
        for shorter, longer in itertools.pairwise(rows):
            assert longer.doc_ids[: len(shorter.doc_ids)] == shorter.doc_ids
        for row in rows:
            marginal = sum(count_tokens(texts[name]) - 2 for name in row.doc_ids)
            assert row.document_tokens == marginal <= row.budget
    # Ascending budgets of one question follow each other, so that a prefix cache pays.
    sizes = [len(body["messages"][-1]["content"]) for body in planted.asked]
    assert all(sizes[i] < sizes[i + 1] for i in range(len(sizes) - 1) if i % len(BUDGETS) != len(BUDGETS) - 1)


async def test_every_condition_is_what_it_says(dataset, tmp_path):
    planted = Planted(answer=read_answer)
    options = {"conditions": CONDITIONS, "budgets": (0, 60, 200)}
    async with serving(planted) as url:
        result = await run_eval(config_for(url, tmp_path, **options), dataset)
        again = await run_eval(config_for(url, tmp_path, **options), dataset)
    # Two without a length, four with two each.
    assert (result.total, result.asked, result.failed, result.left_out) == (120, 120, 0, 0)
    assert again.asked == 0
    rows = collections.defaultdict(list)
    for row in rows_of(tmp_path):
        rows[row.condition].append(row)
    assert {name: len(found) for name, found in rows.items()} == {
        name: 12 if name in WITHOUT_LENGTH else 24 for name in CONDITIONS
    }
    assert {row.doc_ids for row in rows["closed"]} == {()}
    assert all(row.doc_ids == row.gold_ids for row in rows["oracle"])
    for row in rows["gold+distractors"] + rows["conflict"]:
        assert row.gold_in_context
        assert row.document_tokens <= row.budget
        assert row.depth is not None
    for row in rows["no-gold"]:
        assert not row.gold_in_context
        assert (row.num_leaks, row.depth, row.verdict) == (0, None, "hallucinated")
    for row in rows["conflict"]:
        assert any(name.endswith(f"/altered for {row.question_id}") for name in row.doc_ids)
        assert row.planted.startswith("Town")
        assert row.planted not in row.answers
        # Who reads the altered document first takes over what it says.
        assert (row.hallucination_kind == "conflict") == (row.verdict == "hallucinated")
    assert {row.verdict for row in rows["conflict"]} == {"correct", "hallucinated"}
    series = {one["condition"]: one for one in summarise(rows_of(tmp_path))["models"]}
    assert list(series) == ["oracle", "natural", "gold+distractors", "no-gold", "conflict"]
    assert [point["budget"] for point in series["natural"]["points"]] == [0, 60, 200]
    assert [point["hallucinated"]["rate"] for point in series["no-gold"]["points"]] == [1, 1, 1]
    change = series["gold+distractors"]["points"][1]["vs_closed_book"]
    assert change["difference"] == -1
    # Six clusters: two of 64 ways to exchange them are as extreme, and there are two budgets.
    assert (change["p_value"], change["p_adjusted"]) == (2 / 64, 4 / 64)


async def test_the_same_documents_meet_a_question_at_every_budget(dataset, tmp_path):
    """Of a shorter context all are in the longer one, and the gold one keeps its relative place."""
    options = {"conditions": ("gold+distractors",), "unit": "documents", "budgets": (3, 9, 21)}
    async with serving(Planted()) as url:
        await run_eval(config_for(url, tmp_path, **options), dataset)
    by_question = collections.defaultdict(list)
    for row in sorted(rows_of(tmp_path), key=lambda row: row.budget):
        by_question[row.question_id].append(row)
    depths = []
    for rows in by_question.values():
        assert [len(row.doc_ids) for row in rows] == [3, 9, 21]
        for shorter, longer in itertools.pairwise(rows):
            assert set(shorter.doc_ids) < set(longer.doc_ids)
        assert max(row.depth for row in rows) - min(row.depth for row in rows) <= 0.5
        depths.append(rows[-1].depth)
    assert max(depths) - min(depths) > 0.6


@pytest.mark.parametrize(("order", "place"), [("rank", 0), ("reversed", -1)])
async def test_documents_stand_in_the_order_that_is_asked_for(dataset, tmp_path, order, place):
    options = {"unit": "documents", "budgets": (5,), "order": order}
    async with serving(Planted()) as url:
        await run_eval(config_for(url, tmp_path, **options), dataset)
    assert all(row.doc_ids[place] == row.gold_ids[0] for row in rows_of(tmp_path))


async def test_what_does_not_fit_is_left_out_and_said(dataset, tmp_path):
    said = []
    async with serving(Planted()) as url:
        config = config_for(url, tmp_path, conditions=("gold+distractors",), budgets=(3, 60))
        [result] = await run_evals([config], dataset, say=said.append)
    assert (result.total, result.asked, result.left_out) == (24, 12, 12)
    assert said == ["planted: 12 samples are left out: no such context, or none that small"]


async def test_a_cold_cache_is_asked_for_and_proved(dataset, tmp_path):
    async with serving(planted := Planted(reuses=0)) as url:
        await run_eval(config_for(url, tmp_path / "cold", cache="cold", num_questions=2), dataset)
        await run_eval(config_for(url, tmp_path / "warm", num_questions=2), dataset)
        with pytest.raises(ConfigError, match="--cache was cold, now it is warm"):
            await run_eval(config_for(url, tmp_path / "cold", num_questions=2), dataset)
    salts = [body.get("cache_salt") for body in planted.asked]
    assert len(set(salts[:8])) == 8
    assert set(salts[8:]) == {None}
    async with serving(Planted(reuses=5)) as url:
        result = await run_eval(config_for(url, tmp_path / "reusing", cache="cold", num_questions=1), dataset)
    assert result.failed == 4
    assert "reused 5 tokens" in result.first_error


async def test_a_dataset_without_documents_is_asked_without(tmp_path):
    question = Question("q", "Who?", ("Ann",), (), "open", "c")
    dataset = Dataset("open", (), (question,), "digest", "here")
    async with serving(Planted(answer=lambda _: "Ann")) as url:
        result = await run_eval(config_for(url, tmp_path, budgets=(0,), num_questions=1), dataset)
        with pytest.raises(ConfigError, match="open has questions without documents; ask it with --budgets 0"):
            await run_eval(config_for(url, tmp_path, num_questions=1), dataset)
    assert (result.asked, [row.verdict for row in rows_of(tmp_path)]) == (1, ["correct"])


async def test_nothing_is_asked_twice(dataset, tmp_path):
    # The same weights behind another port.
    first, second = (Planted(answer=read_answer, weights_digest="same") for _ in range(2))
    async with serving(first) as url:
        await run_eval(config_for(url, tmp_path, num_questions=5), dataset)
    before = rows_of(tmp_path)
    async with serving(second) as url:
        more = await run_eval(config_for(url, tmp_path, budgets=(0, 20, 40, 60, 200)), dataset)
        again = await run_eval(config_for(url, tmp_path, budgets=(0, 20, 40, 60, 200)), dataset)
    assert more.asked == len(second.asked) == 12 * 5 - 5 * 4
    assert again.asked == 0
    rows = rows_of(tmp_path)
    assert len(rows) == 60
    assert [row for row in rows if row in before] == before


async def test_failed_samples_are_kept_and_asked_again(dataset, tmp_path):
    async with serving(Planted(refusals=[400] * 4, answer=read_answer)) as url:
        first = await run_eval(config_for(url, tmp_path, concurrency=1), dataset)
        failures = [row for row in rows_of(tmp_path) if row.error]
        second = await run_eval(config_for(url, tmp_path), dataset)
    assert (first.failed, second.asked, second.failed) == (4, 4, 0)
    assert (first.first_error, second.first_error) == ("status 400: planted refusal", None)
    assert len(failures) == 4
    assert {row.verdict for row in failures} == {"unscored"}
    assert all(row.error is None for row in rows_of(tmp_path))


async def test_options_that_do_not_fit_are_named(dataset, tmp_path):
    async with serving(Planted()) as url:
        with pytest.raises(ConfigError, match="--n 13 is more than the 12 questions of people"):
            await run_eval(config_for(url, tmp_path, num_questions=13), dataset)
        await run_eval(config_for(url, tmp_path, num_questions=1), dataset)
        with pytest.raises(ConfigError, match="--max-tokens was 32, now it is 8"):
            await run_eval(config_for(url, tmp_path, num_questions=1, max_tokens=8), dataset)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "--budgets: 200 tokens of documents, {frame} of instruction and question and 32 of answer"),
        ({"budgets": (0,), "max_tokens": 16}, "--max-tokens: 0 tokens of documents, {frame} of .* and 16 of answer"),
        ({"budgets": (0, 20), "max_tokens": 300}, "--max-tokens: 20 tokens of documents, {frame} of .* 300 of answer"),
    ],
)
async def test_what_fits_is_counted(dataset, tmp_path, options, words):
    config = config_for("http://unused", tmp_path, **options)
    frame = count_chat(build_messages("must_answer", (), dataset.questions[-1].text))
    needed = config.budgets[-1] + frame + config.max_tokens
    async with serving(Planted(max_context=needed)) as url:
        assert (await run_eval(config_for(url, tmp_path / "fits", **options), dataset)).failed == 0
    async with serving(planted := Planted(max_context=needed - 1)) as url:
        with pytest.raises(ConfigError, match=words.format(frame=frame) + rf".* fit into the {needed - 1} tokens"):
            await run_eval(config_for(url, tmp_path / "does not", **options), dataset)
    assert planted.asked == []


async def test_a_prompt_that_the_server_cuts_is_no_hallucination(dataset, tmp_path):
    async with serving(Planted(sees=55)) as url:
        result = await run_eval(config_for(url, tmp_path, budgets=(0, 20, 100)), dataset)
    assert (result.asked, result.failed) == (36, 12)
    for row in rows_of(tmp_path):
        if row.budget < 100:
            assert (row.error, row.verdict) == (None, "hallucinated")
            continue
        assert row.document_tokens > 55 == row.prompt_tokens
        assert "counts 55 tokens" in row.error
        assert f"the prompt has {row.expected_tokens} tokens by the client's count" in row.error
        assert (row.verdict, row.first_line_verdict, row.hallucination_kind) == ("unscored", "unscored", None)
        assert not row.gold_in_context


async def test_two_servers_of_one_name_are_not_put_together(dataset, tmp_path):
    async with serving(Planted()) as first, serving(other := Planted()) as second:
        await run_eval(config_for(first, tmp_path, num_questions=1), dataset)
        with pytest.raises(ConfigError, match=rf"--endpoint was {first}, now it is {second}"):
            await run_eval(config_for(second, tmp_path), dataset)
        assert (await run_eval(config_for(first + "/v1/", tmp_path, num_questions=1), dataset)).asked == 0
    assert other.asked == []


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"kind": "transformer"}, "kind was mamba, now it is transformer"),
        ({"max_context": 5000}, "max context was 4000, now it is 5000"),
        ({"weights_digest": "d"}, "weights digest was not given, now it is d"),
    ],
)
async def test_another_model_at_the_same_address_is_refused(dataset, tmp_path, changed, words):
    planted = Planted(max_context=4000)
    async with serving(planted) as url:
        await run_eval(config_for(url, tmp_path, num_questions=1), dataset)
        for name, value in changed.items():
            setattr(planted, name, value)
        with pytest.raises(ConfigError, match=words):
            await run_eval(config_for(url, tmp_path), dataset)


async def test_the_weights_decide_where_their_digest_is_known(dataset, tmp_path):
    """A server that was started anew: another port, another limit from the memory that was free."""
    async with serving(Planted(weights_digest="a", max_context=4000)) as url:
        await run_eval(config_for(url, tmp_path, num_questions=1), dataset)
    async with serving(Planted(weights_digest="a", max_context=3999)) as url:
        assert (await run_eval(config_for(url, tmp_path, num_questions=2), dataset)).asked == len(BUDGETS)
    async with serving(Planted(weights_digest="b", max_context=4000)) as url:
        with pytest.raises(ConfigError, match="weights digest was a, now it is b"):
            await run_eval(config_for(url, tmp_path), dataset)


async def test_a_run_does_not_go_on_upon_another_device(dataset, tmp_path):
    """Nor by another number format; but one of several equal devices is as good as another."""
    planted = Planted(weights_digest="a", device="cuda:0")
    async with serving(planted) as url:
        await run_eval(config_for(url, tmp_path, num_questions=1), dataset)
        planted.device = "cuda:1"
        assert (await run_eval(config_for(url, tmp_path, num_questions=1), dataset)).asked == 0
        planted.device = "cpu"
        with pytest.raises(ConfigError, match="computation was bfloat16 on cuda, now it is bfloat16 on cpu"):
            await run_eval(config_for(url, tmp_path), dataset)


async def test_models_are_compared_on_the_same_terms_alone(dataset, tmp_path):
    planted = Planted(models=(MODEL, "second"))
    reseeded = dataclasses.replace(dataset, digest="other", source="written anew")
    async with serving(planted) as url:
        await run_eval(config_for(url, tmp_path, num_questions=1), dataset)
        asked = len(planted.asked)
        second = {"model": "second", "num_questions": 1}
        with pytest.raises(ConfigError, match=r"samples of planted on people .* --max-tokens was 32, now it is 512"):
            await run_eval(config_for(url, tmp_path, **second, max_tokens=512), dataset)
        words = r"--seed or --data was written for the tests \(digest digest\), now it is written anew \(digest other\)"
        with pytest.raises(ConfigError, match=words):
            await run_eval(config_for(url, tmp_path, **second), reseeded)
        assert len(planted.asked) == asked
        await run_eval(config_for(url, tmp_path, **second), dataset)


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(retry, "FIRST_BACKOFF_S", 0.01)


@pytest.mark.usefixtures("impatient")
async def test_a_count_that_fails_once_costs_nothing(dataset, tmp_path):
    planted = Planted(answer=read_answer, tokenize_refusals=[200, 503, 200, 0, 429, 200, 502])
    async with serving(planted) as url:
        result = await run_eval(config_for(url, tmp_path), dataset)
    assert (result.asked, result.failed, result.counting) == (48, 0, SERVED)
    assert planted.tokenize_refusals == []


@pytest.mark.usefixtures("impatient")
async def test_a_count_that_fails_for_good_stops_the_run_with_one_error(dataset, tmp_path):
    async with serving(Planted(tokenize_refusals=[200] + [503] * 1000)) as url:
        with pytest.raises(RunStoppedError, match="/tokenize answers 503: planted refusal"):
            await run_eval(config_for(url, tmp_path, max_attempts=2), dataset)


@pytest.mark.parametrize("status", [400, 401, 404])
async def test_an_endpoint_that_refuses_everything_is_left_alone(dataset, tmp_path, status):
    planted = Planted(refused_models={MODEL: status})
    async with serving(planted) as url:
        with pytest.raises(RunStoppedError, match=f"the first 5 samples of planted .*: status {status}: planted ref"):
            await run_eval(config_for(url, tmp_path, concurrency=1), dataset)
        assert len(planted.asked) == len(rows_of(tmp_path)) == MAX_FIRST_REFUSALS
        # Fewer than that are no proof.
        few = await run_eval(config_for(url, tmp_path, num_questions=1), dataset)
    assert (few.asked, few.failed) == (4, 4)


@pytest.mark.parametrize("refusals", [[400, 400, 404, 400, 400, 400], [500] * 6])
async def test_first_refusals_of_different_causes_or_the_servers_fault_do_not_stop_a_run(dataset, tmp_path, refusals):
    async with serving(Planted(refusals=refusals)) as url:
        result = await run_eval(config_for(url, tmp_path, concurrency=1), dataset)
    assert (result.asked, result.failed) == (48, 6)


async def test_every_model_is_checked_before_any_is_asked(dataset, tmp_path):
    planted = Planted(models=(MODEL, "second"))
    async with serving(planted) as url, serving(small := Planted(max_context=100)) as other:
        good = config_for(url, tmp_path)
        for bad, words in (
            (config_for(url, tmp_path, model="missing"), "'missing' is not served there"),
            (config_for(other, tmp_path), "do not fit into the 100"),
            (config_for(url, tmp_path, model="second", max_tokens=8), "--max-tokens was 32, now it is 8"),
        ):
            await run_eval(config_for(url, tmp_path, num_questions=1), dataset)
            planted.asked.clear()
            with pytest.raises(ConfigError, match=words) as refused:
                await run_evals([good, bad], dataset)
            assert not isinstance(refused.value, RunStoppedError)
            assert planted.asked == small.asked == []


async def test_what_requests_do_without_is_said_and_kept(dataset, tmp_path):
    fields = {"stream_options": (400, "unknown: stream_options"), "temperature": (422, "temperature is unsupported")}
    said = []
    async with serving(Planted(tokenizes=False, unknown_fields=fields)) as url:
        [result] = await run_evals([config_for(url, tmp_path)], dataset, say=said.append)
    assert (result.failed, result.counting) == (0, ESTIMATED)
    assert said == [
        "planted: the endpoint counts no tokens; documents are counted by an estimate: bytes / 3",
        f"planted: {NO_STREAM_OPTIONS}",
        f"planted: {NO_TEMPERATURE}",
    ]
    with Store(tmp_path) as store:
        notes = store.run_notes()
    assert notes == {(MODEL, "people"): RunNote(ESTIMATED, (NO_STREAM_OPTIONS, NO_TEMPERATURE), "warm")}
    assert {row.prompt_tokens for row in rows_of(tmp_path)} == {None}


async def test_an_endpoint_without_a_list_of_models_is_asked(dataset, tmp_path):
    async with serving(Planted(models_status=404)) as url:
        result = await run_eval(config_for(url, tmp_path, num_questions=1), dataset)
    assert (result.failed, result.kind) == (0, "unknown")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"endpoint": "localhost:8000"}, "--endpoint must be"),
        ({"budgets": (0, 64, 32)}, "--budgets must be ascending"),
        ({"budgets": (-1,)}, "--budgets must be ascending"),
        ({"budgets": ()}, "--budgets must be ascending"),
        ({"permissions": ("may_lie",)}, "--permission must be one of"),
        ({"conditions": ("closed", "best")}, "--condition must be one of closed, oracle, natural, .* got closed, best"),
        ({"conditions": ()}, "--condition must be one of .*, got none"),
        ({"conditions": ("no-gold",), "budgets": (0,)}, "--budgets 0 leaves no room for documents"),
        ({"unit": "words"}, "--unit must be one of tokens, documents"),
        ({"order": "best"}, "--order must be one of rank, reversed, random"),
        ({"cache": "hot"}, "--cache must be one of warm, cold"),
        ({"depth": 1.5}, "--depth must be from 0 to 1, got 1.5"),
        ({"num_questions": 0}, "--n must be above 0"),
        ({"concurrency": 0}, "--concurrency must be above 0"),
    ],
)
def test_bad_options_are_named(tmp_path, options, words):
    with pytest.raises(ConfigError, match=words):
        RunConfig(**{"endpoint": "http://x", "model": "m", "out": tmp_path} | options)


def test_the_key_is_not_shown(tmp_path):
    assert "secret" not in repr(RunConfig(endpoint="http://x", model="m", out=tmp_path, api_key="secret"))
