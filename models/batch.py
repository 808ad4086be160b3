"""Everything that one forward pass needs, as tensors. Passed as an argument; there is no ambient context."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class ForwardBatch:
    """New tokens of b sequences, concatenated to t rows; prefill chunks and decode steps may be mixed.

    Attributes:
        token_ids: (t,) int64.
        positions: (t,) int64, position of each token in its sequence.
        query_start: (b + 1,) int64 on the CPU; sequence i owns rows query_start[i]:query_start[i + 1].
        context_lens: (b,) int64 on the CPU, tokens remembered before this pass; 0 = the sequence starts fresh
            and its state slot counts as zero whatever it holds.
        block_tables: (b, m) int64, -1 = padding.
        slot_mapping: (t,) int64, block * block_size + offset; -1 = not written.
        state_slots: (b,) int64, distinct.
        logit_rows: (r,) int64, the rows whose logits are wanted.
    """

    token_ids: Tensor
    positions: Tensor
    query_start: Tensor
    context_lens: Tensor
    block_tables: Tensor
    slot_mapping: Tensor
    state_slots: Tensor
    logit_rows: Tensor
