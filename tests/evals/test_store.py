"""The store: a row once put is there, and a directory keeps to one setting."""

import dataclasses
import json
import sqlite3

import pytest

from evals.config import ConfigError
from evals.fingerprint import COUNTING, Fingerprint
from evals.records import Document, Draw, Judgement, RunNote, SampleRow
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
        assert store.done_keys() == {SampleKey("m", "world", "natural", "must_answer", 128, "q1")}


def test_a_failed_sample_is_not_done_and_is_replaced(tmp_path):
    with Store(tmp_path) as store:
        store.put(dataclasses.replace(ROW, error="status 500", verdict="unscored"))
        assert store.done_keys() == set()
        store.put(ROW)
        assert list(store.rows()) == [ROW]


SHARED = {"--seed or --data": "seed 0", "prompts": "p", "retriever": "r", "--max-tokens": "8"}
OWN = {"kind": "mamba", "--endpoint": "http://x", COUNTING: "served tokenizer"}
FINGERPRINT = Fingerprint(SHARED, OWN)


def holding(tmp_path, model="m"):
    """A store with one answer of a model."""
    store = Store(tmp_path)
    store.check_run(model, "world", FINGERPRINT)
    store.put(dataclasses.replace(ROW, model=model))
    return store


@pytest.mark.parametrize(
    ("own", "words"),
    [
        ({"--endpoint": "http://y"}, r"--endpoint was http://x, now it is http://y\. Use another"),
        ({"kind": "transformer"}, "kind was mamba, now it is transformer"),
        ({COUNTING: "estimate"}, "token counts was served tokenizer, now it is estimate"),
        ({"weights digest": "d"}, "weights digest was not given, now it is d"),
    ],
)
def test_another_server_for_a_model_is_refused_by_its_name(tmp_path, own, words):
    with holding(tmp_path) as store:
        store.check_run("m", "world", FINGERPRINT)
        with pytest.raises(ConfigError, match=rf"holds samples of m on world with another setting: .*{words}"):
            store.check_run("m", "world", Fingerprint(SHARED, OWN | own))
        store.check_run("another model", "world", Fingerprint(SHARED, OWN | own))


def test_what_is_no_longer_given_is_a_difference(tmp_path):
    with holding(tmp_path) as store:
        own = {name: value for name, value in OWN.items() if name != "--endpoint"}
        with pytest.raises(ConfigError, match=r"--endpoint was http://x, now it is not given"):
            store.check_run("m", "world", Fingerprint(SHARED, own))


@pytest.mark.parametrize("name", SHARED)
def test_models_that_were_asked_differently_are_not_put_together(tmp_path, name):
    changed = Fingerprint(SHARED | {name: "changed"}, OWN)
    with holding(tmp_path) as store:
        for model in ("m", "other"):
            with pytest.raises(ConfigError, match=rf"samples of m on world .*: {name} was .+, now it is changed\."):
                store.check_run(model, "world", changed)
        store.check_run("other", "another dataset", changed)


def test_a_run_of_nothing_but_failures_may_begin_anew(tmp_path):
    """A wrong --endpoint that was mended must not cost the directory."""
    mended = Fingerprint(SHARED | {"--max-tokens": "16"}, OWN | {"--endpoint": "http://y"})
    failed = dataclasses.replace(ROW, error="status 404", verdict="unscored")
    with Store(tmp_path) as store:
        store.check_run("m", "world", FINGERPRINT)
        store.put(failed)
        store.check_run("m", "world", FINGERPRINT)
        assert list(store.rows()) == [failed]
        store.check_run("other", "world", mended)
        store.check_run("m", "world", mended)
        assert list(store.rows()) == []
        store.put(ROW)
        with pytest.raises(ConfigError, match="--max-tokens was 16"):
            store.check_run("m", "world", FINGERPRINT)


def test_what_requests_did_without_is_kept(tmp_path):
    with holding(tmp_path) as store:
        for change in ("a", "b", "a"):
            store.note_change("m", "world", change)
    with Store(tmp_path) as store:
        store.check_run("m", "world", FINGERPRINT)
        assert store.run_notes() == {("m", "world"): RunNote("served tokenizer", ("a", "b"))}


SINCE_FORMAT_4 = {"lost", "expected_tokens", "logprob", "logprob_tokens", "energy_j"}


def make_old(tmp_path):
    """A store as format 1 had it."""
    holding(tmp_path).__exit__()
    database = sqlite3.connect(tmp_path / "samples.sqlite")
    with database:
        database.execute("DROP TABLE runs")
        database.execute("CREATE TABLE runs (model, dataset, fingerprint, PRIMARY KEY (model, dataset))")
        old = {"dataset": "d", "prompts": "p", "retriever": "r", "--max-tokens": "8", COUNTING: "served tokenizer"}
        database.execute("INSERT INTO runs VALUES (?, ?, ?)", ("m", "world", json.dumps(old)))
        _take_conditions_away(database)
        database.execute("PRAGMA user_version = 1")
    database.close()


def _take_conditions_away(database):
    """The table of samples as formats 1 and 2 had it."""
    new = {"condition", "depth", "num_leaks", "num_duplicates", "planted", *SINCE_FORMAT_4}
    columns = [row[1] for row in database.execute("PRAGMA table_info(samples)") if row[1] not in new]
    names = ", ".join(columns)
    database.execute(f"CREATE TABLE old ({names}, PRIMARY KEY (model, dataset, permission, budget, question_id))")
    database.execute(f"INSERT INTO old SELECT {names} FROM samples")
    database.execute("DROP TABLE samples")
    database.execute("ALTER TABLE old RENAME TO samples")


