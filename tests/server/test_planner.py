"""The split of a byte budget, against figures worked out by hand and for any budget."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.cache.planner import (
    MAX_SNAPSHOTS,
    CachePlan,
    CacheTooSmallError,
    default_snapshot_every,
    describe,
    plan_cache,
)


def plan(**changes: int) -> CachePlan:
    options = {
        "bytes_per_token": 100,
        "bytes_per_sequence": 5_000,
        "block_size": 16,
        "cache_bytes": 1_000_000,
        "max_running": 64,
    }
    return plan_cache(**(options | changes))


def test_attention_only_has_a_slot_for_each_and_all_bytes_in_blocks():
    attention = plan(bytes_per_sequence=0)
    assert (attention.num_state_slots, attention.num_blocks) == (64, 625)
    assert attention.total_bytes == 1_000_000
    assert attention.max_tokens == 10_000


def test_state_only_has_no_blocks_and_no_bound_on_tokens():
    state = plan(bytes_per_token=0)
    assert (state.num_state_slots, state.num_blocks) == (200, 0)
    assert state.max_tokens is None
    assert state.num_blocks_for(1_000_000) == 0
    assert state.num_sequences(1_000_000) == 200
    assert plan(bytes_per_token=0, bytes_per_sequence=1).num_state_slots == 64 + MAX_SNAPSHOTS


def test_state_only_runs_fewer_where_not_all_fit():
    assert plan(bytes_per_token=0, cache_bytes=24_999).num_state_slots == 4


def test_hybrid_has_all_bytes_for_either():
    hybrid = plan()
    assert (hybrid.num_blocks, hybrid.num_state_slots) == ((1_000_000 - 5_000) // 1_600, (1_000_000 - 1_600) // 5_000)
    assert (hybrid.total_bytes, hybrid.arena_bytes) == (1_000_000, 1_000_000)
    assert hybrid.max_tokens == 621 * 16
    assert plan(bytes_per_token=1, bytes_per_sequence=1).num_state_slots == 64 + MAX_SNAPSHOTS


def test_what_alignment_takes_is_counted_and_told():
    hybrid = plan(row_bytes=(1_664, 5_056))
    assert hybrid.num_blocks == (1_000_000 - 5_056) // 1_664
    assert hybrid.bytes_for(17) == 2 * 1_664 + 5_056
    assert "(with 64 bytes per block and 56 per state to align them)" in describe(hybrid, 9_000, 64)
    assert "align" not in describe(plan(), 9_000, 64)
    assert plan(cache_bytes=1_000_063).arena_bytes == 1_000_000


@pytest.mark.parametrize(
    ("state_bytes", "every"), [(0, 64), (4 << 20, 64), ((4 << 20) + 1, 128), (15_700_000, 256), (1 << 40, 4096)]
)
def test_snapshots_are_as_far_apart_as_they_are_large(state_bytes, every):
    assert default_snapshot_every(state_bytes) == every


def test_blocks_are_counted_up():
    assert [plan().num_blocks_for(n) for n in (0, 1, 16, 17, 32, 33)] == [0, 1, 1, 2, 2, 3]


def test_num_sequences_is_bounded_by_bytes():
    assert plan().num_sequences(16) == 1_000_000 // (1_600 + 5_000)
    assert plan().num_sequences(1_600) == 1_000_000 // (160_000 + 5_000)
    assert plan().num_sequences(100_000) == 0
    assert plan(bytes_per_sequence=0).num_sequences(1_600) == 6


def test_too_small_names_the_flag_and_the_arithmetic():
    assert plan(cache_bytes=6_656).num_blocks == 1
    with pytest.raises(CacheTooSmallError) as raised:
        plan(cache_bytes=6_599)
    message = str(raised.value)
    assert message.startswith("--cache-gib 6.14")
    assert "6,599 bytes" in message
    assert "5,000 bytes of state" in message
    assert "1,600 bytes for a block of 16 tokens" in message
    assert "6,656 in all" in message


def test_the_description_is_a_table_of_what_fits():
    lines = describe(plan(bytes_per_sequence=0, cache_bytes=10_000_000), 100_000, 50).splitlines()
    assert lines == [
        "cache: 10,000,000 bytes = 6,250 blocks of 16 tokens",
        "cache: 100 bytes per token, 0 bytes per sequence",
        "cache:    tokens  bytes of one  fit at once  runs out first",
        "cache:     1,024       102,400           97  --max-running 50",
        "cache:     8,192       819,200           12  blocks",
        "cache:    32,768     3,276,800            3  blocks",
        "cache:   100,000    10,000,000            1  blocks",
        "cache: what does not run is kept for prompts that begin alike, as long as there is room",
    ]
    hybrid = describe(plan(), 9_000, 64)
    assert "cache: 1,000,000 bytes = 621 blocks of 16 tokens or 199 states, or any mixture\n" in hybrid
    assert "   1,024       107,400            9  bytes, 95% of them blocks\n" in hybrid
    state = describe(plan(bytes_per_token=0), 1_000, 300)
    assert "cache: 1,000,000 bytes = 200 states\n" in state
    assert "   1,000         5,000          200  states\n" in state


@pytest.mark.parametrize(
    ("max_context", "lengths"),
    [(32_768, ["1,024", "8,192", "32,768"]), (32_767, ["1,024", "8,192", "32,767"]), (500, ["500"])],
)
def test_the_description_tells_of_no_sequence_that_would_be_refused(max_context, lengths):
    room = plan(bytes_per_sequence=0, cache_bytes=10_000_000)
    assert [line.split()[1] for line in describe(room, max_context, 64).splitlines()[3:-1]] == lengths


def test_what_states_are_kept_in_is_told_where_there_are_any():
    assert "1,000 bytes per sequence in bfloat16\n" in describe(plan(bytes_per_sequence=1000), 9, 64, "bfloat16")
    assert "in bfloat16" not in describe(plan(bytes_per_sequence=0), 9, 64, "bfloat16")


@given(
    bytes_per_token=st.integers(0, 2_000),
    bytes_per_sequence=st.integers(0, 100_000),
    block_size=st.integers(1, 256),
    cache_bytes=st.integers(1, 10_000_000),
    max_running=st.integers(1, 300),
)
def test_any_budget_is_kept_and_serves_one_sequence_at_least(
    *, bytes_per_token, bytes_per_sequence, block_size, cache_bytes, max_running
):
    least = bytes_per_sequence + bytes_per_token * block_size
    shares = bool(bytes_per_token and bytes_per_sequence)
    try:
        made = plan_cache(
            bytes_per_token=bytes_per_token,
            bytes_per_sequence=bytes_per_sequence,
            block_size=block_size,
            cache_bytes=cache_bytes,
            max_running=max_running,
        )
    except CacheTooSmallError:
        assert cache_bytes < least + 64 * shares
        return
    assert cache_bytes >= least
    assert made.total_bytes <= cache_bytes
    assert 1 <= made.num_state_slots <= max_running + MAX_SNAPSHOTS
    assert (made.num_blocks >= 1) == (bytes_per_token > 0)
    assert not made.max_tokens or made.num_sequences(made.max_tokens) >= 1
    if shares:
        assert (made.num_blocks + 1) * made.block_row_bytes + made.slot_row_bytes > made.total_bytes
    else:
        one_more = dataclasses.replace(made, num_blocks=made.num_blocks + 1)
        assert not bytes_per_token or one_more.total_bytes > cache_bytes
