"""The Mamba-2 recurrence in plain torch: a chunked scan for many tokens, a single step, and the plain loop."""

import torch
from torch import Tensor


def decay_matrix(log_decay: Tensor) -> Tensor:
    """exp(sum of log_decay over (s, t]) for s <= t, else 0. (..., q) -> (..., q, q)."""
    cumulative = log_decay.cumsum(-1)
    difference = cumulative.unsqueeze(-1) - cumulative.unsqueeze(-2)
    lower = torch.ones(difference.shape[-2:], dtype=torch.bool, device=log_decay.device).tril()
    # Masked before the exponential: above the diagonal it would overflow, and inf * 0 is NaN in backward.
    return difference.masked_fill(~lower, -torch.inf).exp()


def ssd_scan(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, *, state: Tensor, chunk_size: int
) -> tuple[Tensor, Tensor]:
    """Run h <- exp(dt*A)*h + dt*B*x ; y = C.h over a whole run of tokens, in chunks and without a loop.

    Shapes: b sequences, l tokens, h heads, p = head_dim, g groups, n = state_size.

    Args:
        x: (b, l, h, p). dt: (b, l, h), >= 0; where it is 0 the token leaves no trace. A: (h,), negative.
        B, C: (b, l, g, n). state: (b, h, p, n), before the first token.
        chunk_size: tokens per quadratic block.
    Returns:
        y: (b, l, h, p), without the skip term D*x; the state after the last token (b, h, p, n).
    Source: arXiv:2405.21060, section 6 (block decomposition of the semiseparable matrix).
    """
    batch, length, heads, head_dim = x.shape
    groups, chunk = B.shape[2], min(chunk_size, length)
    num_chunks = -(-length // chunk)
    padding = num_chunks * chunk - length
    if padding:
        x, dt, B, C = (torch.nn.functional.pad(v, (0, 0) * (v.dim() - 2) + (0, padding)) for v in (x, dt, B, C))
    per_group = heads // groups
    # Chunks become a dimension: c chunks of q tokens; heads split into g groups of r.
    xdt = (x * dt.unsqueeze(-1)).view(batch, num_chunks, chunk, groups, per_group, head_dim)
    log_decay = (dt * A).view(batch, num_chunks, chunk, groups, per_group).permute(0, 1, 3, 4, 2)  # b c g r q
    B = B.view(batch, num_chunks, chunk, groups, -1)
    C = C.view(batch, num_chunks, chunk, groups, -1)
    cumulative = log_decay.cumsum(-1)

    scores = torch.einsum("bcqgn,bcsgn->bcgqs", C, B).unsqueeze(3) * decay_matrix(log_decay)  # b c g r q s
    xdt = xdt.permute(0, 1, 3, 4, 2, 5)  # b c g r q p
    y = scores @ xdt

    # What each chunk adds to the state by its end, then the states before each chunk, by decays between chunks.
    to_end = (cumulative[..., -1:] - cumulative).exp()
    added = torch.einsum("bcgrqp,bcgrq,bcqgn->bcgrpn", xdt, to_end, B)
    entering = torch.cat((state.view(batch, 1, groups, per_group, head_dim, -1), added), dim=1)
    chunk_decay = torch.nn.functional.pad(cumulative[..., -1].permute(0, 2, 3, 1), (1, 0))  # b g r 1+c
    states = torch.einsum("bgrzc,bcgrpn->bzgrpn", decay_matrix(chunk_decay), entering)
    before, last = states[:, :-1], states[:, -1]

    y = y + torch.einsum("bcqgn,bcgrpn,bcgrq->bcgrqp", C, before, cumulative.exp())
    y = y.permute(0, 1, 4, 2, 3, 5).reshape(batch, num_chunks * chunk, heads, head_dim)
    return y[:, :length], last.reshape(batch, heads, head_dim, -1)


def ssd_step(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, *, state: Tensor) -> tuple[Tensor, Tensor]:
    """One token of the recurrence for each of b sequences.

    Args:
        x: (b, h, p). dt: (b, h). A: (h,). B, C: (b, g, n). state: (b, h, p, n).
    Returns:
        y: (b, h, p); the new state (b, h, p, n).
    """
    repeat = x.shape[1] // B.shape[1]
    B, C = B.repeat_interleave(repeat, dim=1), C.repeat_interleave(repeat, dim=1)
    decay = (dt * A).exp()[..., None, None]
    state = state * decay + (x * dt.unsqueeze(-1)).unsqueeze(-1) * B.unsqueeze(2)
    return (state * C.unsqueeze(2)).sum(-1), state


def ssd_loop(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, *, state: Tensor) -> tuple[Tensor, Tensor]:
    """The slow twin of `ssd_scan`: the recurrence as it is written, one token after the other."""
    outputs = []
    for t in range(x.shape[1]):
        y, state = ssd_step(x[:, t], dt[:, t], A, B[:, t], C[:, t], state=state)
        outputs.append(y)
    return torch.stack(outputs, dim=1), state
