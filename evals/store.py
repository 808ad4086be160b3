"""The only memory of a run: one SQLite file, one row per sample, written the moment the sample is there.

Beside the samples: the documents that they were asked with, further answers drawn to the same prompts, what other
graders say, and of each run what decides its samples. Whoever has the file needs no dataset to read it.
"""

import contextlib
import json
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Self

from evals.config import ConfigError
from evals.fingerprint import COUNTING, ONCE, Fingerprint
from evals.keys import SampleKey
from evals.manifest import adapted_concurrency
from evals.records import Document, Draw, Judgement, RunNote, SampleRow, Scrape
from evals.tables import RecordTable, add_columns

FILE_NAME = "samples.sqlite"
# 2 has the runs' changes, and fingerprints that say which server answered; 3 has conditions; 4 has documents, draws,
# judgements and manifests.
VERSION = 4
_KEY = SampleKey._fields


# Before version 4 nobody said why a sample has no verdict.
_NAME_LOST = """
    UPDATE samples SET lost = CASE
        WHEN error LIKE 'the server cut%' THEN 'truncated'
        WHEN error IS NOT NULL THEN 'failed'
        WHEN trim(answer, char(9, 10, 13, 32)) = '' THEN 'empty'
        ELSE 'ungraded' END
    WHERE verdict = 'unscored'
"""


