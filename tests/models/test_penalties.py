"""Penalties: those of transformers and of OpenAI's formula, and each row for itself."""

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import RepetitionPenaltyLogitsProcessor

from models.penalties import Penalties, TokenCounts, penalize

VOCAB = 23
CPU = torch.device("cpu")

tokens = st.lists(st.integers(0, VOCAB - 1), max_size=30)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(tokens, tokens, tokens), min_size=1, max_size=6), st.randoms())
def test_counts_are_those_of_the_texts_however_they_came(texts, rng):
    counts = TokenCounts(VOCAB, CPU)
    slots: dict[int, int] = {}
    pending = {number: list(later) for number, (_, _, later) in enumerate(texts)}
    for number, (prompt, generated, _) in enumerate(texts):
        if rng.random() < 0.3:
            counts.end(counts.begin(generated, prompt))  # somebody was in the slot before
        slots[number] = counts.begin(prompt, generated)
    while any(pending.values()):
        chosen = [number for number in pending if pending[number] and rng.random() < 0.7]
        counts.add([slots[number] for number in chosen], [pending[number].pop(0) for number in chosen])
    generated, in_prompt = counts.of([slots[number] for number in range(len(texts))])
    for number, (prompt, before, later) in enumerate(texts):
        expected = Counter(before + later)
        assert generated[number].tolist() == [expected[token] for token in range(VOCAB)]
        assert in_prompt[number].tolist() == [token in prompt for token in range(VOCAB)]


@pytest.mark.parametrize("repetition", [0.5, 1.0, 1.3])
def test_the_repetition_penalty_is_transformers(repetition):
    torch.manual_seed(0)
    logits, prompt, generated = torch.randn(1, VOCAB), [3, 3, 7], [1, 7, 2, 2]
    counts = TokenCounts(VOCAB, CPU)
    found = penalize(logits, [Penalties(repetition=repetition)], *counts.of([counts.begin(prompt, generated)]))
    theirs = RepetitionPenaltyLogitsProcessor(repetition)(torch.tensor([prompt + generated]), logits.clone())
    assert torch.allclose(found, theirs)


def test_frequency_and_presence_are_openais():
    """Of generated tokens alone: mu - c * frequency - (c > 0) * presence."""
    logits = torch.linspace(-2, 2, VOCAB).unsqueeze(0)
    counts = TokenCounts(VOCAB, CPU)
    found = penalize(logits, [Penalties(0.5, -1.25)], *counts.of([counts.begin([4, 5], [5, 6, 6])]))
    expected = logits.clone()
    expected[0, 5] -= 0.5 - 1.25
    expected[0, 6] -= 2 * 0.5 - 1.25
    assert torch.allclose(found, expected)


def test_all_together_in_order():
    """The repetition penalty first, then what is taken away."""
    counts = TokenCounts(2, CPU)
    found = penalize(torch.tensor([[3.0, -3.0]]), [Penalties(0.5, 1.0, 2.0)], *counts.of([counts.begin([], [0, 0, 1])]))
    assert found.tolist() == [[3 / 2 - 2 * 0.5 - 1, -3 * 2 - 0.5 - 1]]


def test_a_row_is_the_same_in_any_company():
    torch.manual_seed(1)
    counts, logits = TokenCounts(VOCAB, CPU), torch.randn(5, VOCAB)
    penalties = [Penalties(0.3 * i, 0.2 * i, 1 + 0.1 * i) for i in range(5)]
    slots = [counts.begin([i, i + 1], [i + 2] * i) for i in range(5)]
    together = penalize(logits, penalties, *counts.of(slots))
    for row in range(5):
        assert torch.equal(
            penalize(logits[row : row + 1], penalties[row : row + 1], *counts.of(slots[row : row + 1])),
            together[row : row + 1],
        )
