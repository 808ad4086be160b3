"""Two models on the same questions, by hand and as a user calls it."""

import dataclasses
import json
import random

import numpy as np
import pytest
from evals_rows import failed, hallucinated, sample, sweep
from typer.testing import CliRunner

from evals.compare import Side, compare, pair_up
from evals.config import ConfigError
from evals.fingerprint import Fingerprint
from evals.records import Document
from evals.stats.ratios import median_ratio
from evals.store import Store
from fathom import app

SETTINGS = {"world": {"--seed or --data": "seed 0", "retriever": "bm25"}}


def side(tmp_path, *rows, settings=SETTINGS):
    return Side(tmp_path, rows[0].model, rows, settings)


def asked(make, number, model, **fields):
    defaults = {"model": model, "question_id": f"q{number}", "cluster": f"c{number}", "budget": 64}
    return make(**defaults | fields)


def test_outcomes_of_pairs_by_hand(tmp_path):
    """Ten questions: five right at both, four wrong at a alone, one wrong at b alone; one more failed at b."""
    first = [asked(hallucinated if number in (5, 6, 7, 8) else sample, number, "a") for number in range(11)]
    second = [asked(hallucinated if number == 9 else sample, number, "b", ttft_s=1.0) for number in range(10)]
    second.append(asked(failed, 10, "b"))
    found = compare(side(tmp_path, *first), side(tmp_path, *second))
    [point] = found["points"]
    wrong = point["hallucinated"]
    assert (wrong["a"], wrong["b"], wrong["n_pairs"]) == (0.4, 0.1, 10)
    assert wrong["difference"] == pytest.approx(-0.3)
    # Of five that differ one goes the other way: 2 * (1 + 5) / 32.
    assert wrong["p_value"] == wrong["p_adjusted"] == pytest.approx(12 / 32)
    assert wrong["low"] < -0.3 < wrong["high"]
    assert point["correct"]["difference"] == pytest.approx(0.3)
    assert point["abstained"]["difference"] == 0
    assert (point["n_pairs"], point["unscored"], point["same_documents"]) == (11, {"a": 0, "b": 1}, 1.0)
    assert point["ttft"] == {"ratio": 2.0, "low": 2.0, "high": 2.0, "n_pairs": 10}
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_points_are_corrected_together(tmp_path):
    numbers, budgets = range(12), (64, 128, 256)
    first = [asked(hallucinated, number, "a", budget=budget) for number in numbers for budget in budgets]
    second = [
        asked(sample if number < 6 else hallucinated, number, "b", budget=budget)
        for number in numbers
        for budget in budgets
    ]
    points = compare(side(tmp_path, *first), side(tmp_path, *second))["points"]
    assert [point["budget"] for point in points] == list(budgets)
    for point in points:
        assert point["hallucinated"]["p_value"] == 2 / 64
        assert point["hallucinated"]["p_adjusted"] == 6 / 64


def test_pairs_by_budget_and_by_documents(tmp_path):
    """A tokenizer that takes more tokens fits fewer documents into the same budget."""
    documents = ("d0", "d1", "d2", "d3")
    first = [
        asked(sample, 0, "a", budget=budget, doc_ids=documents[:count])
        for budget, count in ((64, 1), (128, 3), (256, 4))
    ]
    second = [
        asked(sample, 0, "b", budget=budget, doc_ids=documents[:count])
        for budget, count in ((64, 1), (128, 2), (256, 3))
    ]
    by_budget = compare(side(tmp_path, *first), side(tmp_path, *second))["points"]
    assert [(point["budget"], point["same_documents"]) for point in by_budget] == [(64, 1), (128, 0), (256, 0)]
    assert by_budget[1]["documents"] == {"a": 3, "b": 2}
    groups = pair_up(first, second, "documents")
    assert {key[3]: [(a.budget, b.budget) for a, b in pairs] for key, pairs in groups.items()} == {
        64: [(64, 64)],
        128: [(128, 256)],
    }


def test_what_is_not_the_same_is_refused(tmp_path):
    row = asked(sample, 0, "a")
    seed = {"world": {"--seed or --data": "seed 1", "retriever": "dense"}}
    with pytest.raises(ConfigError, match=r"world is not the same in both: --seed or --data is seed 0 .* seed 1"):
        compare(side(tmp_path, row), side(tmp_path, row, settings=seed))
    with pytest.raises(ConfigError, match="question q0 of world is not the same in both"):
        compare(side(tmp_path, row), side(tmp_path, dataclasses.replace(row, question="Who?")))
    with pytest.raises(ConfigError, match="no sample in common"):
        compare(side(tmp_path, row), side(tmp_path, dataclasses.replace(row, budget=128)))
    dense = {"world": SETTINGS["world"] | {"retriever": "dense"}}
    found = compare(side(tmp_path, row), side(tmp_path, row, settings=dense))
    assert found["settings"] == {"world": {"retriever": {"a": "bm25", "b": "dense"}}}


