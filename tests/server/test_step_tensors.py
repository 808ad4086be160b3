"""The tensors of a step: the same as one would write down token by token, whatever was prepared before."""

import random

import pytest
import torch

from server.sequence import ScheduledBatch, ScheduledSequence, Sequence
from server.step_tensors import StepTensors
from tests.fakes import make_request

BLOCK = 4


def random_part(rng: random.Random, name: str, *, blocks: bool) -> ScheduledSequence:
    length = rng.randint(1, 60)
    token_ids = [rng.randrange(1000) for _ in range(length)]
    sequence = Sequence(make_request(name, token_ids, 5), 0, 0.0, token_ids)
    sequence.num_computed = rng.randrange(length)
    sequence.num_shared = rng.randint(0, length)
    sequence.block_table = [rng.randrange(500) for _ in range(-(-length // BLOCK))] if blocks else []
    sequence.state_slot = rng.randrange(50)
    size = rng.choice([1, rng.randint(1, length - sequence.num_computed), length - sequence.num_computed])
    return ScheduledSequence(sequence, size, sequence.num_computed + size == length)


def expected_slot(sequence: Sequence, position: int) -> int:
    if not sequence.block_table or position < sequence.num_shared:
        return -1
    return sequence.block_table[position // BLOCK] * BLOCK + position % BLOCK


@pytest.mark.parametrize("blocks", [True, False])
def test_rows_are_those_of_each_token(blocks):
    rng = random.Random(1)
    steps = StepTensors(torch.device("cpu"), BLOCK)
    for _ in range(200):
        parts = tuple(random_part(rng, f"r{i}", blocks=blocks) for i in range(rng.randint(1, 9)))
        forward = steps.fill(ScheduledBatch(parts))
        rows = [
            (part.sequence, p)
            for part in parts
            for p in range(part.sequence.num_computed, part.sequence.num_computed + part.num_tokens)
        ]
        assert forward.token_ids.tolist() == [sequence.token_ids[p] for sequence, p in rows]
        assert forward.positions.tolist() == [p for _, p in rows]
        assert forward.slot_mapping.tolist() == [expected_slot(sequence, p) for sequence, p in rows]
        assert forward.num_new.tolist() == [part.num_tokens for part in parts]
        assert forward.context_lens.tolist() == [part.sequence.num_computed for part in parts]
        assert forward.state_slots.tolist() == [part.sequence.state_slot for part in parts]
        last_rows = (forward.query_start[1:] - 1).tolist()
        assert forward.logit_rows.tolist() == [r for part, r in zip(parts, last_rows, strict=True) if part.samples]
        for row, part in zip(forward.block_tables.tolist(), parts, strict=True):
            table = part.sequence.block_table
            assert row == table + [-1] * (len(row) - len(table))


def test_a_step_stays_while_the_next_is_prepared():
    rng = random.Random(2)
    steps = StepTensors(torch.device("cpu"), BLOCK)
    first = steps.fill(ScheduledBatch((random_part(rng, "a", blocks=True),)))
    before = first.token_ids.tolist(), first.block_tables.tolist()
    steps.fill(ScheduledBatch(tuple(random_part(rng, f"b{i}", blocks=True) for i in range(5))))
    assert (first.token_ids.tolist(), first.block_tables.tolist()) == before


def test_a_table_grows_with_its_sequence():
    sequence = random_part(random.Random(3), "a", blocks=True).sequence
    assert sequence.as_table().tolist() == sequence.block_table
    sequence.block_table += [7, 8]
    assert sequence.as_table().tolist() == sequence.block_table
    # Given up and begun again, as long as before and elsewhere.
    sequence.table, sequence.block_table = None, sequence.block_table[::-1]
    assert sequence.as_table().tolist() == sequence.block_table
