"""The Mamba-2 recurrence in plain torch: a chunked scan for many tokens, a single step, and the plain loop."""

import torch
import torch.nn.functional as F
from torch import Tensor

from models.kernels.state_rows import PoolRows

CHUNK = 64  # what is quadratic in it then costs less than the products with B and C


def decay_matrix(log_decay: Tensor) -> Tensor:
    """exp(sum of log_decay over (s, t]) for s <= t, else 0. (..., q) -> (..., q, q)."""
    cumulative = log_decay.cumsum(-1)
    difference = cumulative.unsqueeze(-1) - cumulative.unsqueeze(-2)
    lower = torch.ones(difference.shape[-2:], dtype=torch.bool, device=log_decay.device).tril()
    # Masked before the exponential: above the diagonal it would overflow, and inf * 0 is NaN in backward.
    return difference.masked_fill(~lower, -torch.inf).exp()


def ssd_scan(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, *, state: Tensor, chunk_size: int = CHUNK
) -> tuple[Tensor, Tensor]:
    """Run h <- exp(dt*A)*h + dt*B*x ; y = C.h over a whole run of tokens, in chunks and without a loop over tokens.

    Shapes: b sequences, l tokens, h heads, p = head_dim, g groups, n = state_size.

    Args:
        x: (b, l, h, p). dt: (b, l, h), >= 0; where it is 0 the token leaves no trace. A: (h,), negative.
        B, C: (b, l, g, n). state: (b, h, p, n), before the first token.
        chunk_size: tokens per quadratic block. All is computed in the state's dtype.
    Returns:
        y: (b, l, h, p), without the skip term D*x; the state after the last token (b, h, p, n).
    Source: arXiv:2405.21060, section 6 (block decomposition of the semiseparable matrix).
    """
    x, B, C = (v.to(state.dtype) for v in (x, B, C))
    batch, length, heads, head_dim = x.shape
    groups, state_size, chunk = *B.shape[2:], min(chunk_size, length)
    num_chunks = -(-length // chunk)
    padding = num_chunks * chunk - length
    if padding:
        x, dt, B, C = (F.pad(v, (0, 0) * (v.dim() - 2) + (0, padding)) for v in (x, dt, B, C))
    # Chunks become a dimension: c chunks of q tokens; heads split into g groups of r.
    grouped = (batch, num_chunks, chunk, groups, heads // groups)
    log_decay = (dt * A).view(grouped)
    cumulative = log_decay.cumsum(2)  # b c q g r
    xdt = (x * dt.unsqueeze(-1)).view(*grouped, head_dim)
    B, C = (v.view(batch, num_chunks, chunk, groups, state_size).transpose(2, 3) for v in (B, C))  # b c g q n

    # What each chunk adds to the state by its end: the heads of a group are rows of one product with its B.
    to_end = (cumulative[:, :, -1:] - cumulative).exp()
    added = (xdt * to_end.unsqueeze(-1)).flatten(4).permute(0, 1, 3, 4, 2) @ B  # b c g rp n
    added = added.unflatten(3, (-1, head_dim))
    chunk_decay = cumulative[:, :, -1].exp()[..., None, None]  # b c g r 1 1
    state = state.view(batch, groups, heads // groups, head_dim, state_size)
    before = []
    for c in range(num_chunks):
        before.append(state)
        state = torch.addcmul(added[:, c], state, chunk_decay[:, c])
    y = C @ torch.stack(before, dim=1).flatten(3, 4).transpose(-1, -2)  # b c g q rp
    carried = y.transpose(2, 3).unflatten(-1, (-1, head_dim))  # b c q g r p

    decays = decay_matrix(log_decay.permute(0, 1, 3, 4, 2))  # b c g r q s
    scores = (C @ B.transpose(-1, -2)).unsqueeze(3) * decays
    within = (scores @ xdt.permute(0, 1, 3, 4, 2, 5)).permute(0, 1, 4, 2, 3, 5)
    y = torch.addcmul(within, carried, cumulative.exp().unsqueeze(-1))
    return y.reshape(batch, -1, heads, head_dim)[:, :length], state.flatten(1, 2)


def ssd_step(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, *, pool: Tensor, slots: Tensor) -> Tensor:
    """One token of the recurrence for each of b sequences, whose states are rows of a pool and change there.

    Args:
        x: (b, h, p). dt: (b, h). A: (h,). B, C: (b, g, n). pool: (s, h, p, n). slots: (b,) int64, distinct.
    Returns:
        y: (b, h, p), without the skip term.
    """
    (batch, heads, head_dim), state_size = x.shape, B.shape[-1]
    repeat = heads // B.shape[1]
    rows = PoolRows(pool, slots)
    x, dt, B, C = rows.order(*(v.to(rows.state.dtype) for v in (x, dt, B, C)))
    B, C = (v.repeat_interleave(repeat, dim=1).view(batch * heads, state_size, 1) for v in (B, C))
    state = rows.state.mul_((dt * A).exp()[..., None, None]).view(batch * heads, head_dim, state_size)
    state.baddbmm_((x * dt.unsqueeze(-1)).view(batch * heads, head_dim, 1), B.transpose(1, 2))
    y = torch.bmm(state, C).view(batch, heads, head_dim)
    return rows.finish(y)


def ssd_loop(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, *, state: Tensor) -> tuple[Tensor, Tensor]:
    """The slow twin of `ssd_scan`: the recurrence as it is written, one token after the other."""
    repeat, outputs = x.shape[2] // B.shape[2], []
    B, C = B.repeat_interleave(repeat, dim=2), C.repeat_interleave(repeat, dim=2)
    for t in range(x.shape[1]):
        added = (x[:, t] * dt[:, t].unsqueeze(-1)).unsqueeze(-1) * B[:, t].unsqueeze(2)
        state = state * (dt[:, t] * A).exp()[..., None, None] + added
        outputs.append((state * C[:, t].unsqueeze(2)).sum(-1))
    return torch.stack(outputs, dim=1), state
