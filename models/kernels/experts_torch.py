"""A mixture of experts in plain torch: each expert reads all the tokens that chose it at once."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def run_experts(
    x: Tensor,
    chosen: Tensor,
    weights: Tensor,
    gate_up_down: tuple[Tensor | None, Tensor, Tensor],
    *,
    activation: Callable[[Tensor], Tensor],
) -> Tensor:
    """For each token, the weighted sum of the MLPs that it chose.

    Shapes: t tokens, k experts for each of them, e experts, i = their inner size.

    Args:
        x: (t, hidden). chosen: (t, k) int64, distinct in a row. weights: (t, k) float32.
        gate_up_down: the experts' matrices, (e, i, hidden) twice, the first one or None, and (e, hidden, i).
    Returns:
        (t, hidden) in x's dtype, summed in float32.
    """
    gate, up, down = gate_up_down
    top_k = chosen.shape[1]
    # Tokens in the order of their experts, so that those of one expert are neighbours.
    order = chosen.flatten().argsort(stable=True)
    tokens = order // top_k
    counts = torch.bincount(chosen.flatten(), minlength=len(up)).tolist()
    out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    scale = weights.flatten()[order].unsqueeze(-1)
    start = 0
    for expert, count in enumerate(counts):
        if count == 0:
            continue
        mine = slice(start, start + count)
        read = x[tokens[mine]]
        inner = F.linear(read, up[expert])
        inner = activation(inner) if gate is None else activation(F.linear(read, gate[expert])) * inner
        out.index_add_(0, tokens[mine], F.linear(inner, down[expert]) * scale[mine])
        start += count
    return out.to(x.dtype)
