"""Runs in parts, put together; runs repeated; stores as files for others."""

import asyncio
import csv
import dataclasses
import json
import sqlite3
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet
import pytest
from evals_rows import failed, sample, sweep, without_times
from fakes_endpoint import MODEL, Planted, serving
from typer.testing import CliRunner

from evals.client import ServedModel
from evals.config import ConfigError, RunConfig
from evals.export import export_table
from evals.fingerprint import COUNTING, OWN, Fingerprint, take_fingerprint
from evals.manifest import config_content, read_config
from evals.merge import merge_stores
from evals.records import Document, Draw, Judgement, SampleRow, Scrape
from evals.runner import plan, run_eval, run_evals
from evals.store import Store
from evals.summary import summarise
from fathom import app

ROOT = Path(__file__).resolve().parents[2]


def config_for(url, out, **options):
    defaults = {"model": MODEL, "budgets": (0, 20, 60), "num_questions": 12}
    return RunConfig(endpoint=url, out=out, **defaults | options)


async def test_shards_together_are_the_whole_run(dataset, tmp_path):
    options = {"conditions": ("natural", "gold+distractors")}
    async with serving(Planted(answer=str.upper)) as url:
        await run_eval(config_for(url, tmp_path / "whole", **options), dataset)
        for part in (1, 2, 3):
            result = await run_eval(config_for(url, tmp_path / str(part), shard=(part, 3), **options), dataset)
            assert result.total == 4 * 5
    numbers = [
        {asked.number for asked in plan(config_for(url, tmp_path, shard=(part, 3)), dataset)} for part in (1, 2, 3)
    ]
    assert numbers == [{0, 3, 6, 9}, {1, 4, 7, 10}, {2, 5, 8, 11}]
    merged = merge_stores(tmp_path / "merged", [tmp_path / str(part) for part in (1, 2, 3)])
    assert [one.added["samples"] for one in merged] == [20, 20, 20]
    with Store(tmp_path / "merged") as together, Store(tmp_path / "whole") as whole:
        assert figures(together) == figures(whole)
        assert together.documents("people") == whole.documents("people")
        assert together.settings() == whole.settings()
        assert len(together.manifests()[MODEL, "people"]["sessions"]) == 3
    # Once more changes nothing.
    assert [one.added["samples"] for one in merge_stores(tmp_path / "merged", [tmp_path / "1"])] == [0]


def figures(store):
    return without_times(summarise(list(store.rows()), notes=store.run_notes())["models"])


SHARED = {"--seed or --data": "seed 0", "prompts": "p", "--max-tokens": "8"}
OWN_SETTINGS = {"kind": "mamba", "--endpoint": "http://x", COUNTING: "served tokenizer"}


def make(directory, *rows, shared=SHARED, own=OWN_SETTINGS, model="m"):
    with Store(directory) as store:
        store.check_run(model, "world", Fingerprint(shared, own))
        for row in rows:
            store.put(row, [Document(name, "", "text") for name in row.doc_ids])
    return directory


def test_an_answer_takes_the_place_of_a_failure(tmp_path):
    lost = make(tmp_path / "a", failed(question_id="q1"), sample(question_id="q2"))
    found = make(tmp_path / "b", sample(question_id="q1"), failed(question_id="q2"))
    for number, order in enumerate(([lost, found], [found, lost])):
        merge_stores(tmp_path / f"out{number}", order)
        with Store(tmp_path / f"out{number}") as store:
            assert [row.error for row in store.rows()] == [None, None]


def test_two_answers_to_one_sample_are_refused_and_nothing_is_taken(tmp_path):
    first = make(tmp_path / "a", sample(question_id="q1"))
    other = make(tmp_path / "b", sample(question_id="q0"), sample(question_id="q1", answer="1986"))
    words = "its samples have another row for model m, .*question_id q1: answer differ"
    with pytest.raises(ConfigError, match=words):
        merge_stores(tmp_path / "out", [first, other])
    with Store(tmp_path / "out") as store:
        assert list(store.rows()) == []


