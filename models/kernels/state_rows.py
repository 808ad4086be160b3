"""Rows of a state pool, for steps in plain torch that change them in place."""

import torch
from torch import Tensor


class PoolRows:
    """The rows of a pool that a step changes: a view of them where they lie together, else a copy that is put back.

    A view saves reading and writing all of the state once more, most of what a step costs. Rows that lie together in
    another order than the step's sequences are taken in their own: `order` puts inputs into it, `finish` outputs back.
    """

    def __init__(self, pool: Tensor, slots: Tensor) -> None:
        """pool: (s, ...). slots: (b,) int64, distinct; on another device than the CPU never looked at."""
        self._pool, self._slots = pool, slots
        self._permutation: Tensor | None = None
        if slots.device.type == "cpu":
            first = int(slots.min())
            if int(slots.max()) - first == len(slots) - 1:
                self._view = True
                self.state = pool[first : first + len(slots)]
                if not bool((slots.diff() > 0).all()):
                    self._permutation = slots.argsort()
                return
        self._view = False
        self.state = pool[slots]

    def order(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Inputs (b, ...) in the order of `state`."""
        return inputs if self._permutation is None else tuple(x[self._permutation] for x in inputs)

    def finish(self, output: Tensor) -> Tensor:
        """Put a changed copy back into the pool; output (b, ...) in the order of the sequences."""
        if not self._view:
            self._pool.index_copy_(0, self._slots, self.state)
        if self._permutation is None:
            return output
        restored = torch.empty_like(output)
        restored[self._permutation] = output
        return restored
