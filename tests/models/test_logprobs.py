"""Log-probabilities: those of plain float64, ties by token id, each row for itself, and never all logits at once."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.logprobs import LEAST, SLICE_BYTES, row_logprobs, score_rows, slice_rows, slices

VOCAB = 40_000  # above the size from which torch divides a sum among threads


def equal(one, other) -> bool:
    names = ("tokens", "values", "ranks", "top_ids", "top_values")
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in names)


def row(logprobs, number: int):
    names = ("tokens", "values", "ranks", "top_ids", "top_values")
    return type(logprobs)(*(getattr(logprobs, name)[number : number + 1] for name in names))


def test_they_are_those_of_float64():
    torch.manual_seed(0)
    logits, tokens = 4 * torch.randn(5, VOCAB), torch.tensor([0, 7, VOCAB - 1, 3, 3])
    found, exact = row_logprobs(logits, tokens, 20), logits.double().log_softmax(-1)
    assert (found.values - exact.gather(-1, tokens[:, None])[:, 0]).abs().max() < 1e-5
    assert (found.top_values - exact.topk(20).values).abs().max() < 1e-5
    assert torch.equal(found.top_ids, exact.topk(20).indices)
    assert found.ranks.tolist() == [1 + int((exact[i] > exact[i, t]).sum()) for i, t in enumerate(tokens)]
    assert float(found.top_values[:, :1].max()) == float(row_logprobs(logits, logits.argmax(-1), 1).values.max())


@pytest.mark.parametrize("threads", [1, 2])
def test_a_row_is_the_same_in_any_company(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        torch.manual_seed(1)
        # Few different values: most are tied, also around the last place.
        logits = torch.cat((torch.randn(9, VOCAB), torch.randn(8, VOCAB).bfloat16().float()))
        tokens = torch.arange(17)
        together = row_logprobs(logits, tokens, 20)
        for number in range(17):
            alone = row_logprobs(logits[number : number + 1], tokens[number : number + 1], 20)
            assert equal(alone, row(together, number))
    finally:
        torch.set_num_threads(before)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-2, 2), min_size=1, max_size=12), st.integers(0, 12), st.data())
def test_of_equal_logits_the_lower_id_comes_first(values, num_top, data):
    token = data.draw(st.integers(0, len(values) - 1))
    found = row_logprobs(torch.tensor([values]).float(), torch.tensor([token]), num_top)
    order = sorted(range(len(values)), key=lambda each: (-values[each], each))
    assert found.top_ids.tolist() == [order[:num_top]]
    assert found.ranks.tolist() == [order.index(token) + 1]


def test_what_is_no_number_is_the_unlikeliest():
    nan, inf = torch.nan, torch.inf
    found = row_logprobs(torch.tensor([[nan, 1.0, -inf], [nan] * 3]), torch.tensor([0, 2]), 3)
    assert found.values[0] == LEAST
    assert found.top_ids[0].tolist() == [1, 0, 2]
    assert found.values[1] == pytest.approx(-(torch.tensor(3.0).log()).item())


def test_slices_end_at_their_multiples_wherever_a_chunk_begins():
    assert list(slices(5, 21, 8)) == [(5, 8), (8, 16), (16, 21)]
    assert list(slices(8, 8, 8)) == []
    assert [slice_rows(size) for size in (97, 151_936, 262_144, 10**6, 10**9)] == [64, 64, 64, 16, 1]
    assert all(slice_rows(size) * size * 4 <= SLICE_BYTES for size in (97, 151_936, 256_000, 10**6))


def test_a_long_prompt_never_has_all_its_logits_at_once():
    torch.manual_seed(2)
    weight, hidden, tokens = torch.randn(50, 8), torch.randn(100_000, 8), torch.randint(50, (100_000,))
    seen: list[int] = []

    def head(rows):
        seen.append(len(rows))
        return rows @ weight.T

    found = score_rows(head, hidden, tokens, first=10, num_top=2, size=64)
    assert max(seen) == 64
    assert sum(seen) == 100_000
    exact = (hidden @ weight.T).log_softmax(-1).gather(-1, tokens[:, None])[:, 0]
    assert (found.values - exact).abs().max() < 1e-5


def test_chunks_that_end_with_slices_change_no_bit():
    torch.manual_seed(3)
    weight, hidden, tokens = torch.randn(VOCAB, 16), torch.randn(200, 16), torch.randint(VOCAB, (200,))

    def scored(start, stop):
        return score_rows(
            lambda rows: rows @ weight.T, hidden[start:stop], tokens[start:stop], first=start, num_top=3, size=64
        )

    whole, parts = scored(0, 200), [scored(0, 64), scored(64, 192), scored(192, 200)]
    joined = type(whole)(*(torch.cat([getattr(p, n) for p in parts]) for n in whole.__dataclass_fields__))
    assert equal(whole, joined)
