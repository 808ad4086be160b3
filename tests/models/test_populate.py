"""Memory that is there before it is written to."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from models.populate import Populating, memory_of

MIB = 1 << 20


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def untouched(num_bytes: int) -> torch.Tensor:
    return torch.from_numpy(np.zeros(num_bytes, np.uint8))


@pytest.mark.skipif(sys.platform != "linux", reason="the system has no such call")
def test_the_beginning_is_there_and_holds_what_it_held():
    tensors = [untouched(100 * MIB) for _ in range(2)]
    tensors[0][5], tensors[1][-5] = 7, 8
    before = resident_bytes()
    Populating((tensors[:1], 40 * MIB), (tensors[1:], 40 * MIB)).wait()
    # Large pages may make it somewhat more.
    assert 70 * MIB < resident_bytes() - before < 100 * MIB
    assert [int(tensor.sum()) for tensor in tensors] == [7, 8]


def test_it_can_be_ended_and_asks_for_no_more_than_there_is():
    tensors = [untouched(50 * MIB)]
    for num_bytes in (0, 10**15):
        populating = Populating((tensors, num_bytes))
        populating.close()
        assert not populating._thread.is_alive()


def test_views_of_one_buffer_are_asked_for_once():
    buffer = untouched(10 * MIB)
    (begin, size), *others = memory_of([buffer[:MIB], buffer[5 * MIB :]], 0.5)
    assert not others
    assert buffer.data_ptr() <= begin
    assert begin + size <= buffer.data_ptr() + 5 * MIB
    assert size > 4.9 * MIB