class Store:
    """Owns the file. A row is safe once `put` returns, whatever happens to the process afterwards."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / FILE_NAME
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(self.path)
        except (OSError, sqlite3.Error) as error:
            raise ConfigError(f"--out {directory} cannot be written: {error}") from error
        self._samples = RecordTable(self._database, "samples", SampleRow, _KEY)
        self._draws = RecordTable(self._database, "draws", Draw, (*_KEY, "draw"))
        self._judgements = RecordTable(self._database, "judgements", Judgement, (*_KEY, "grader"))
        self._scrapes = RecordTable(self._database, "scrapes", Scrape, ("model", "dataset", "at_s", "name"))
        self._kept_documents: set[tuple[str, str]] = set()  # those that this process knows to be there
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(self._database.close)
            self._prepare()
            on_failure.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    def _prepare(self) -> None:
        try:
            self._database.execute("PRAGMA journal_mode = WAL")
            # What is committed survives the process, however it ends; only a machine that loses its power may lose the
            # last rows. To wait for the disk at each row takes longer than many an answer.
            self._database.execute("PRAGMA synchronous = NORMAL")
            with self._database:
                # In one transaction: a process that dies half way leaves the old format, whole.
                self._database.execute("BEGIN IMMEDIATE")
                self._create_tables()
        except sqlite3.OperationalError as error:
            raise ConfigError(f"--out: {self.path} cannot be written: {error}") from error
        except sqlite3.DatabaseError as error:
            raise ConfigError(f"--out: {self.path} is not a store of samples: {error}") from error

    def _create_tables(self) -> None:
        [version] = self._database.execute("PRAGMA user_version").fetchone()
        if version not in range(VERSION + 1):
            raise ConfigError(f"--out: {self.path} was written by another version of Fathom (format {version})")
        if version in (1, 2):
            self._database.execute("ALTER TABLE samples RENAME TO old_samples")
        for table in (self._samples, self._draws, self._judgements, self._scrapes):
            table.create()
        self._database.execute(
            "CREATE TABLE IF NOT EXISTS runs (model, dataset, fingerprint, PRIMARY KEY (model, dataset))"
        )
        add_columns(self._database, "runs", {"changes": " NOT NULL DEFAULT '[]'", "manifest": ""})
        self._database.execute(
            "CREATE TABLE IF NOT EXISTS documents (dataset, id, title, text, PRIMARY KEY (dataset, id))"
        )
        if version in (1, 2):
            self._take_over_samples()
        if version in (1, 2, 3):
            self._database.execute(_NAME_LOST)
        self._database.execute(f"PRAGMA user_version = {VERSION}")

    def _take_over_samples(self) -> None:
        """Before version 3 all documents were retrieved ones, and a budget of 0 had none."""
        known = [row[1] for row in self._database.execute("PRAGMA table_info(old_samples)")]
        new = {
            "condition": "CASE budget WHEN 0 THEN 'closed' ELSE 'natural' END",
            "num_leaks": "0",
            "num_duplicates": "0",
        }
        names, values = ", ".join([*known, *new]), ", ".join([*known, *new.values()])
        self._database.execute(f"INSERT INTO samples ({names}) SELECT {values} FROM old_samples")
        self._database.execute("DROP TABLE old_samples")

    @contextlib.contextmanager
    def _naming_the_option(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise ConfigError(f"--out: {self.path}: {error}") from error

    def check_run(self, model: str, dataset: str, fingerprint: Fingerprint) -> None:
        """Take note of what decides the samples of a run, or compare it with the notes that are there.

        Raises:
            ConfigError: the store holds answers on this dataset that were asked for otherwise.
        """
        with self._naming_the_option(), self._database:
            rows = self._database.execute("SELECT model, fingerprint FROM runs WHERE dataset = ?", (dataset,))
            noted: dict[str, dict[str, str]] = {name: json.loads(text) for name, text in rows}
            answered = [name for name in noted if self._holds_answers(name, dataset)]
            # The model's own run first: of its settings more can differ.
            for name in sorted(answered, key=lambda name: name != model):
                self._compare(f"{name} on {dataset}", noted[name], fingerprint, same_model=name == model)
            if model in answered or noted.get(model) == fingerprint.whole:
                return
            # Nothing but failures: a run by other settings begins anew.
            for table in (self._samples, self._draws, self._judgements, self._scrapes):
                self._database.execute(f"DELETE FROM {table.name} WHERE model = ? AND dataset = ?", (model, dataset))
            self._database.execute(
                "INSERT OR REPLACE INTO runs (model, dataset, fingerprint) VALUES (?, ?, ?)",
                (model, dataset, json.dumps(fingerprint.whole)),
            )

    def _holds_answers(self, model: str, dataset: str) -> bool:
        query = "SELECT EXISTS (SELECT 1 FROM samples WHERE model = ? AND dataset = ? AND error IS NULL)"
        return bool(self._database.execute(query, (model, dataset)).fetchone()[0])

    def _compare(self, whose: str, noted: dict[str, str], fingerprint: Fingerprint, *, same_model: bool) -> None:
        holds = f"--out {self.path.parent} holds samples of {whose}"
        noted = {name: ONCE[name] for name in fingerprint.shared if name in ONCE} | noted
        if not noted.keys() >= fingerprint.shared.keys():
            raise ConfigError(
                f"{holds} by an earlier version of Fathom, which did not note which server answered: "
                "they can be reported, but not added to. Use another directory."
            )
        now = fingerprint.whole if same_model else dict(fingerprint.shared)
        differences = [
            f"{name} was {noted.get(name, 'not given')}, now it is {now.get(name, 'not given')}"
            for name in ({**now, **noted} if same_model else now)
            if noted.get(name) != now.get(name)
        ]
        if differences:
            raise ConfigError(f"{holds} with another setting: {'; '.join(differences)}. Use another directory.")

    def note_change(self, model: str, dataset: str, change: str) -> None:
        """Keep what the requests of a run were found to do without."""
        known = self.run_notes()[model, dataset].request_changes
        if change not in known:
            query = "UPDATE runs SET changes = ? WHERE model = ? AND dataset = ?"
            with self._naming_the_option(), self._database:
                self._database.execute(query, (json.dumps([*known, change]), model, dataset))

    def run_notes(self) -> dict[tuple[str, str], RunNote]:
        """By model and dataset."""
        with self._naming_the_option():
            rows = self._database.execute("SELECT model, dataset, fingerprint, changes, manifest FROM runs").fetchall()
        notes = {}
        for model, dataset, fingerprint, changes, manifest in rows:
            settings = json.loads(fingerprint)
            notes[model, dataset] = RunNote(
                counting=settings.get(COUNTING),
                request_changes=tuple(json.loads(changes)),
                cache=settings.get("--cache"),
                adapted_concurrency=adapted_concurrency(json.loads(manifest or "{}")),
            )
        return notes

    def settings(self) -> dict[tuple[str, str], dict[str, str]]:
        """What decided the samples, by model and dataset: the fingerprints that were noted."""
        with self._naming_the_option():
            rows = self._database.execute("SELECT model, dataset, fingerprint FROM runs ORDER BY dataset, model")
            return {(model, dataset): json.loads(text) for model, dataset, text in rows}

    def note_manifest(self, model: str, dataset: str, manifest: dict[str, Any]) -> None:
        """Keep what a run was told and by what it was made, beside the fingerprint that decides its samples."""
        query = "UPDATE runs SET manifest = ? WHERE model = ? AND dataset = ?"
        with self._naming_the_option(), self._database:
            self._database.execute(query, (json.dumps(manifest), model, dataset))

    def manifests(self) -> dict[tuple[str, str], dict[str, Any]]:
        """By model and dataset; of runs that have one."""
        with self._naming_the_option():
            rows = self._database.execute("SELECT model, dataset, manifest FROM runs WHERE manifest IS NOT NULL")
            return {(model, dataset): json.loads(text) for model, dataset, text in rows}

    def put(self, row: SampleRow, documents: Iterable[Document] = ()) -> None:
        """Keep a sample, in place of one of the same key, and the documents that it was asked with.

        Raises:
            ConfigError: the file cannot be written: the disk is full, or somebody took it away.
        """
        # Most are there from other budgets and questions.
        new = [document for document in documents if (row.dataset, document.id) not in self._kept_documents]
        with self._naming_the_option(), self._database:
            self._samples.put(row)
            self._database.executemany(
                "INSERT OR IGNORE INTO documents VALUES (?, ?, ?, ?)",
                [(row.dataset, document.id, document.title, document.text) for document in new],
            )
        self._kept_documents.update((row.dataset, document.id) for document in new)

    def put_draw(self, draw: Draw) -> None:
        with self._naming_the_option(), self._database:
            self._draws.put(draw)

    def put_judgement(self, judgement: Judgement) -> None:
        with self._naming_the_option(), self._database:
            self._judgements.put(judgement)

    def put_scrapes(self, scrapes: Iterable[Scrape]) -> None:
        with self._naming_the_option(), self._database:
            for scrape in scrapes:
                self._scrapes.put(scrape)

    def done_keys(self) -> set[SampleKey]:
        """Samples that need not be asked again; those that failed are not among them."""
        with self._naming_the_option():
            return {SampleKey(*key) for key in self._samples.keys(where="error IS NULL")}

    def rows(self) -> Iterator[SampleRow]:
        """All samples, in the order of their keys."""
        with self._naming_the_option():
            yield from self._samples.rows()

    def draws(self) -> Iterator[Draw]:
        """In the order of their keys."""
        with self._naming_the_option():
            yield from self._draws.rows()

    def judgements(self) -> Iterator[Judgement]:
        """In the order of their keys."""
        with self._naming_the_option():
            yield from self._judgements.rows()

    def scrapes(self) -> Iterator[Scrape]:
        """By model and dataset, in the order of their times."""
        with self._naming_the_option():
            yield from self._scrapes.rows()

    def documents(self, dataset: str) -> dict[str, Document]:
        """Those that samples of the dataset were asked with, by their ids; none of stores of before format 4."""
        query = "SELECT id, title, text FROM documents WHERE dataset = ?"
        with self._naming_the_option():
            return {row[0]: Document(*row) for row in self._database.execute(query, (dataset,))}