def test_documents_of_one_name_that_differ_are_refused(tmp_path):
    first = make(tmp_path / "a", sample(question_id="q1", doc_ids=("d1",)))
    with Store(tmp_path / "b") as store:
        store.check_run("m", "world", Fingerprint(SHARED, OWN_SETTINGS))
        store.put(sample(question_id="q2", doc_ids=("d1",)), [Document("d1", "", "other")])
    with pytest.raises(ConfigError, match="its documents have another row for dataset world, id d1: text differ"):
        merge_stores(tmp_path / "out", [first, tmp_path / "b"])


def test_other_settings_are_refused_by_their_name(tmp_path):
    first = make(tmp_path / "a", sample(question_id="q1"))
    longer = make(tmp_path / "b", sample(question_id="q2"), shared=SHARED | {"--max-tokens": "16"})
    with pytest.raises(ConfigError, match="m on world was asked by another setting: --max-tokens is 16, elsewhere 8"):
        merge_stores(tmp_path / "out", [first, longer])
    elsewhere = make(tmp_path / "c", sample(question_id="q2"), own=OWN_SETTINGS | {"--endpoint": "http://y"})
    with pytest.raises(ConfigError, match="--endpoint is http://y, elsewhere http://x"):
        merge_stores(tmp_path / "out", [first, elsewhere])
    merge_stores(tmp_path / "out", [first, elsewhere], same_weights=True)
    # Another model may be served elsewhere, and by another kind, but not asked otherwise.
    other = {"own": OWN_SETTINGS | {"--endpoint": "http://z", "kind": "transformer"}, "model": "n"}
    merge_stores(tmp_path / "out", [make(tmp_path / "d", sample(model="n"), **other)])
    wrong = make(tmp_path / "e", sample(model="n"), shared=SHARED | {"prompts": "q"}, **other)
    with pytest.raises(ConfigError, match="prompts is q, elsewhere p"):
        merge_stores(tmp_path / "out2", [first, wrong])
    with Store(tmp_path / "out") as store:
        assert [(row.model, row.question_id) for row in store.rows()] == [("m", "q1"), ("m", "q2"), ("n", "q0")]


def test_what_a_server_may_differ_in_is_all_that_its_fingerprint_has(dataset, tmp_path):
    config = config_for("http://x", tmp_path)
    for served in (ServedModel("mamba", 9, None, None), ServedModel("mamba", 9, "digest", "bfloat16 on cuda")):
        assert take_fingerprint(config, dataset, served, retriever="r", counting="c").own.keys() <= OWN


KEY = {"model": "m", "dataset": "world", "condition": "natural", "permission": "must_answer", "budget": 0}
DRAW = Draw(
    **KEY, question_id="q1", draw=1, temperature=0.7, answer="A", finish_reason="stop", error=None,
    verdict="correct", completion_tokens=1, logprob=-0.5, logprob_tokens=1,
)  # fmt: skip


def test_draws_of_two_temperatures_are_not_put_together(tmp_path):
    for name, temperature in (("a", 0.7), ("b", 1.0)):
        make(tmp_path / name, sample(question_id=name))
        with Store(tmp_path / name) as store:
            store.put_draw(dataclasses.replace(DRAW, question_id=name, temperature=temperature))
    with pytest.raises(ConfigError, match=r"draws on world are of --temperature 0\.7 in one store and 1 in another"):
        merge_stores(tmp_path / "out", [tmp_path / "a", tmp_path / "b"])
    with Store(tmp_path / "out") as store:
        assert (list(store.rows()), list(store.draws())) == ([], [])


def test_readings_of_other_clocks_are_left_behind(tmp_path):
    make(tmp_path / "a", sample(question_id="q1"))
    with Store(tmp_path / "a") as store:
        store.put_scrapes([Scrape(model="m", dataset="world", at_s=1.0, name="kv_share", value=0.5)])
    merge_stores(tmp_path / "out", [tmp_path / "a"])
    with Store(tmp_path / "out") as store:
        assert (len(list(store.rows())), list(store.scrapes())) == (1, [])


