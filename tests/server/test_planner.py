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
        "snapshot_every": 160,
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


def test_hybrid_gives_each_its_state_and_divides_the_rest_among_blocks_and_snapshots():
    hybrid = plan()
    # 680,000 bytes are left but for one block: 32 times 160 tokens and a snapshot, 21,000 bytes each.
    assert (hybrid.num_state_slots, hybrid.num_blocks) == (64 + 32, 325)
    assert hybrid.total_bytes == 96 * 5_000 + 325 * 1_600
    assert 32 * 10 <= hybrid.num_blocks < 33 * 10


@pytest.mark.parametrize(
    ("state_bytes", "every"), [(0, 64), (4 << 20, 64), ((4 << 20) + 1, 128), (15_700_000, 256), (1 << 40, 4096)]
)
def test_snapshots_are_as_far_apart_as_they_are_large(state_bytes, every):
    assert default_snapshot_every(state_bytes) == every


def test_hybrid_states_take_at_most_half():
    hybrid = plan(bytes_per_sequence=50_000)
    assert (hybrid.num_state_slots, hybrid.num_blocks) == (10 + 7, 93)


def test_hybrid_keeps_one_block_where_a_block_is_most_of_the_budget():
    hybrid = plan(bytes_per_token=5, bytes_per_sequence=1, cache_bytes=100)
    assert (hybrid.num_state_slots, hybrid.num_blocks) == (20, 1)


def test_blocks_are_counted_up():
    assert [plan().num_blocks_for(n) for n in (0, 1, 16, 17, 32, 33)] == [0, 1, 1, 2, 2, 3]


def test_num_sequences_is_bounded_by_blocks_or_slots():
    assert plan().num_sequences(16) == 96
    assert plan().num_sequences(1_600) == 3
    assert plan().num_sequences(100_000) == 0


def test_too_small_names_the_flag_and_the_arithmetic():
    assert plan(cache_bytes=6_600).num_blocks == 1
    with pytest.raises(CacheTooSmallError) as raised:
        plan(cache_bytes=6_599)
    message = str(raised.value)
    assert message.startswith("--cache-gib 6.14")
    assert "6,599 bytes" in message
    assert "5,000 bytes of state" in message
    assert "1,600 bytes for a block of 16 tokens" in message
    assert "6,600 in all" in message


def test_the_description_says_what_fits():
    text = describe(plan(bytes_per_sequence=0, cache_bytes=10_000_000), 100_000, 50)
    assert "16 tokens (1,600 bytes each)" in text
    assert "at once: 64 of 1,024 tokens, 12 of 8,192 tokens, 3 of 32,768 tokens; 50 run at a time" in text
    assert "at once: 6 of 1,024 tokens;" in describe(plan(bytes_per_sequence=0, cache_bytes=650_000), 100_000, 64)
    assert "at once: none of 1,024 tokens; 1 run at" in describe(plan(cache_bytes=10_000), 100_000, 64)


@pytest.mark.parametrize(
    ("max_context", "end"),
    [
        (32_768, "64 of 1,024 tokens, 12 of 8,192 tokens, 3 of 32,768 tokens;"),
        (32_767, "64 of 1,024 tokens, 12 of 8,192 tokens;"),
        (500, "at once: 64 of 500 tokens;"),
    ],
)
def test_the_description_tells_of_no_sequence_that_would_be_refused(max_context, end):
    room = plan(bytes_per_sequence=0, cache_bytes=10_000_000)
    assert room.num_sequences(max_context) > 0
    assert end in describe(room, max_context, 64)


def test_what_states_are_kept_in_is_told_where_there_are_any():
    assert "1,000 bytes per sequence in bfloat16\n" in describe(plan(bytes_per_sequence=1000), 9, 64, "bfloat16")
    assert "in bfloat16" not in describe(plan(bytes_per_sequence=0), 9, 64, "bfloat16")


@given(
    bytes_per_token=st.integers(0, 2_000),
    bytes_per_sequence=st.integers(0, 100_000),
    block_size=st.integers(1, 256),
    cache_bytes=st.integers(1, 10_000_000),
    max_running=st.integers(1, 300),
    snapshot_every=st.integers(1, 5_000),
)
def test_any_budget_is_kept_and_serves_one_sequence_at_least(
    *, bytes_per_token, bytes_per_sequence, block_size, cache_bytes, max_running, snapshot_every
):
    least = bytes_per_sequence + bytes_per_token * block_size
    try:
        made = plan_cache(
            bytes_per_token=bytes_per_token,
            bytes_per_sequence=bytes_per_sequence,
            block_size=block_size,
            cache_bytes=cache_bytes,
            max_running=max_running,
            snapshot_every=snapshot_every,
        )
    except CacheTooSmallError:
        assert cache_bytes < least
        return
    assert cache_bytes >= least
    assert made.total_bytes <= cache_bytes
    assert 1 <= made.num_state_slots <= max_running + MAX_SNAPSHOTS
    assert (made.num_blocks >= 1) == (bytes_per_token > 0)
    one_more = dataclasses.replace(made, num_blocks=made.num_blocks + 1)
    assert not bytes_per_token or one_more.total_bytes > cache_bytes
