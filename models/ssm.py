"""The Mamba-2 mixer: a scan over prefill tokens, a step per decode token, over one row of state per sequence."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.batch import ForwardBatch
from models.cache import StateCache
from models.config import Mamba2Spec
from models.kernels.ssd_torch import ssd_scan, ssd_step
from models.layers import GatedRMSNorm


class Mamba2(nn.Module):
    """in_proj -> causal convolution over x, B, C -> SSD -> gated norm -> out_proj. Source: arXiv:2405.21060."""

    def __init__(self, hidden_size: int, spec: Mamba2Spec) -> None:
        super().__init__()
        self.spec = spec
        self.in_proj = nn.Linear(hidden_size, spec.inner_size + spec.conv_size + spec.num_heads, bias=spec.proj_bias)
        self.conv_weight = nn.Parameter(torch.empty(spec.conv_size, 1, spec.conv_kernel))
        self.conv_bias = nn.Parameter(torch.zeros(spec.conv_size)) if spec.conv_bias else None
        self.dt_bias = nn.Parameter(torch.zeros(spec.num_heads))
        self.A_log = nn.Parameter(torch.zeros(spec.num_heads))
        self.D = nn.Parameter(torch.ones(spec.num_heads))
        self.norm = GatedRMSNorm(spec.inner_size, spec.norm_eps, spec.num_groups)
        self.out_proj = nn.Linear(spec.inner_size, hidden_size, bias=spec.proj_bias)

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (..., hidden) -> gate (..., inner), convolution input (..., conv_size), dt (..., heads) > 0."""
        spec = self.spec
        gate, xbc, dt = self.in_proj(x).split([spec.inner_size, spec.conv_size, spec.num_heads], dim=-1)
        return gate, xbc, F.softplus(dt.float() + self.dt_bias.float()).clamp(*spec.time_step_limit)

    def _heads(self, xbc: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Convolved (..., conv_size) -> x (..., heads, head_dim), B and C (..., groups, state_size), float32."""
        spec = self.spec
        bc_size = spec.num_groups * spec.state_size
        x, B, C = F.silu(xbc).float().split([spec.inner_size, bc_size, bc_size], dim=-1)
        return (
            x.unflatten(-1, (spec.num_heads, spec.head_dim)),
            B.unflatten(-1, (spec.num_groups, spec.state_size)),
            C.unflatten(-1, (spec.num_groups, spec.state_size)),
        )

    def _finish(self, y: Tensor, x: Tensor, gate: Tensor) -> Tensor:
        y = y + self.D.float().unsqueeze(-1) * x
        out: Tensor = self.out_proj(self.norm(y.flatten(-2).to(gate.dtype), gate))
        return out

    def _scan(self, x: Tensor, conv_state: Tensor, ssm_state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Whole runs of tokens: x (b, l, hidden) and the states before -> output and the states after."""
        gate, xbc, dt = self._split(x)
        window = torch.cat((conv_state.to(xbc.dtype), xbc.transpose(1, 2)), dim=-1)
        convolved = F.conv1d(window, self.conv_weight, self.conv_bias, groups=self.spec.conv_size)
        heads, B, C = self._heads(convolved.transpose(1, 2))
        A = -self.A_log.float().exp()
        y, ssm_state = ssd_scan(heads, dt, A, B, C, state=ssm_state, chunk_size=self.spec.chunk_size)
        return self._finish(y, heads, gate), window[..., window.shape[-1] - self.spec.conv_kernel + 1 :], ssm_state

    def _step(self, x: Tensor, conv_state: Tensor, ssm_state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One token per sequence: x (b, hidden) and the states before -> output and the states after."""
        gate, xbc, dt = self._split(x)
        window = torch.cat((conv_state.to(xbc.dtype), xbc.unsqueeze(-1)), dim=-1)
        convolved = (window * self.conv_weight.squeeze(1)).sum(-1)
        if self.conv_bias is not None:
            convolved = convolved + self.conv_bias
        heads, B, C = self._heads(convolved)
        y, ssm_state = ssd_step(heads, dt, -self.A_log.float().exp(), B, C, state=ssm_state)
        return self._finish(y, heads, gate), window[..., 1:], ssm_state

    def forward(self, x: Tensor, batch: ForwardBatch, cache: StateCache) -> Tensor:
        """x (t, hidden) of a mixed batch -> (t, hidden); each sequence's state row is replaced."""
        out = torch.empty_like(x)
        lengths = batch.query_start.diff()
        # A fresh sequence of a single token must not read the row's former state, so it goes through the scan.
        steps = (lengths == 1) & (batch.context_lens > 0)
        decodes = steps.nonzero().squeeze(-1)
        if len(decodes):
            rows = batch.query_start[decodes].to(x.device)
            slots = batch.state_slots[decodes.to(batch.state_slots.device)]
            out[rows], conv, ssm = self._step(x[rows], cache.conv_state[slots], cache.ssm_state[slots])
            cache.conv_state[slots] = conv.float()
            cache.ssm_state[slots] = ssm
        for i in (~steps & (lengths > 0)).nonzero().squeeze(-1).tolist():
            start, stop = int(batch.query_start[i]), int(batch.query_start[i + 1])
            slot = int(batch.state_slots[i])
            conv, ssm = cache.conv_state[slot : slot + 1], cache.ssm_state[slot : slot + 1]
            if int(batch.context_lens[i]) == 0:
                conv, ssm = torch.zeros_like(conv), torch.zeros_like(ssm)
            y, conv, ssm = self._scan(x[start:stop].unsqueeze(0), conv, ssm)
            out[start:stop] = y.squeeze(0)
            cache.conv_state[slot] = conv[0].float()
            cache.ssm_state[slot] = ssm[0]
        return out

    def forward_dense(self, x: Tensor, positions: Tensor) -> Tensor:
        """x (b, l, hidden), whole sequences and no cache: the differentiable twin of `forward`."""
        del positions  # the recurrence itself orders the tokens
        spec = self.spec
        conv = x.new_zeros(x.shape[0], spec.conv_size, spec.conv_kernel - 1)
        ssm = x.new_zeros(x.shape[0], spec.num_heads, spec.head_dim, spec.state_size, dtype=torch.float32)
        return self._scan(x, conv, ssm)[0]
