"""Memory that is there before it is written to."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from models.populate import PAGE, Populating, Rows

MIB = 1 << 20


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def untouched(*shape: int) -> torch.Tensor:
    return torch.from_numpy(np.zeros(shape, np.uint8))


def named(rows: Rows, tensor: torch.Tensor) -> list[tuple[int, int]]:
    """First and last row of what is asked for next."""
    begin = tensor.data_ptr()
    return [((address - begin) // MIB, (address + size - begin) // MIB) for address, size in rows.pieces()]


@pytest.mark.skipif(sys.platform != "linux", reason="the system has no such call")
def test_what_comes_next_is_there_and_what_was_there_is_kept():
    blocks, states = untouched(100, MIB), untouched(100, MIB)
    blocks[0, 5], states[99, 5] = 7, 8
    before = resident_bytes()
    populating = Populating(Rows([blocks], from_end=False, ahead=30), Rows([states], from_end=True, ahead=1))
    assert populating.wait()
    # Large pages may make it somewhat more.
    assert 28 * MIB < resident_bytes() - before < 36 * MIB
    populating.reach(0, 40)
    populating.rest()
    populating.wait()
    assert 68 * MIB < resident_bytes() - before < 80 * MIB
    assert [int(blocks.sum()), int(states.sum())] == [7, 8]
    populating.close()


def test_rows_are_named_once_in_the_order_in_which_they_are_handed_out():
    tensor = untouched(40, MIB)
    first, last = Rows([tensor], from_end=False, ahead=5), Rows([tensor], from_end=True, ahead=5)
    shift = tensor.data_ptr() % PAGE / MIB
    assert named(first, tensor)[0][1] - shift <= 5
    assert named(last, tensor)[0][0] + shift >= 34
    assert not first.want(0)
    assert not named(first, tensor)
    assert first.want(3)
    assert named(first, tensor) == [(4 if shift else 5, 8)]
    assert last.want(39)
    assert [stop for _, stop in named(last, tensor)] == [35, 27, 19, 11, 3]


def test_no_more_than_half_is_asked_for_ahead():
    tensor = untouched(40, MIB)
    rows = Rows([tensor], from_end=False, ahead=1000)
    assert [stop for _, stop in named(rows, tensor)] == [8, 16, 20]
    assert rows.want(1000)
    assert named(rows, tensor)[-1][1] == 40


def test_the_whole_is_asked_for_where_that_is_wanted():
    tensor = untouched(40, MIB)
    rows = Rows([tensor], from_end=False, ahead=None)
    assert named(rows, tensor)[-1][1] == 40
    assert not rows.want(40)


def test_views_of_one_buffer_are_asked_for_once():
    buffer = untouched(10, MIB)
    rows = Rows([buffer[:, : MIB // 4], buffer[:, MIB // 4 :]], from_end=False, ahead=5)
    assert len(named(rows, buffer)) == 1


def test_it_can_be_ended_and_without_rows_there_is_nothing_to_do():
    populating = Populating(Rows([untouched(50, MIB)], from_end=True, ahead=9), Rows([], from_end=False, ahead=9))
    populating.reach(10**15, 7)
    populating.close()
    assert not populating._thread.is_alive()
    assert not populating.wait()
