"""The training script on a toy: both rounds run, and what a checkpoint was made of stays on record."""

import json
import sys
from dataclasses import replace

import pytest

from scripts import train_embedded
from scripts.embedded_card import card
from scripts.embedded_recipes import RECIPES, Stage

STAGES = (Stage(1500, 128, 4, records_share=1.0), Stage(3000, 256, 4, (30, 60), focused_share=0.5))
SECOND = (Stage(3000, 256, 4, (30, 60), alike_share=1.0),)


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    """The transformer's recipe, so small that it learns nothing in a second."""
    recipe = RECIPES["transformer"]
    config = {**recipe.config, "hidden_size": 32, "num_hidden_layers": 1, "vocab_size": 600}
    toy = replace(
        recipe,
        config=config,
        vocab_size=600,
        stages=STAGES,
        second=SECOND,
        exam_lengths=(250,),
        exam_questions=2,
        log_seconds=0.0,
    )
    monkeypatch.setitem(RECIPES, "transformer", toy)


def train(monkeypatch, directory, *options):
    monkeypatch.setattr(sys, "argv", ["train_embedded", "transformer", "--out", str(directory), *options])
    train_embedded.main()
    return json.loads((directory / "training.json").read_text())


def test_one_command_runs_both_rounds(monkeypatch, tmp_path):
    record = train(monkeypatch, tmp_path / "whole")
    assert sorted({point["stage"] for point in record["curve"]}) == [0, 1, 2]
    tokens = [point["tokens"] for point in record["curve"]]
    assert tokens == sorted(tokens)
    assert tokens[-1] >= sum(stage.tokens for stage in (*STAGES, *SECOND))
    assert record["scores"]["guesses@0"] >= 0
    assert card(record).count("Options:") == 1


def test_the_second_round_keeps_the_record_of_the_first(monkeypatch, tmp_path):
    first = train(monkeypatch, tmp_path / "first", "--max-minutes", "0.02")
    second = train(monkeypatch, tmp_path / "second", "--continue-from", str(tmp_path / "first"))
    assert {point["stage"] for point in second["curve"]} == {0}
    assert second["run"]["before"]["curve"] == first["curve"]
    assert second["run"]["before"]["run"]["max_minutes"] == 0.02
    text = card(second)
    assert text.count("Options:") == 2
    assert "--max-minutes 0.02" in text
    assert "--continue-from DIR" in text
