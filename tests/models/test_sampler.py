"""Sampling: filters leave what they should, draws follow the probabilities, and company changes nothing."""

import pytest
import torch

from models import sampler
from models.sampler import SamplingRow, uniform


def row(*, temperature=1.0, top_p=1.0, top_k=0, min_p=0.0, seed=0, step=0):
    return SamplingRow(temperature, top_p, top_k, min_p, seed, step)


def sample(logits, rows):
    return sampler.sample(logits, rows).tolist()


LOGITS = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()


def drawn(count=4000, **filters):
    rows = [row(step=step, seed=17, **filters) for step in range(count)]
    tokens = sample(LOGITS.expand(count, -1), rows)
    return [tokens.count(token) / count for token in range(4)]


def test_zero_temperature_takes_the_likeliest():
    assert sample(torch.tensor([[0.0, 3.0, 1.0]]), [row(temperature=0.0)]) == [1]


def test_draws_follow_the_probabilities():
    assert drawn() == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=0.03)


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"top_k": 2}, [0.625, 0.375, 0, 0]),
        ({"top_p": 0.5}, [1, 0, 0, 0]),
        ({"top_p": 0.51}, [0.625, 0.375, 0, 0]),
        ({"min_p": 0.25}, [0.526, 0.316, 0.158, 0]),
        ({"top_k": 3, "top_p": 0.6}, [0.625, 0.375, 0, 0]),
        ({"temperature": 0.5}, [0.685, 0.247, 0.062, 0.007]),
    ],
)
def test_filters(filters, expected):
    assert drawn(**filters) == pytest.approx(expected, abs=0.03)


def test_a_row_does_not_depend_on_its_company():
    torch.manual_seed(0)
    logits = torch.randn(8, 50)
    rows = [row(temperature=0.7 + 0.1 * i, top_p=0.9, seed=i, step=3) for i in range(8)]
    together = sample(logits, rows)
    assert together == [sample(logits[i : i + 1], [rows[i]])[0] for i in range(8)]


def test_uniform_is_even_and_fixed():
    values = [uniform(5, step) for step in range(20_000)]
    assert all(0.0 <= value < 1.0 for value in values)
    assert sum(values) / len(values) == pytest.approx(0.5, abs=0.01)
    assert uniform(5, 3) != uniform(6, 3)


def test_row_counts_must_agree():
    with pytest.raises(ValueError, match="2 rows of logits for 1"):
        sample(torch.zeros(2, 4), [row()])


@pytest.mark.parametrize("temperature", [5e-324, 1e-308, 1e-200, 1e-12, 1e-5, 1e-4])
def test_a_temperature_near_zero_takes_the_likeliest(temperature):
    logits = torch.tensor([[-30.0, 55.0, 54.0, -torch.inf], [4.0, 1.0, 3.0, 2.0]])
    rows = [row(temperature=temperature, top_p=0.9, seed=seed) for seed in range(2)]
    assert sample(logits, rows) == [1, 0]


@pytest.mark.parametrize("temperature", [0.0, 5e-324, 1.0])
def test_logits_that_are_no_numbers_give_a_token_and_harm_no_other_row(temperature):
    nan, inf = torch.nan, torch.inf
    logits = torch.tensor([[nan] * 4, [nan, 60.0, nan, 0.0], [0.0, inf, -inf, nan], [-inf] * 4, [0.0, 1.0, 90.0, 2.0]])
    rows = [row(temperature=temperature, top_k=3, top_p=0.9, min_p=0.1, seed=1)] * 5
    tokens = sample(logits, rows)
    assert tokens == sample(logits, rows)
    assert all(0 <= token < 4 for token in tokens)
    assert [tokens[1], tokens[2], tokens[4]] == [1, 1, 2]


def test_a_moderate_temperature_still_draws():
    logits = torch.tensor([[1e-4, 0.0]]).expand(2000, -1)
    rows = [row(temperature=1e-4, seed=3, step=step) for step in range(2000)]
    assert sample(logits, rows).count(0) / 2000 == pytest.approx(0.731, abs=0.04)
