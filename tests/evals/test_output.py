"""What is written beside the store: what it keeps of an earlier summary, and what happens where it cannot be."""

import json

import pytest
from evals_rows import sample

from evals.config import ConfigError
from evals.fingerprint import COUNTING, Fingerprint
from evals.output import write_outputs
from evals.records import ESTIMATED
from evals.store import Store

LOADS = [{"schema": "fathom.load/1", "model": name} for name in ("a", "b")]


@pytest.fixture
def directory(tmp_path):
    with Store(tmp_path) as store:
        store.check_run("m", "world", Fingerprint({"prompts": "x"}, {COUNTING: ESTIMATED}))
        store.note_change("m", "world", "temperature left out")
        store.put(sample())
    return tmp_path


def test_load_tests_stay_until_there_are_new_ones(directory):
    write_outputs(directory, LOADS)
    summary, report = write_outputs(directory)
    assert summary["load"] == json.loads((directory / "summary.json").read_text())["load"] == LOADS
    assert "Under load" in report.read_text()
    assert write_outputs(directory, LOADS[:1])[0]["load"] == LOADS[:1]


@pytest.mark.parametrize("text", ["{", "[]", '{"load": 3}', '{"load": ["x"]}', '{"load": null}'])
def test_a_summary_that_cannot_be_read_is_replaced(directory, text):
    (directory / "summary.json").write_text(text)
    assert write_outputs(directory)[0]["load"] == []
    assert json.loads((directory / "summary.json").read_text())["schema"] == "fathom.summary/1"


def test_how_it_was_counted_and_asked_is_in_the_summary(directory):
    [series] = write_outputs(directory)[0]["models"]
    assert (series["counting"], series["request_changes"]) == (ESTIMATED, ["temperature left out"])


@pytest.mark.parametrize("name", [".summary.json.tmp", ".report.html.tmp"])
def test_what_cannot_be_written_names_the_option(directory, name):
    (directory / name).mkdir()
    with pytest.raises(ConfigError, match=rf"--out {directory} cannot be written: .*{name}"):
        write_outputs(directory)
