"""What the project shows first, asked anew: with documents the shipped models hallucinate far less."""

import pytest
from serving import ServerProcess

from evals.config import RunConfig
from evals.datasets import load_dataset
from evals.demo import FULL, SEED
from evals.runner import run_eval
from evals.store import Store
from evals.summary import summarise

NUM_QUESTIONS = 80
BUDGETS = (0, 128)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "points"), [("embedded:transformer", 0.6), ("embedded:mamba", 0.5)])
async def test_documents_help_and_the_intervals_are_apart(tmp_path, model, points):
    dataset = load_dataset("world", path=None, seed=SEED)
    with ServerProcess(model, "--threads", "1") as server:
        config = RunConfig(
            endpoint=server.wait_ready().url,
            model=model,
            out=tmp_path,
            budgets=BUDGETS,
            permissions=("must_answer",),
            num_questions=NUM_QUESTIONS,
        )
        await run_eval(config, dataset)
    with Store(tmp_path) as store:
        [series] = summarise(list(store.rows()))["models"]
    without, with_documents = (point["hallucinated"] for point in series["points"])
    assert without["rate"] - with_documents["rate"] >= points
    assert without["low"] > with_documents["high"]
    assert FULL.num_questions >= NUM_QUESTIONS
    assert set(BUDGETS) <= set(FULL.budgets)
