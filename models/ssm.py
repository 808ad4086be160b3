"""The Mamba mixers: a scan over prefill tokens, a step per decode token, over one row of state per sequence."""

from abc import abstractmethod
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.batch import ForwardBatch
from models.cache import StateCache
from models.config import Mamba1Spec, Mamba2Spec, RecurrentSpec
from models.kernels.selective_scan_torch import selective_scan, selective_step
from models.kernels.ssd_torch import ssd_scan, ssd_step
from models.layers import GatedRMSNorm, RMSNorm, rms_normalised


class RecurrentMixer(nn.Module):
    """What the recurrent mixers share: which of a batch's sequences take a scan and which a step, and their rows."""

    spec: RecurrentSpec

    @abstractmethod
    def _scan(self, x: Tensor, conv_state: Tensor, ssm_state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Whole runs of tokens: x (b, l, hidden) and the states before -> output and the states after."""

    @abstractmethod
    def _step(self, x: Tensor, conv_state: Tensor, ssm_state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One token per sequence: x (b, hidden) and the states before -> output and the states after."""

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
        conv = x.new_zeros(x.shape[0], self.spec.conv_size, self.spec.conv_kernel - 1)
        ssm = x.new_zeros(x.shape[0], *self.spec.state_shape, dtype=torch.float32)
        return self._scan(x, conv, ssm)[0]


class Convolution(Protocol):
    """The causal convolution's parameters: weight (channels, 1, kernel), bias (channels,) or None."""

    conv_weight: nn.Parameter
    conv_bias: nn.Parameter | None


def convolve(convolution: Convolution, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """SiLU of the causal convolution over runs of tokens. x (b, l, channels), state (b, channels, kernel - 1)."""
    weight = convolution.conv_weight
    window = torch.cat((state.to(x.dtype), x.transpose(1, 2)), dim=-1)
    convolved = F.conv1d(window, weight, convolution.conv_bias, groups=len(weight))
    return F.silu(convolved.transpose(1, 2)), window[..., window.shape[-1] - weight.shape[-1] + 1 :]


def convolve_step(convolution: Convolution, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The same for one token of each sequence. x (b, channels), state (b, channels, kernel - 1)."""
    window = torch.cat((state.to(x.dtype), x.unsqueeze(-1)), dim=-1)
    convolved = (window * convolution.conv_weight.squeeze(1)).sum(-1)
    if convolution.conv_bias is not None:
        convolved = convolved + convolution.conv_bias
    return F.silu(convolved), window[..., 1:]


class Mamba1(RecurrentMixer):
    """in_proj -> causal convolution -> step, B and C from its output -> selective scan -> gate -> out_proj.

    Source: arXiv:2312.00752, section 3.
    """

    def __init__(self, hidden_size: int, spec: Mamba1Spec) -> None:
        super().__init__()
        self.spec: Mamba1Spec = spec
        inner = spec.inner_size
        self.in_proj = nn.Linear(hidden_size, 2 * inner, bias=spec.proj_bias)
        self.conv_weight = nn.Parameter(torch.empty(inner, 1, spec.conv_kernel))
        self.conv_bias = nn.Parameter(torch.zeros(inner)) if spec.conv_bias else None
        self.x_proj = nn.Linear(inner, spec.step_rank + 2 * spec.state_size, bias=False)
        self.dt_proj = nn.Linear(spec.step_rank, inner)
        self.A_log = nn.Parameter(torch.zeros(inner, spec.state_size))
        self.D = nn.Parameter(torch.ones(inner))
        if spec.inner_norm_eps is not None and spec.inner_norm_weights:
            self.dt_norm = RMSNorm(spec.step_rank, spec.inner_norm_eps)
            self.B_norm = RMSNorm(spec.state_size, spec.inner_norm_eps)
            self.C_norm = RMSNorm(spec.state_size, spec.inner_norm_eps)
        self.out_proj = nn.Linear(inner, hidden_size, bias=spec.proj_bias)

    def _select(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Convolved x (..., inner) -> dt (..., inner) > 0, B and C (..., state_size), float32."""
        spec = self.spec
        step, B, C = self.x_proj(x).split([spec.step_rank, spec.state_size, spec.state_size], dim=-1)
        if spec.inner_norm_eps is not None:
            if spec.inner_norm_weights:
                step, B, C = self.dt_norm(step), self.B_norm(B), self.C_norm(C)
            else:
                step, B, C = (rms_normalised(part, spec.inner_norm_eps) for part in (step, B, C))
        dt = F.linear(step, self.dt_proj.weight).float() + self.dt_proj.bias.float()
        return F.softplus(dt), B.float(), C.float()

    def _finish(self, y: Tensor, x: Tensor, gate: Tensor) -> Tensor:
        y = (y + self.D.float() * x) * F.silu(gate.float())
        out: Tensor = self.out_proj(y.to(gate.dtype))
        return out

    def _scan(self, x: Tensor, conv_state: Tensor, ssm_state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        inner, gate = self.in_proj(x).chunk(2, dim=-1)
        inner, conv_state = convolve(self, inner, conv_state)
        dt, B, C = self._select(inner)
        y, ssm_state = selective_scan(inner.float(), dt, -self.A_log.float().exp(), B, C, state=ssm_state)
        return self._finish(y, inner.float(), gate), conv_state, ssm_state

    def _step(self, x: Tensor, conv_state: Tensor, ssm_state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        inner, gate = self.in_proj(x).chunk(2, dim=-1)
        inner, conv_state = convolve_step(self, inner, conv_state)
        dt, B, C = self._select(inner)
        y, ssm_state = selective_step(inner.float(), dt, -self.A_log.float().exp(), B, C, state=ssm_state)
        return self._finish(y, inner.float(), gate), conv_state, ssm_state


class Mamba2(RecurrentMixer):
    """in_proj -> causal convolution over x, B, C -> SSD -> gated norm -> out_proj. Source: arXiv:2405.21060."""

    def __init__(self, hidden_size: int, spec: Mamba2Spec) -> None:
        super().__init__()
        self.spec: Mamba2Spec = spec
        self.in_proj = nn.Linear(hidden_size, spec.inner_size + spec.conv_size + spec.num_heads, bias=spec.proj_bias)
        self.conv_weight = nn.Parameter(torch.empty(spec.conv_size, 1, spec.conv_kernel))
        self.conv_bias = nn.Parameter(torch.zeros(spec.conv_size)) if spec.conv_bias else None
        self.dt_bias = nn.Parameter(torch.zeros(spec.num_heads))
        self.A_log = nn.Parameter(torch.zeros(spec.num_heads))
        self.D = nn.Parameter(torch.ones(spec.num_heads))
        self.norm: GatedRMSNorm | None = None
        if spec.gated_norm is not None:
            norm_first = spec.gated_norm == "norm_first"
            self.norm = GatedRMSNorm(spec.inner_size, spec.norm_eps, spec.num_groups, norm_first=norm_first)
        self.out_proj = nn.Linear(spec.inner_size, hidden_size, bias=spec.out_bias)

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (..., hidden) -> gate (..., inner), convolution input (..., conv_size), dt (..., heads) > 0."""
        spec = self.spec
        projected = self.in_proj(x)
        if spec.projection_scales is not None:
            bc_size = spec.num_groups * spec.state_size
            sizes = (spec.inner_size, spec.inner_size, bc_size, bc_size, spec.num_heads)
            parts = projected.split(sizes, dim=-1)
            scaled = [part * scale for part, scale in zip(parts, spec.projection_scales, strict=True)]
            projected = torch.cat(scaled, dim=-1)
        gate, xbc, dt = projected.split([spec.inner_size, spec.conv_size, spec.num_heads], dim=-1)
        return gate, xbc, F.softplus(dt.float() + self.dt_bias.float()).clamp(*spec.time_step_limit)

    def _heads(self, xbc: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Convolved (..., conv_size) -> x (..., heads, head_dim), B and C (..., groups, state_size), float32."""
        spec = self.spec
        bc_size = spec.num_groups * spec.state_size
        x, B, C = xbc.float().split([spec.inner_size, bc_size, bc_size], dim=-1)
        return (
            x.unflatten(-1, (spec.num_heads, spec.head_dim)),
            B.unflatten(-1, (spec.num_groups, spec.state_size)),
            C.unflatten(-1, (spec.num_groups, spec.state_size)),
        )

    def _finish(self, y: Tensor, x: Tensor, gate: Tensor) -> Tensor:
        y = y + self.D.float().unsqueeze(-1) * x
        y = y.flatten(-2).to(gate.dtype)
        out: Tensor = self.out_proj(y * F.silu(gate) if self.norm is None else self.norm(y, gate))
        return out

    def _scan(self, x: Tensor, conv_state: Tensor, ssm_state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        gate, xbc, dt = self._split(x)
        xbc, conv_state = convolve(self, xbc, conv_state)
        heads, B, C = self._heads(xbc)
        A = -self.A_log.float().exp()
        y, ssm_state = ssd_scan(heads, dt, A, B, C, state=ssm_state, chunk_size=self.spec.chunk_size)
        return self._finish(y, heads, gate), conv_state, ssm_state

    def _step(self, x: Tensor, conv_state: Tensor, ssm_state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        gate, xbc, dt = self._split(x)
        xbc, conv_state = convolve_step(self, xbc, conv_state)
        heads, B, C = self._heads(xbc)
        y, ssm_state = ssd_step(heads, dt, -self.A_log.float().exp(), B, C, state=ssm_state)
        return self._finish(y, heads, gate), conv_state, ssm_state
