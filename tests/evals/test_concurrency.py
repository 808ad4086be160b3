"""As many requests at once as the endpoint takes, and the end of a run whose endpoint is gone."""

import asyncio
import contextlib

import pytest
from fakes_endpoint import MODEL, Planted, serving

from evals import retry
from evals.concurrency import FIRST, MIN_ROUND, Concurrency
from evals.config import ConfigError, EndpointLostError, RunConfig
from evals.runner import run_eval
from evals.store import Store
from evals.summary import caveats, summarise
from evals.tally import MAX_UNANSWERED


def config_for(url, out, **options):
    defaults = {"model": MODEL, "budgets": (0, 20, 60, 200), "num_questions": 12}
    return RunConfig(endpoint=url, out=out, **defaults | options)


async def answer(concurrency, **outcome):
    async with concurrency.request() as turn:
        for name, value in outcome.items():
            setattr(turn, name, value)


async def rounds(concurrency, number):
    for _ in range(number):
        for _ in range(max(MIN_ROUND, concurrency.limit)):
            await answer(concurrency, answered=True)


async def test_rounds_of_answers_add_one_and_a_refusal_halves():
    concurrency = Concurrency(8, adaptive=True)
    assert concurrency.limit == FIRST
    # Nothing waits here, so that times are of the event loop alone: the best round may be any.
    concurrency._best_s = 1.0
    await rounds(concurrency, 3)
    assert concurrency.limit == 7
    await rounds(concurrency, 3)
    assert concurrency.limit == 8, "the most that was allowed"
    await answer(concurrency, refused=True)
    assert concurrency.limit == 4
    for _ in range(5):
        await answer(concurrency, refused=True)
    assert concurrency.limit == 1, "one is always allowed"


async def test_answers_that_are_slower_add_nothing():
    concurrency = Concurrency(8, adaptive=True)
    concurrency._best_s = 1e-12
    await rounds(concurrency, 3)
    assert concurrency.limit == FIRST


async def test_requests_that_are_refused_together_halve_once():
    concurrency = Concurrency(64, adaptive=True)
    concurrency.limit = 16
    await asyncio.gather(*(answer_later(concurrency) for _ in range(16)))
    assert concurrency.limit == 8


async def answer_later(concurrency):
    async with concurrency.request() as turn:
        await asyncio.sleep(0.01)
        turn.refused = True


async def test_no_more_than_the_limit_are_under_way():
    concurrency, under_way, most = Concurrency(3), 0, 0

    async def ask():
        nonlocal under_way, most
        async with concurrency.question(), concurrency.request():
            under_way += 1
            most = max(most, under_way)
            await asyncio.sleep(0.001)
            under_way -= 1

    await asyncio.gather(*(ask() for _ in range(20)))
    assert (most, concurrency.largest, concurrency.num_requests) == (3, 3, 20)
    assert 1 <= concurrency.mean <= 3


async def test_a_time_to_come_again_holds_for_all(monkeypatch):
    waits = []
    sleep = asyncio.sleep

    async def note(seconds):
        waits.append(seconds)
        await sleep(0.02)

    monkeypatch.setattr("evals.concurrency.asyncio.sleep", note)
    concurrency = Concurrency(4)
    await answer(concurrency, refused=True, pause_s=0.01)
    await asyncio.gather(*(answer(concurrency, answered=True) for _ in range(3)))
    assert len(waits) == 3, "those that were never refused wait, too"


@pytest.mark.parametrize("capacity", [2, 6])
async def test_an_endpoint_that_takes_so_many_at_once_is_asked_so_many(dataset, tmp_path, monkeypatch, capacity):
    monkeypatch.setattr(retry, "FIRST_BACKOFF_S", 0.01)
    planted = Planted(capacity=capacity, delay_s=0.01)
    budgets = (0, 10, 20, 30, 40, 60, 80, 100, 120, 150, 200, 250, 300)
    async with serving(planted) as url:
        config = config_for(url, tmp_path, budgets=budgets, concurrency=64, adaptive=True)
        result = await run_eval(config, dataset)
    assert (result.asked, result.failed) == (12 * len(budgets), 0)
    with Store(tmp_path) as store:
        rows, notes = list(store.rows()), store.run_notes()
        [manifest] = store.manifests().values()
    found = manifest["sessions"][0]["concurrency"]
    assert found["adaptive"]
    assert 1 <= found["mean"] <= capacity + 1
    assert found["largest"] <= capacity + 1 or capacity < FIRST
    assert found["requests"] == sum(row.attempts for row in rows)
    # Refusals are what it learns from: few, once it has.
    assert sum(row.attempts - 1 for row in rows) < len(rows) / 3
    [series] = summarise(rows, notes=notes)["models"]
    assert series["adapted_concurrency"] == found["mean"]
    assert any("adapted to the endpoint" in line for line in caveats([series]))


async def test_a_fixed_number_is_kept_to_and_says_nothing(dataset, tmp_path):
    async with serving(Planted(capacity=2, delay_s=0.005)) as url:
        result = await run_eval(config_for(url, tmp_path, concurrency=2), dataset)
    with Store(tmp_path) as store:
        notes = store.run_notes()
        [manifest] = store.manifests().values()
    assert (result.failed, notes[MODEL, "people"].adapted_concurrency) == (0, None)
    assert manifest["sessions"][0]["concurrency"]["largest"] == 2


async def test_an_endpoint_that_is_gone_ends_the_run_with_everything_kept(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(retry, "FIRST_BACKOFF_S", 0.001)
    planted = Planted(weights_digest="same")
    async with contextlib.AsyncExitStack() as stack:
        url = await stack.enter_async_context(serving(planted))

        def leave(_):
            if len(planted.asked) > 20:
                planted.faults = {number: "reset" for number in range(10_000)}
            return "nothing of the kind"

        planted.answer = leave
        with pytest.raises(EndpointLostError, match=r"nobody was there for the last 5 samples of planted.* is kept"):
            await run_eval(config_for(url, tmp_path), dataset)
    with Store(tmp_path) as store:
        rows = list(store.rows())
        [manifest] = store.manifests().values()
    failed = [row for row in rows if row.error is not None]
    assert len(failed) == MAX_UNANSWERED
    assert {(row.lost, row.attempts) for row in failed} == {("failed", 8)}
    [session] = manifest["sessions"]
    assert (session["asked"], session["failed"]) == (len(rows), MAX_UNANSWERED)
    async with serving(second := Planted(weights_digest="same")) as url:
        result = await run_eval(config_for(url, tmp_path), dataset)
    assert len(second.asked) == result.asked == 48 - len(rows) + MAX_UNANSWERED
    assert result.failed == 0


@pytest.mark.parametrize("shard", [(0, 2), (3, 2), (1, 13)])
def test_shards_that_cannot_be(tmp_path, shard):
    with pytest.raises(ConfigError, match="--shard"):
        config_for("http://x", tmp_path, shard=shard)
