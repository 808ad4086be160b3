"""The mixture of experts: a router, and the MLPs that it chooses for each token."""

from functools import partial

import torch
from torch import Tensor, nn

from models.activations import Activating
from models.config import ExpertsSpec, RouterSpec
from models.kernels.experts_torch import Matrices, run_experts
from models.layers import MLP, combine_of
from models.linear import LayOut, Linear, Panels, Projecting, Weight, give_back


class Router(Projecting, Activating):
    """Scores of all experts, and the choice among them. x (t, hidden) -> chosen (t, top_k), weights (t, top_k)."""

    def __init__(self, hidden_size: int, spec: RouterSpec) -> None:
        super().__init__()
        self.spec = spec
        self.weight = nn.Parameter(torch.empty(spec.num_experts, hidden_size))
        self.bias = nn.Parameter(torch.zeros(spec.num_experts)) if spec.bias else None
        self.selection_bias = nn.Parameter(torch.zeros(spec.num_experts)) if spec.selection_bias else None
        self._matrix: Weight | None = None

    def lay_out(self, lay_out: LayOut) -> None:
        if self._matrix is not None:
            return
        weight = self.weight
        self._matrix = lay_out(weight if self.spec.scoring == "softmax" else weight.float())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        spec = self.spec
        if spec.scoring == "softmax":
            matrix = self.weight if self._matrix is None else self._matrix
            scores = self.linear(x, matrix, self.bias).float().softmax(-1)
        else:
            bias = None if self.bias is None else self.bias.float()
            matrix = self.weight.float() if self._matrix is None else self._matrix
            scores = self.functions.sigmoid(self.linear(x.float(), matrix, bias))
        merit = scores if self.selection_bias is None else scores + self.selection_bias.float()
        if spec.groups is not None:
            merit = merit.masked_fill(~self._in_best_groups(merit, *spec.groups), -torch.inf)
        chosen = merit.topk(spec.top_k, dim=-1).indices
        weights = scores.gather(-1, chosen)
        if spec.renormalise:
            weights = weights / weights.sum(-1, keepdim=True)
        return chosen, weights * spec.scale

    @staticmethod
    def _in_best_groups(merit: Tensor, num_groups: int, num_best: int) -> Tensor:
        """Which experts (t, e) are in the groups that are best by the sum of their two best."""
        groups = merit.unflatten(-1, (num_groups, -1))
        best = groups.topk(2, dim=-1).values.sum(-1).topk(num_best, dim=-1).indices
        inside = torch.zeros(groups.shape[:-1], dtype=torch.bool, device=merit.device).scatter(-1, best, True)
        return inside.unsqueeze(-1).expand_as(groups).flatten(-2)


class Experts(Projecting, Activating):
    """The matrices of a mixture's MLPs, one behind the other, and their biases where they have any."""

    def __init__(self, size: int, spec: ExpertsSpec) -> None:
        super().__init__()
        self.combine = combine_of(spec.expert)
        count, inner = spec.router.num_experts, spec.expert.intermediate_size
        self.gate_proj = nn.Parameter(torch.empty(count, inner, size)) if spec.expert.gated else None
        self.up_proj = nn.Parameter(torch.empty(count, inner, size))
        self.down_proj = nn.Parameter(torch.empty(count, size, inner))

        def bias(width: int) -> nn.Parameter | None:
            return nn.Parameter(torch.zeros(count, width)) if spec.expert_biases else None

        self.gate_bias = bias(inner) if spec.expert.gated else None
        self.up_bias, self.down_bias = bias(inner), bias(size)
        self._laid_out: Matrices | None = None

    def lay_out(self, lay_out: LayOut) -> None:
        def of(parameter: nn.Parameter) -> list[Panels]:
            panels = [lay_out(matrix) for matrix in parameter.data]
            give_back(parameter)
            return panels

        if self._laid_out is None:
            gate = None if self.gate_proj is None else of(self.gate_proj)
            self._laid_out = gate, of(self.up_proj), of(self.down_proj)

    def forward(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        matrices = self._laid_out or (self.gate_proj, self.up_proj, self.down_proj)
        biases = (self.gate_bias, self.up_bias, self.down_bias)
        combine = partial(self.combine, self.functions)
        return run_experts(x, chosen, weights, matrices, combine=combine, linear=self.linear, biases=biases)


class MixtureOfExperts(Activating):
    """For each token the weighted MLPs that its router chooses. Shapes: (..., hidden) -> (..., hidden)."""

    def __init__(self, hidden_size: int, spec: ExpertsSpec) -> None:
        super().__init__()
        self.router = Router(hidden_size, spec.router)
        size = spec.latent_size or hidden_size
        self.experts = Experts(size, spec)
        self.enter = Linear(hidden_size, size, bias=spec.expert.bias) if spec.latent_size else None
        self.leave = Linear(size, hidden_size, bias=spec.expert.bias) if spec.latent_size else None
        self.shared = MLP(hidden_size, spec.shared) if spec.shared else None
        self.shared_gate = Linear(hidden_size, 1, bias=False) if spec.shared_gate else None

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        chosen, weights = self.router(rows)
        mixed = self.experts(rows if self.enter is None else self.enter(rows), chosen, weights)
        if self.leave is not None:
            mixed = self.leave(mixed)
        if self.shared is not None:
            shared = self.shared(rows)
            if self.shared_gate is not None:
                shared = self.functions.sigmoid(self.shared_gate(rows)) * shared
            mixed = mixed + shared
        return mixed.view(x.shape)
