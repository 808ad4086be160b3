"""Rows of a state pool, for steps in plain torch that change them in place."""

import torch
from torch import Tensor

NARROW = (torch.bfloat16, torch.float16)


def widened(state: Tensor) -> Tensor:
    """A state to compute with: what is kept in 16 bits as float32, others as they are."""
    return state.float() if state.dtype in NARROW else state


def narrowed(state: Tensor, dtype: torch.dtype) -> Tensor:
    """A state to be kept in a dtype: the nearest, and for what is too large for float16 its largest number."""
    if dtype == torch.float16:
        largest = torch.finfo(dtype).max
        state = state.clamp(-largest, largest)
    return state.to(dtype)


class PoolRows:
    """The rows of a pool that a step changes: a view of them where they lie side by side, else a copy that is put back.

    A view saves reading and writing all of the state once more, most of what a step costs. Rows that lie together in
    another order than the step's sequences are taken in their own: `order` puts inputs into it, `finish` outputs back.
    Of a pool in 16 bits `state` is always a copy, in float32.
    """

    def __init__(self, pool: Tensor, slots: Tensor) -> None:
        """pool: (s, ...). slots: (b,) int64, distinct; on another device than the CPU never looked at."""
        self._pool, self._slots = pool, slots
        self._permutation: Tensor | None = None
        if slots.device.type == "cpu" and pool.dtype not in NARROW:
            first = int(slots.min())
            together = pool[first : first + len(slots)]
            # Steps merge dimensions, which would copy rows between which other layers have theirs.
            if int(slots.max()) - first == len(slots) - 1 and together.is_contiguous():
                self._view = True
                self.state = together
                if not bool((slots.diff() > 0).all()):
                    self._permutation = slots.argsort()
                return
        self._view = False
        self.state = widened(pool[slots])

    def order(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Inputs (b, ...) in the order of `state`."""
        return inputs if self._permutation is None else tuple(x[self._permutation] for x in inputs)

    def finish(self, output: Tensor) -> Tensor:
        """Put a changed copy back into the pool; output (b, ...) in the order of the sequences."""
        if not self._view:
            self._pool.index_copy_(0, self._slots, narrowed(self.state, self._pool.dtype))
        if self._permutation is None:
            return output
        restored = torch.empty_like(output)
        restored[self._permutation] = output
        return restored