def test_a_ratio_of_medians_is_covered_by_its_interval():
    """Times of 0.1 s and more, twice as long at the second on average of their logarithms."""
    covered = 0
    for seed in range(200):
        rng = random.Random(seed)
        first = {f"q{number}": rng.lognormvariate(-2, 0.5) for number in range(60)}
        second = {name: value * 2 * rng.lognormvariate(0, 0.2) for name, value in first.items()}
        found = median_ratio(first, second, {name: name for name in first}, resamples=400, seed=seed)
        covered += found["low"] <= 2 <= found["high"]
    assert 180 <= covered <= 200


def test_medians_are_those_of_numpy():
    first = {f"q{number}": float(number + 1) for number in range(7)}
    second = {name: value**2 for name, value in first.items() if name != "q6"}
    found = median_ratio(first, second, {name: "one" for name in first})
    common = sorted(first.keys() & second.keys())
    expected = np.median([second[name] for name in common]) / np.median([first[name] for name in common])
    assert found == {"ratio": expected, "low": None, "high": None, "n_pairs": 6}
    assert median_ratio(first, {}, {})["ratio"] is None


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """Two models in one directory, and each in one of its own."""
    directory = tmp_path_factory.mktemp("compare")
    rows = sweep(num_questions=20)
    models = sorted({row.model for row in rows})
    for place, names in (("both", models), ("a", models[:1]), ("b", models[1:])):
        with Store(directory / place) as store:
            for name in names:
                store.check_run(name, "world", Fingerprint(SETTINGS["world"], {"kind": name}))
            for row in rows:
                if row.model in names:
                    store.put(row, [Document(each, "", "text") for each in row.doc_ids])
    return directory


def invoke(*arguments):
    done = CliRunner().invoke(app, ["eval", "compare", *map(str, arguments)], env={"COLUMNS": "160"})
    assert type(done.exception) in (type(None), SystemExit), done.exception
    return done


def test_two_directories_and_two_models_of_one_are_the_same(stores, tmp_path):
    apart = invoke(stores / "a", stores / "b", "--out", tmp_path / "apart")
    together = invoke(stores / "both", "--models", "embedded:mamba,embedded:transformer", "--out", tmp_path / "one")
    assert (apart.exit_code, together.exit_code) == (0, 0), apart.output + together.output
    found = [json.loads((tmp_path / place / "compare.json").read_text()) for place in ("apart", "one")]
    assert found[0]["points"] == found[1]["points"]
    assert len(found[0]["points"]) == 2 * 4
    assert (found[0]["a"]["model"], found[0]["b"]["model"]) == ("embedded:mamba", "embedded:transformer")
    assert "All pairs were asked with the same documents." in apart.output
    assert "world: kind is embedded:mamba in a, embedded:transformer in b" in apart.output
    assert "world, natural, must_answer" in apart.output
    with Store(stores / "a") as store:
        [first, *_] = store.rows()
    assert first.model == "embedded:mamba"


def test_other_documents_are_said(stores, tmp_path):
    with Store(stores / "b") as store:
        rows, settings = list(store.rows()), store.settings()["embedded:transformer", "world"]
    with Store(tmp_path) as store:
        store.check_run("other", "world", Fingerprint(settings, {}))
        for row in rows:
            store.put(dataclasses.replace(row, model="other", doc_ids=row.doc_ids[: len(row.doc_ids) // 2]))
    done = invoke(stores / "a", tmp_path, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert "in the worst point 0 % are" in done.output
    assert "--unit documents" in done.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("both",), "one directory needs two names"),
        (("both", "b"), "holds 2 models"),
        (("a", "missing"), "has no samples.sqlite"),
        (("a", "b", "--models", "embedded:mamba"), "'embedded:mamba' is not in"),
        (("both", "--models", "embedded:mamba,embedded:mamba"), "is compared with itself"),
    ],
)
def test_what_cannot_be_compared(stores, arguments, words):
    paths = [stores / name if not name.startswith(("--", "embedded")) else name for name in arguments]
    done = invoke(*paths)
    assert (done.exit_code, words in done.output.replace("\n", " ")) == (2, True), done.output