def test_samples_from_before_there_were_conditions_get_theirs(tmp_path):
    closed = dataclasses.replace(ROW, budget=0, doc_ids=(), gold_in_context=False)
    with holding(tmp_path) as store:
        store.put(closed)
    database = sqlite3.connect(tmp_path / "samples.sqlite")
    with database:
        _take_conditions_away(database)
        database.execute("PRAGMA user_version = 2")
    database.close()
    for _ in range(2):
        with Store(tmp_path) as store:
            assert list(store.rows()) == [dataclasses.replace(closed, condition="closed"), ROW]
            store.check_run("m", "world", FINGERPRINT)


def test_samples_of_format_3_are_told_why_they_have_no_verdict(tmp_path):
    unscored = dataclasses.replace(ROW, verdict="unscored")
    reasons = {
        "failed": dataclasses.replace(unscored, question_id="a", error="status 500", answer=""),
        "truncated": dataclasses.replace(unscored, question_id="b", error="the server cut the prompt: it counts 3"),
        "empty": dataclasses.replace(unscored, question_id="c", answer=" \n"),
        "ungraded": dataclasses.replace(unscored, question_id="d", answer="a long one"),
        None: dataclasses.replace(ROW, question_id="e"),
    }
    with holding(tmp_path) as store:
        for row in reasons.values():
            store.put(row)
    with sqlite3.connect(tmp_path / "samples.sqlite") as database:
        for column in SINCE_FORMAT_4:
            database.execute(f"ALTER TABLE samples DROP COLUMN {column}")
        database.executescript("DROP TABLE documents; DROP TABLE draws; DROP TABLE judgements")
        database.execute("ALTER TABLE runs DROP COLUMN manifest")
        database.execute("PRAGMA user_version = 3")
    database.close()
    with Store(tmp_path) as store:
        assert list(store.rows())[:5] == [dataclasses.replace(row, lost=lost) for lost, row in reasons.items()]
        assert (list(store.draws()), store.documents("world"), store.manifests()) == ([], {}, {})


def test_documents_draws_judgements_and_manifest_come_back(tmp_path):
    place = dict.fromkeys(("model", "dataset"), "m") | {"condition": "natural", "permission": "must_answer"}
    draws = [
        Draw(
            **place,
            budget=128,
            question_id="q1",
            draw=number,
            temperature=0.7,
            answer="A",
            finish_reason="stop",
            error=None,
            verdict="correct",
            completion_tokens=2,
            logprob=-0.5,
            logprob_tokens=2,
        )
        for number in (1, 2)
    ]
    judgement = Judgement(
        **place,
        budget=128,
        question_id="q1",
        grader="judge",
        verdict="correct",
        score=1.0,
        detail="A",
        error=None,
    )
    documents = {name: Document(name, "a title", "a text") for name in ("d1", "d2")}
    with holding(tmp_path) as store:
        store.put(ROW, documents.values())
        store.put(ROW, documents.values())
        for draw in draws[::-1]:
            store.put_draw(draw)
        store.put_judgement(dataclasses.replace(judgement, verdict="unscored", error="timeout"))
        store.put_judgement(judgement)
        store.note_manifest("m", "world", {"seed": 3})
    with Store(tmp_path) as store:
        assert store.documents("world") == documents
        assert (list(store.draws()), list(store.judgements())) == (draws, [judgement])
        assert store.manifests() == {("m", "world"): {"seed": 3}}


def test_an_old_store_is_read_but_not_added_to(tmp_path):
    make_old(tmp_path)
    with Store(tmp_path) as store:
        assert list(store.rows()) == [ROW]
        assert store.run_notes() == {("m", "world"): RunNote("served tokenizer")}
        for model in ("m", "other"):
            with pytest.raises(ConfigError, match=r"samples of m on world by an earlier version of Fathom"):
                store.check_run(model, "world", FINGERPRINT)
        store.check_run("m", "another dataset", FINGERPRINT)
    with Store(tmp_path) as store:
        assert len(store.run_notes()) == 2


@pytest.mark.parametrize("name", ["README.md", "README.md/runs", "taken"])
def test_a_directory_that_cannot_be_is_named(tmp_path, name):
    (tmp_path / "README.md").write_text("dear")
    (tmp_path / "taken" / "samples.sqlite").mkdir(parents=True)
    with pytest.raises(ConfigError, match=rf"--out:? {tmp_path / name}.* cannot be written"):
        Store(tmp_path / name)


@pytest.mark.parametrize(
    "use",
    [
        lambda store: store.put(ROW),
        lambda store: store.done_keys(),
        lambda store: list(store.rows()),
        lambda store: store.check_run("m", "world", FINGERPRINT),
        lambda store: store.run_notes(),
    ],
)
def test_a_store_that_is_taken_away_is_named(tmp_path, use):
    with Store(tmp_path) as store:
        database = sqlite3.connect(tmp_path / "samples.sqlite")
        database.executescript("DROP TABLE samples; DROP TABLE runs")
        database.close()
        with pytest.raises(ConfigError, match=rf"--out: {tmp_path / 'samples.sqlite'}: no such table"):
            use(store)


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


def test_what_was_noted_before_log_probabilities_could_be_asked_for_had_none(tmp_path):
    with holding(tmp_path) as store:
        store.check_run("m", "world", Fingerprint(SHARED | {"--logprobs": "off"}, OWN))
        with pytest.raises(ConfigError, match="--logprobs was off, now it is on"):
            store.check_run("m", "world", Fingerprint(SHARED | {"--logprobs": "on"}, OWN))
