"""Recorded answers: found, left out and told, and graded as if they had just been given."""

import asyncio
import json
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from fakes_endpoint import MODEL, Planted, serving
from typer.testing import CliRunner

from evals.config import ConfigError, RunConfig
from evals.datasets import load_dataset
from evals.output import write_outputs
from evals.records import CONDITIONS, PERMISSIONS
from evals.runner import run_eval, run_evals
from evals.scoring.calibration import EVOUNA, SYSTEMS, judged_answers
from evals.store import Store
from evals.summary import summarise, summary_table
from fathom import app

REAL_DATA = os.environ.get("FATHOM_DATA")
TIMES = ("sent_s", "token_times_s", "end_s", "ttft_s", "tpot_s", "e2e_s")
MEMORY = ("kv_bytes", "state_bytes", "peak_bytes")


def answer(prompt):
    """Right, wrong and silent, by the person that is asked for."""
    person = prompt.rpartition("does ")[2].partition(" live")[0]
    number = int(person.removeprefix("Person"))
    place = prompt.find(f"{person} lives in ")
    return ["I don't know.", prompt[place:].split()[3] if place >= 0 else "Atlantis", "Town99"][number % 3]


def rows_of(directory):
    with Store(directory) as store:
        return list(store.rows())


def written(file, lines):
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return f"replay:{file}"


def config_for(endpoint, out, **options):
    defaults = {"model": MODEL, "budgets": (0,), "num_questions": 12}
    return RunConfig(endpoint=endpoint, out=out, index_cache=None, **defaults | options)


def line(number=0, **fields):
    return {"question_id": f"q{number}", "answer": f"Town{number}"} | fields


async def test_a_run_that_is_replayed_has_the_same_verdicts(dataset, tmp_path):
    ways = {"conditions": CONDITIONS, "budgets": (0, 60, 200), "permissions": PERMISSIONS, "num_questions": 6}
    async with serving(Planted(answer=answer, tokenizes=False)) as url:
        await run_eval(config_for(url, tmp_path / "asked", **ways), dataset)
    told = await asyncio.to_thread(CliRunner().invoke, app, ["eval", "answers", str(tmp_path / "asked")])
    assert told.exit_code == 0
    file = tmp_path / "answers.jsonl"
    file.write_text(told.stdout, encoding="utf-8")
    result = await run_eval(config_for(f"replay:{file}", tmp_path / "again", **ways), dataset)
    asked, again = rows_of(tmp_path / "asked"), rows_of(tmp_path / "again")
    assert result.asked == len(asked) == len(again) > 100
    assert {row.verdict for row in again} == {"correct", "hallucinated", "abstained"}
    unmeasured = dict.fromkeys((*TIMES, *MEMORY)) | {"token_times_s": (), "attempts": 0}
    assert again == [replace(row, **unmeasured) for row in asked]
    # Nothing is left to do, and nothing was measured.
    assert (await run_eval(config_for(f"replay:{file}", tmp_path / "again", **ways), dataset)).asked == 0
    write_outputs(tmp_path / "again")
    summary = summarise(again)
    for series in summary["models"]:
        for point in series["points"]:
            assert all(point[name]["n"] == 0 for name in ("ttft_s", "tpot_s", "e2e_s"))
    cells = [list(table.columns[-3].cells) for table in summary_table(summary).renderables if hasattr(table, "columns")]
    assert cells
    assert {cell for column in cells for cell in column} == {"-"}


async def test_questions_are_found_by_id_or_by_text_and_the_rest_is_counted(dataset, tmp_path):
    said = []
    lines = [
        line(0),
        {"question": "  where does PERSON1 live? ", "answer": "Town1", "source": "not looked at"},
        line(2, question="Where does Person2 live?", answer="nowhere"),
        # The id of another question than the text: the text is what was asked.
        {"question_id": "q5", "question": "Where does Person3 live?", "answer": "Town3"},
        line(4, dataset="another one"),
        line(6, budget=128),
        line(7, finish_reason="length", prompt_tokens=9, completion_tokens=4, kind="mamba"),
    ]
    endpoint = written(tmp_path / "a.jsonl", lines)
    [result] = await run_evals([config_for(endpoint, tmp_path)], dataset, say=said.append)
    rows = {row.question_id: row for row in rows_of(tmp_path)}
    assert {name: row.verdict for name, row in rows.items()} == {
        "q0": "correct", "q1": "correct", "q2": "hallucinated", "q3": "correct", "q7": "correct",
    }  # fmt: skip
    assert (result.total, result.asked, result.unrecorded, result.left_out) == (12, 5, 7, 0)
    assert f"{MODEL}: 7 samples are left out: no answer to them is recorded" in said
    assert (rows["q7"].prompt_tokens, rows["q7"].completion_tokens, rows["q7"].finish_reason) == (9, 4, "length")
    assert (rows["q0"].prompt_tokens, rows["q0"].finish_reason, rows["q0"].kind) == (None, None, "unknown")


