"""The store: a row once put is there, and a directory keeps to one setting."""

import dataclasses
import sqlite3

import pytest

from evals.config import ConfigError
from evals.records import SampleRow
from evals.store import SampleKey, Store

ROW = SampleRow(
    model="m",
    kind="mamba",
    dataset="world",
    permission="must_answer",
    budget=128,
    question_id="q1",
    question_kind="fact",
    cluster="c",
    question="Who?",
    answers=("A", "B"),
    gold_ids=(),
    doc_ids=("d1", "d2"),
    gold_in_context=True,
    answer="A ü\n",
    finish_reason="stop",
    error=None,
    verdict="correct",
    first_line_verdict="correct",
    hallucination_kind=None,
    matched="A",
    prompt_tokens=10,
    document_tokens=8,
    cached_tokens=None,
    completion_tokens=2,
    sent_s=1.5,
    token_times_s=(1.625, 1.75),
    end_s=2.0,
    ttft_s=0.125,
    tpot_s=0.125,
    e2e_s=0.5,
    kv_bytes=0,
    state_bytes=64,
    peak_bytes=64,
)


def test_rows_come_back_as_they_were(tmp_path):
    with Store(tmp_path / "new" / "run") as store:
        store.put(ROW)
    with Store(tmp_path / "new" / "run") as store:
        assert list(store.rows()) == [ROW]
        assert store.done_keys() == {SampleKey("m", "world", "must_answer", 128, "q1")}


def test_a_failed_sample_is_not_done_and_is_replaced(tmp_path):
    with Store(tmp_path) as store:
        store.put(dataclasses.replace(ROW, error="status 500", verdict="unscored"))
        assert store.done_keys() == set()
        store.put(ROW)
        assert list(store.rows()) == [ROW]


def test_another_setting_is_refused_by_its_name(tmp_path):
    with Store(tmp_path) as store:
        store.check_run("m", "world", {"--max-tokens": "8", "dataset": "x"})
        store.check_run("other", "world", {"--max-tokens": "9", "dataset": "x"})
        store.check_run("m", "world", {"--max-tokens": "8", "dataset": "x"})
        with pytest.raises(ConfigError, match=r"--max-tokens was 8, now it is 16"):
            store.check_run("m", "world", {"--max-tokens": "16", "dataset": "x"})


def test_what_is_no_store_is_refused(tmp_path):
    (tmp_path / "samples.sqlite").write_text("not a database, but long enough to look like a file of some sort")
    with pytest.raises(ConfigError, match="is not a store of samples"):
        Store(tmp_path)


def test_another_format_is_refused(tmp_path):
    Store(tmp_path).__exit__()
    with sqlite3.connect(tmp_path / "samples.sqlite") as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(ConfigError, match="another version"):
        Store(tmp_path)
