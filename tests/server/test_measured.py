"""The evaluation at the real server: what it asks for beside answers, it gets."""

import pytest
from serving import ServerProcess

from evals.config import RunConfig
from evals.datasets.world import WorldConfig
from evals.datasets.world_questions import load_world
from evals.output import write_outputs
from evals.runner import run_eval
from evals.store import Store

MODEL = "embedded:transformer"
NUM_QUESTIONS, NUM_DRAWS = 6, 4


async def test_log_probabilities_and_draws(server: ServerProcess, tmp_path):
    dataset = load_world(WorldConfig(seed=3, num_entities=40, num_questions=NUM_QUESTIONS))
    common = {"endpoint": server.url, "model": MODEL, "budgets": (0, 200), "num_questions": NUM_QUESTIONS}
    plain = RunConfig(out=tmp_path / "plain", **common)
    told = RunConfig(out=tmp_path / "told", logprobs=True, draws=NUM_DRAWS, temperature=1.5, **common)
    again = RunConfig(out=tmp_path / "again", logprobs=True, draws=NUM_DRAWS, temperature=1.5, **common)
    results = [await run_eval(config, dataset) for config in (plain, told, again)]
    assert [(result.failed, result.failed_draws) for result in results] == [(0, 0)] * 3
    assert [result.draws for result in results] == [0, 2 * NUM_QUESTIONS * NUM_DRAWS, 2 * NUM_QUESTIONS * NUM_DRAWS]
    rows, draws, notes = [], [], []
    for config in (plain, told, again):
        with Store(config.out) as store:
            rows.append(list(store.rows()))
            draws.append(list(store.draws()))
            notes += [note.request_changes for note in store.run_notes().values()]
    assert notes == [()] * 3
    # Whoever asks for log probabilities gets the same greedy answers, and of every token its own.
    assert [row.answer for row in rows[0]] == [row.answer for row in rows[1]]
    assert {row.logprob for row in rows[0]} == {None}
    for row in (*rows[1], *draws[1]):
        assert row.logprob < 0
        assert row.logprob_tokens == row.completion_tokens
    # A seed draws the same again, others draw otherwise.
    assert [draw.answer for draw in draws[1]] == [draw.answer for draw in draws[2]]
    assert [draw.logprob for draw in draws[1]] == pytest.approx([draw.logprob for draw in draws[2]], abs=1e-3)
    assert len({draw.answer for draw in draws[1]}) > len({row.answer for row in rows[1]})
    summary, _ = write_outputs(told.out)
    [series] = summary["models"]
    for point in series["points"]:
        doubt = point["doubt"]
        assert (doubt["draws"], doubt["self_consistency"]["n"]) == (NUM_DRAWS, NUM_QUESTIONS)
        assert doubt["weighted_entropy"]["n"] == doubt["logprob"]["n"] == NUM_QUESTIONS
        assert doubt["semantic_entropy"]["mean"] > 0