def test_draws_judgements_and_tables_of_others_are_taken_over(tmp_path):
    key, draw = KEY, DRAW
    judgement = Judgement(**key, question_id="q1", grader="g", verdict="correct", score=1.0, detail="", error=None)
    make(tmp_path / "a", sample(question_id="q1"))
    with Store(tmp_path / "a") as store:
        store.put_draw(dataclasses.replace(draw, error="503", verdict="unscored"))
    make(tmp_path / "b", sample(question_id="q1"))
    with Store(tmp_path / "b") as store:
        store.put_draw(draw)
        store.put_judgement(judgement)
    with sqlite3.connect(tmp_path / "b" / "samples.sqlite") as database:
        database.execute("CREATE TABLE others (name, value, PRIMARY KEY (name))")
        database.execute("INSERT INTO others VALUES ('x', 1)")
    database.close()
    merge_stores(tmp_path / "out", [tmp_path / "a", tmp_path / "b"])
    with Store(tmp_path / "out") as store:
        assert (list(store.draws()), list(store.judgements())) == ([draw], [judgement])
    database = sqlite3.connect(tmp_path / "out" / "samples.sqlite")
    assert database.execute("SELECT * FROM others").fetchall() == [("x", 1)]
    database.close()


# How a run was told, and once more


def test_a_configuration_comes_back_as_it_was_without_its_key(tmp_path):
    config = config_for(
        "http://x", tmp_path, api_key="s3cret", shard=(2, 3), depth=0.5, conditions=("natural", "no-gold"),
        index_cache=tmp_path / "indexes",
    )  # fmt: skip
    content = json.loads(json.dumps(config_content(config)))
    assert "s3cret" not in json.dumps(content)
    assert read_config(content) == dataclasses.replace(config, api_key=None)
    with pytest.raises(ConfigError, match="does not know: colour, taste"):
        read_config(content | {"taste": 1, "colour": "red"})
    del content["cache"]
    assert read_config(content).cache == "warm"


@pytest.fixture
def own_data(tmp_path):
    """Questions and documents of one's own."""
    data = tmp_path / "towns"
    data.mkdir()
    questions = [
        {"question": f"Where does Person{i} live?", "answers": [f"Town{i}"], "gold": [f"d{i}"]} for i in range(6)
    ]
    documents = [{"id": f"d{i}", "title": "", "text": f"Person{i} lives in Town{i}."} for i in range(12)]
    (data / "questions.jsonl").write_text("\n".join(map(json.dumps, questions)))
    (data / "documents.jsonl").write_text("\n".join(map(json.dumps, documents)))
    return data


def invoke(*arguments):
    done = CliRunner().invoke(app, ["eval", *map(str, arguments)], env={"COLUMNS": "200"})
    assert type(done.exception) in (type(None), SystemExit), done.exception
    return done


async def test_a_run_is_repeated_from_what_its_store_says(own_data, tmp_path, monkeypatch):
    out, again = tmp_path / "run", tmp_path / "run-again"
    told = ["--dataset", "own", "--data", own_data, "--n", 6, "--model", MODEL, "--seed", 3, "--depth", 0.5]
    monkeypatch.setattr(sys, "argv", ["bin/fathom", "eval", "run", "--api-key=s3cret"])
    async with serving(planted := Planted()) as url:
        for budgets in ("0,10", "0,10,30"):
            done = await in_thread(
                invoke, "run", *told, "--endpoint", url, "--budgets", budgets, "--out", out, "--api-key", "s3cret"
            )
            assert done.exit_code == 0, done.output
        first = [body["messages"] for body in planted.asked]
        planted.asked.clear()
        done = await in_thread(invoke, "rerun", out)
        assert done.exit_code == 0, done.output
        assert sorted(map(str, first)) == sorted(str(body["messages"]) for body in planted.asked)
        assert "18 samples were answered then and now: 18 have the same verdict, 18 the same answer" in done.output
        with Store(out) as store:
            [manifest] = store.manifests().values()
        last = manifest["sessions"][-1]
        assert len(manifest["sessions"]) == 2
        assert "s3cret" not in json.dumps(manifest)
        assert last["command"] == ["fathom", "eval", "run", "--api-key=..."]
        assert last["dataset"]["option"] == "own"
        assert last["config"]["depth"] == 0.5
        assert last["made_by"]["packages"]["aiohttp"]
        assert last["started"] < last["finished"]
        with Store(again) as store:
            assert store.settings() == {(MODEL, "towns"): manifest_settings(out)}
        # Another server of the same model answers otherwise.
        planted.answer = lambda prompt: "Town" + prompt.rpartition("Person")[2].partition(" ")[0]
        done = await in_thread(invoke, "rerun", out, "--out", tmp_path / "third", "--endpoint", url)
        assert "18 samples were answered then and now: 0 have the same verdict, 0 the same answer" in done.output
        assert "hallucinated, now correct" in done.output
        planted.asked.clear()
        (own_data / "documents.jsonl").write_text(json.dumps({"id": "d0", "title": "", "text": "Another."}))
        refused = await in_thread(invoke, "rerun", out, "--out", tmp_path / "fourth")
        assert (refused.exit_code, planted.asked) == (2, [])
        assert "--data" in refused.output or "had the digest" in refused.output