async def test_documents_are_packed_and_grading_uses_them(dataset, tmp_path):
    endpoint = written(tmp_path / "a.jsonl", [line(0, answer="Town12")])
    options = {"budgets": (1000,), "num_questions": 1}
    await run_eval(config_for(endpoint, tmp_path, **options), dataset)
    [row] = rows_of(tmp_path)
    assert row.gold_in_context
    assert row.document_tokens > 0
    assert (row.verdict, row.hallucination_kind) == ("hallucinated", "distractor")


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([line(0, question_id=None)], "line 1 needs `answer`, and `question_id` or `question`"),
        ([line(0), {"question_id": "q1"}], "line 2 needs `answer`"),
        ([line(0, answer=3)], "line 1: answer must be str, got 3"),
        ([line(0, budget=True)], "line 1: budget must be int"),
        ([line(0, prompt_tokens=3)], "prompt_tokens and completion_tokens go together"),
        ([[1]], "line 1 is no object"),
        ([line(0, model="x"), line(0, model="y")], "'planted' has no answers in .*; there are answers of x, y"),
        ([], "has no answers in .*a.jsonl; there are none at all"),
        ([line(0), line(0, answer="Town1")], r"lines 1, 2 answer one question \(q0\) otherwise"),
        (
            [line(77, question="Who?", budget=0)],
            r"no answer to any question: a line of it has \{'question_id': 'q77', 'question': 'Who\?', 'budget': 0\}, "
            r"and one looked for \{'question_id': 'q\d+', 'question': 'Where does .* live\?', 'dataset': 'people'",
        ),
    ],
)
async def test_files_that_cannot_be_replayed_say_why(dataset, tmp_path, lines, words):
    with pytest.raises(ConfigError, match=words):
        await run_eval(config_for(written(tmp_path / "a.jsonl", lines), tmp_path, concurrency=1), dataset)


async def test_the_file_must_be_there_and_be_json(dataset, tmp_path):
    with pytest.raises(ConfigError, match=r"--endpoint replay:.*nowhere cannot be read"):
        await run_eval(config_for(f"replay:{tmp_path}/nowhere", tmp_path), dataset)
    (tmp_path / "a").write_text("{}\n{")
    with pytest.raises(ConfigError, match="line 1 needs"):
        await run_eval(config_for(f"replay:{tmp_path}/a", tmp_path), dataset)
    (tmp_path / "a").write_text("\n{")
    with pytest.raises(ConfigError, match="line 2 is no JSON"):
        await run_eval(config_for(f"replay:{tmp_path}/a", tmp_path), dataset)


async def test_one_answer_is_not_taken_for_several(dataset, tmp_path):
    """A line that does not say at which budget it was given would else draw a flat curve."""
    endpoint = written(tmp_path / "a.jsonl", [line(0, budget=0), line(1)])
    for options, lacking in (
        ({"budgets": (0, 60)}, "line 2 has no condition and no budget: .* in 2 ways"),
        ({"budgets": (60, 200)}, "line 2 has no budget"),
        ({"permissions": PERMISSIONS}, "line 1 has no permission"),
        ({"budgets": (60,), "conditions": ("natural", "no-gold")}, "line 2 has no condition"),
    ):
        with pytest.raises(ConfigError, match=lacking):
            await run_eval(config_for(endpoint, tmp_path, **options), dataset)
    both = [config_for(endpoint, tmp_path, model=name) for name in ("a", "b")]
    with pytest.raises(ConfigError, match="a line without `model`, and answers of 2 are wanted"):
        await run_evals(both, dataset)


async def test_other_answers_are_another_run(dataset, tmp_path):
    file = tmp_path / "a.jsonl"
    await run_eval(config_for(written(file, [line(0)]), tmp_path), dataset)
    with pytest.raises(ConfigError, match="weights digest was recorded answers"):
        await run_eval(config_for(written(file, [line(0, answer="Town1")]), tmp_path), dataset)


def test_answers_of_no_run_are_an_error(tmp_path):
    done = CliRunner().invoke(app, ["eval", "answers", str(tmp_path)])
    assert done.exit_code == 2
    assert "it is not the --out of a run" in done.output


@pytest.mark.skipif(REAL_DATA is None, reason="FATHOM_DATA does not say where the real files are")
async def test_published_answers_get_the_verdicts_that_calibrate_counts(tmp_path):
    """Those of EVOUNA to some hundred questions, replayed as a run of two models."""
    entries = json.loads((Path(REAL_DATA) / EVOUNA).read_text(encoding="utf-8"))
    keys = ("gpt4", "fid")
    chosen = {
        f"e{number}": entry
        for number, entry in enumerate(entries)
        if not entry["improper"] and all(entry[f"judge_{key}"] is not None for key in keys)
    }
    chosen = dict(list(chosen.items())[:300])
    asked = [
        {
            "id": name,
            "question": entry["question"],
            "answers": [part for part in entry["golden_answer"].split("/") if part.strip()],
        }
        for name, entry in chosen.items()
    ]
    written(tmp_path / "questions.jsonl", asked)
    lines = [
        {"question_id": name, "answer": entry[f"answer_{key}"], "model": key}
        for name, entry in chosen.items()
        for key in keys
    ]
    endpoint = written(tmp_path / "answers.jsonl", lines)
    dataset = load_dataset("own", path=tmp_path, seed=0)
    out = tmp_path / "out"
    configs = [config_for(endpoint, out, model=key, num_questions=len(chosen)) for key in keys]
    results = await run_evals(configs, dataset)
    assert [(result.asked, result.failed, result.unrecorded) for result in results] == [(300, 0, 0)] * 2
    found = Counter(row.model for row in rows_of(out) if row.verdict == "correct")
    judged = [one for one in judged_answers(Path(REAL_DATA)) if one.question_id in chosen and one.called_right]
    assert found == {key: sum(one.system == SYSTEMS[key] for one in judged) for key in keys}
    assert all(100 < count < 270 for count in found.values())
