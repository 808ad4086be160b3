"""A mixture of experts in plain torch: each expert reads all the tokens that chose it at once."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from models.linear import LinearKernel, Panels, multiply

OptionalTriple = tuple[Tensor | None, Tensor | None, Tensor | None]
Stack = Tensor | Sequence[Panels]  # a matrix for each expert
Matrices = tuple[Stack | None, Stack, Stack]
NO_BIASES: OptionalTriple = (None, None, None)


def run_experts(
    x: Tensor,
    chosen: Tensor,
    weights: Tensor,
    gate_up_down: Matrices,
    *,
    combine: Callable[[Tensor | None, Tensor], Tensor],
    linear: LinearKernel = multiply,
    biases: OptionalTriple = NO_BIASES,
) -> Tensor:
    """For each token, the weighted sum of the MLPs that it chose.

    Shapes: t tokens, k experts for each of them, e experts, i = their inner size.

    Args:
        x: (t, hidden). chosen: (t, k) int64, distinct in a row. weights: (t, k) float32.
        gate_up_down: the experts' matrices, (e, i, hidden) twice, the first one or None, and (e, hidden, i).
        combine: what gate, or None, and up give -> what down reads. biases: (e, i) twice, (e, hidden), or None.
    Returns:
        (t, hidden) in x's dtype, summed in float32.
    """
    gate, up, down = gate_up_down
    gate_bias, up_bias, down_bias = biases
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
        opened = None if gate is None else linear(read, gate[expert], _of(gate_bias, expert))
        inner = combine(opened, linear(read, up[expert], _of(up_bias, expert)))
        out.index_add_(0, tokens[mine], linear(inner, down[expert], _of(down_bias, expert)) * scale[mine])
        start += count
    return out.to(x.dtype)


def _of(bias: Tensor | None, expert: int) -> Tensor | None:
    return None if bias is None else bias[expert]
