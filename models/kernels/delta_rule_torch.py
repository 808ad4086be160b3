"""The gated delta rule in plain torch: a chunked scan for many tokens, a single step, and the plain loop."""

import torch
import torch.nn.functional as F
from torch import Tensor

from models.kernels.ssd_torch import decay_matrix
from models.kernels.state_rows import PoolRows

CHUNK = 64


def delta_scan(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor, *, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Run S <- exp(log_decay)*S ; S <- S + k (beta*(v - k.S)) ; y = q.S over a whole run of tokens, chunk by chunk.

    What the tokens of a chunk write hangs on each other by a triangular system, which is solved for all chunks at
    once; only the state between the chunks is carried from one to the next.

    Shapes: b sequences, l tokens, g key heads, h value heads (a multiple), p = key_head_dim, n = value_head_dim.

    Args:
        q, k: (b, l, g, p). v: (b, l, h, n). log_decay: (b, l, h), <= 0. beta: (b, l, h); where it is 0 and the decay
            too the token leaves no trace. state: (b, h, p, n), before the first token.
    Returns:
        y: (b, l, h, n); the state after the last token (b, h, p, n).
    Source: arXiv:2412.06464, section 3.3.
    """
    batch, length, key_heads, _ = k.shape
    heads = v.shape[2]
    chunk = min(CHUNK, length)
    num_chunks = -(-length // chunk)

    def split(x: Tensor, num_heads: int) -> Tensor:
        """(b, l, num_heads, d) -> (b, c, key_heads, num_heads / key_heads, q, d): c chunks of q tokens."""
        padded = F.pad(x, (0, 0, 0, 0, 0, num_chunks * chunk - length))
        shape = (batch, num_chunks, chunk, key_heads, num_heads // key_heads, -1)
        return padded.view(shape).permute(0, 1, 3, 4, 2, 5)

    q, k = split(q, key_heads), split(k, key_heads)  # one head, broadcast to the value heads that it serves
    v, beta = split(v, heads), split(beta.unsqueeze(-1), heads)
    log_decay = split(log_decay.unsqueeze(-1), heads).squeeze(-1)  # b c g r q
    cumulative = log_decay.cumsum(-1).unsqueeze(-1)
    decays = decay_matrix(log_decay)  # b c g r q s

    within = beta * (k @ k.transpose(-1, -2)) * decays  # solve_triangular reads only what is below the diagonal
    right = torch.cat((beta * v, beta * cumulative.exp() * k), dim=-1)
    solved = torch.linalg.solve_triangular(within, right, upper=False, unitriangular=True)
    written, corrections = solved.split([v.shape[-1], k.shape[-1]], dim=-1)
    reads = (q @ k.transpose(-1, -2)) * decays
    queries = q * cumulative.exp()
    keys = (k * (cumulative[..., -1:, :] - cumulative).exp()).transpose(-1, -2)
    chunk_decay = cumulative[..., -1:, :].exp()

    state = state.view(batch, key_heads, heads // key_heads, *state.shape[2:])
    outputs = []
    for c in range(num_chunks):
        new = written[:, c] - corrections[:, c] @ state
        outputs.append(queries[:, c] @ state + reads[:, c] @ new)
        state = state * chunk_decay[:, c] + keys[:, c] @ new
    y = torch.stack(outputs, dim=1).permute(0, 1, 4, 2, 3, 5).reshape(batch, num_chunks * chunk, heads, -1)
    return y[:, :length], state.flatten(1, 2)


def delta_step(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor, *, pool: Tensor, slots: Tensor
) -> Tensor:
    """One token of the recurrence for each of b sequences, whose states are rows of a pool and change there.

    Args:
        q, k: (b, g, p). v: (b, h, n). log_decay, beta: (b, h). pool: (s, h, p, n). slots: (b,) int64, distinct.
    Returns:
        y: (b, h, n).
    """
    rows = PoolRows(pool, slots)
    q, k, v, log_decay, beta = rows.order(q, k, v, log_decay, beta)
    repeat = v.shape[1] // k.shape[1]
    q, k = (x.repeat_interleave(repeat, dim=1).flatten(0, 1).unsqueeze(-2) for x in (q, k))  # bh 1 p
    state = rows.state.mul_(log_decay.exp()[..., None, None]).flatten(0, 1)
    new = beta.view(-1, 1, 1) * (v.reshape(-1, 1, v.shape[-1]) - k @ state)  # bh 1 n
    state.baddbmm_(k.transpose(-1, -2), new)
    return rows.finish((q @ state).view(v.shape))


def delta_loop(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor, *, state: Tensor
) -> tuple[Tensor, Tensor]:
    """The slow twin of `delta_scan`: the recurrence as it is written, one token after the other."""
    repeat, outputs = v.shape[2] // k.shape[2], []
    q, k = (x.repeat_interleave(repeat, dim=2).unsqueeze(-2) for x in (q, k))  # b l h 1 p
    for t in range(v.shape[1]):
        state = state * log_decay[:, t].exp()[..., None, None]
        new = beta[:, t].unsqueeze(-1) * (v[:, t] - (k[:, t] @ state).squeeze(-2))
        state = state + k[:, t].transpose(-1, -2) * new.unsqueeze(-2)
        outputs.append((q[:, t] @ state).squeeze(-2))
    return torch.stack(outputs, dim=1), state
