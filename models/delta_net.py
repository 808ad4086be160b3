"""The Gated DeltaNet mixer: linear attention whose memory is corrected rather than added to."""

import torch
from torch import Tensor, nn

from models.config import DeltaNetSpec
from models.kernels.torch_backend import DELTA_RULE
from models.layers import GatedRMSNorm
from models.linear import Linear
from models.ssm import RecurrentMixer

L2_EPS = 1e-6


class DeltaNet(RecurrentMixer):
    """Projections -> causal convolution over q, k, v -> gated delta rule -> gated norm per head -> out_proj.

    Source: arXiv:2412.06464.
    """

    takes_rates = False

    def __init__(self, hidden_size: int, spec: DeltaNetSpec) -> None:
        super().__init__()
        self.spec: DeltaNetSpec = spec
        self.kernels = DELTA_RULE
        self.in_proj_qkv = Linear(hidden_size, spec.conv_size, bias=False)
        self.in_proj_z = Linear(hidden_size, spec.value_size, bias=False)
        self.in_proj_b = Linear(hidden_size, spec.num_value_heads, bias=False)
        self.in_proj_a = Linear(hidden_size, spec.num_value_heads, bias=False)
        self.conv_weight = nn.Parameter(torch.empty(spec.conv_size, 1, spec.conv_kernel))
        self.conv_bias: nn.Parameter | None = None
        self.dt_bias = nn.Parameter(torch.zeros(spec.num_value_heads))
        self.A_log = nn.Parameter(torch.zeros(spec.num_value_heads))
        self.norm = GatedRMSNorm(spec.value_head_dim, spec.norm_eps, norm_first=True)
        self.out_proj = Linear(spec.value_size, hidden_size, bias=False)

    def _open(self, x: Tensor) -> tuple[Tensor, ...]:
        """q, k and v to be convolved (..., conv_size), gate (..., value_size), log decay <= 0 and beta in (0, 1), each
        (..., value_heads), float32.
        """
        step = self.functions.time_steps(self.in_proj_a(x), self.dt_bias)
        beta = self.functions.sigmoid(self.in_proj_b(x)).float()
        return self.in_proj_qkv(x), self.in_proj_z(x), self._decay_rates() * step, beta

    def _inputs(self, convolved: Tensor, opened: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """q, k (..., key_heads, key_dim) of length one, v (..., value_heads, dim), log decay, beta."""
        spec = self.spec
        q, k, v = convolved.float().split([spec.key_size, spec.key_size, spec.value_size], dim=-1)
        q, k = (x.unflatten(-1, (spec.num_key_heads, spec.key_head_dim)) for x in (q, k))
        q, k = (x * torch.rsqrt(x.square().sum(-1, keepdim=True) + L2_EPS) for x in (q, k))
        v = v.unflatten(-1, (spec.num_value_heads, spec.value_head_dim))
        return q * spec.key_head_dim**-0.5, k, v, *opened[2:]

    def _close(self, y: Tensor, inputs: tuple[Tensor, ...], opened: tuple[Tensor, ...]) -> Tensor:
        del inputs
        gate = opened[1].unflatten(-1, (self.spec.num_value_heads, -1))
        return self.out_proj(self.norm(y.to(gate.dtype), gate).flatten(-2))