def manifest_settings(out):
    with Store(out) as store:
        return store.settings()[MODEL, "towns"]


async def in_thread(function, *arguments):
    """The endpoint answers in this thread's loop."""
    return await asyncio.to_thread(function, *arguments)


async def test_another_retriever_or_prompt_is_no_repetition(dataset, tmp_path):
    async with serving(planted := Planted()) as url:
        config = config_for(url, tmp_path / "run")
        await run_eval(config, dataset)
        with Store(tmp_path / "run") as store:
            [earlier] = store.settings().values()
        planted.asked.clear()
        other = config_for(url, tmp_path / "other", retriever="random")
        with pytest.raises(ConfigError, match=r"be repeated as it was: retriever was bm25s .*, now it is random"):
            await run_evals([other], dataset, earlier=earlier)
        assert planted.asked == []
        # How the dataset was loaded, nobody said.
        refused = await in_thread(invoke, "rerun", tmp_path / "run")
        assert (refused.exit_code, "nothing was noted of how planted was asked on people" in refused.output) == (
            2,
            True,
        )


# For others


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    directory = tmp_path_factory.mktemp("exported")
    rows = [*sweep(num_questions=6), failed(model="z")]
    with Store(directory) as store:
        for model in sorted({row.model for row in rows}):
            store.check_run(model, "world", Fingerprint(SHARED, OWN_SETTINGS))
        for row in rows:
            store.put(row, [Document(name, "t", f"text of {name}\n") for name in row.doc_ids])
        return directory, list(store.rows())


def test_parquet_has_all_columns_with_their_types(exported, tmp_path):
    directory, rows = exported
    assert export_table(directory, tmp_path / "samples.parquet") == len(rows)
    table = pyarrow.parquet.read_table(tmp_path / "samples.parquet")
    assert table.column_names == [field.name for field in dataclasses.fields(SampleRow)]
    read = [
        SampleRow(**{name: tuple(value) if isinstance(value, list) else value for name, value in row.items()})
        for row in table.to_pylist()
    ]
    assert read == rows
    assert str(table.schema.field("doc_ids").type).startswith("list<")
    assert str(table.schema.field("logprob").type) == "double"
    documents = export_table(directory, tmp_path / "documents.parquet", "documents")
    assert documents == len({name for row in rows for name in row.doc_ids})


def test_csv_and_lines_of_json(exported, tmp_path):
    directory, rows = exported
    export_table(directory, tmp_path / "samples.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert lines == [json.loads(json.dumps(dataclasses.asdict(row))) for row in rows]
    export_table(directory, tmp_path / "samples.csv")
    with (tmp_path / "samples.csv").open(newline="") as content:
        cells = list(csv.DictReader(content))
    assert [row["question_id"] for row in cells] == [row.question_id for row in rows]
    assert [json.loads(row["doc_ids"]) for row in cells] == [list(row.doc_ids) for row in rows]
    assert cells[-1]["ttft_s"] == ""


@pytest.mark.parametrize(
    ("file", "table", "words"),
    [
        ("a.xlsx", "samples", "--to must end in one of .parquet, .csv, .jsonl"),
        ("a.csv", "answers", "--table must be one of samples, draws, judgements, documents"),
        ("missing/a.csv", "samples", "cannot be written"),
    ],
)
def test_exports_that_cannot_be(exported, tmp_path, file, table, words):
    with pytest.raises(ConfigError, match=words):
        export_table(exported[0], tmp_path / file, table)


def test_without_pyarrow_the_extra_is_named(exported, tmp_path):
    code = (
        "import sys; sys.modules['pyarrow'] = None\n"
        "from fathom import app\n"
        f"app(['eval', 'export', {str(exported[0])!r}, '--to', {str(tmp_path / 'a.parquet')!r}])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, "install fathom[parquet]" in done.stdout) == (2, True), done.stderr
