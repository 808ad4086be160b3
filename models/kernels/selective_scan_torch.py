"""The Mamba-1 recurrence in plain torch: a scan over chunks for many tokens, and a single step."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from models.kernels.state_rows import PoolRows

BLOCK_ELEMENTS = 1 << 22  # floats of decays held at a time: what is larger falls out of the processor's cache


def selective_scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, *, state: Tensor) -> tuple[Tensor, Tensor]:
    """Run h <- exp(dt*A)*h + dt*B*x ; y = C.h over a whole run of tokens, block by block of them.

    Shapes: b sequences, l tokens, d channels, n = state_size.

    Args:
        x: (b, l, d). dt: (b, l, d), >= 0; where it is 0 the token leaves no trace. A: (d, n), negative.
        B, C: (b, l, n). state: (b, d, n), before the first token.
    Returns:
        y: (b, l, d), without the skip term D*x; the state after the last token (b, d, n).
    Source: arXiv:2312.00752, section 3.
    """
    block = max(16, BLOCK_ELEMENTS // state.numel())
    outputs = []
    for pieces in zip(*(v.split(block, dim=1) for v in (x, dt, B, C)), strict=True):
        y, state = _scan_block(*pieces, A=A, state=state)
        outputs.append(y)
    return torch.cat(outputs, dim=1), state


def _scan_block(x: Tensor, dt: Tensor, B: Tensor, C: Tensor, *, A: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """One block: its chunks take their steps side by side, first from nothing, then from what the others left."""
    batch, length, _ = x.shape
    steps = math.isqrt(max(1, length // 2))
    num_chunks = -(-length // steps)
    padding = num_chunks * steps - length
    x, dt, B, C = (F.pad(v, (0, 0, 0, padding)).view(batch, num_chunks, steps, -1) for v in (x, dt, B, C))
    decay = (dt.unsqueeze(-1) * A).exp().unbind(2)  # each (b, c, d, n)
    added = ((dt * x).unsqueeze(-1) * B.unsqueeze(-2)).unbind(2)

    local = added[0]
    for step in range(1, steps):
        local = torch.addcmul(added[step], local, decay[step])
    chunk_decay = (dt.sum(2).unsqueeze(-1) * A).exp()
    entering = [state]
    for chunk in range(num_chunks - 1):
        entering.append(torch.addcmul(local[:, chunk], entering[-1], chunk_decay[:, chunk]))

    current = torch.stack(entering, dim=1)
    outputs = []
    for step in range(steps):
        current = torch.addcmul(added[step], current, decay[step])
        outputs.append((current @ C[:, :, step].unsqueeze(-1)).squeeze(-1))
    y = torch.stack(outputs, dim=2).flatten(1, 2)
    return y[:, :length], current[:, -1]


def selective_step(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, *, pool: Tensor, slots: Tensor) -> Tensor:
    """One token of the recurrence for each of b sequences, whose states are rows of a pool and change there.

    Args:
        x, dt: (b, d). A: (d, n). B, C: (b, n). pool: (s, d, n). slots: (b,) int64, distinct.
    Returns:
        y: (b, d), without the skip term.
    """
    rows = PoolRows(pool, slots)
    x, dt, B, C = rows.order(x, dt, B, C)
    state = rows.state.mul_((dt.unsqueeze(-1) * A).exp())
    state.baddbmm_((dt * x).unsqueeze(-1), B.unsqueeze(1))
    return rows.finish((state @ C.unsqueeze(-1)).squeeze(-1))


def selective_loop(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, *, state: Tensor) -> tuple[Tensor, Tensor]:
    """The slow twin of `selective_scan`: the recurrence as it is written, one token after the other."""
    outputs = []
    for t in range(x.shape[1]):
        added = (dt[:, t] * x[:, t]).unsqueeze(-1) * B[:, t].unsqueeze(1)
        state = state * (dt[:, t].unsqueeze(-1) * A).exp() + added
        outputs.append((state * C[:, t].unsqueeze(1)).sum(-1))
    return torch.stack(outputs, dim=1), state
