"""The Mamba mixers: a scan over prefill tokens, a step per decode token, over one row of state per sequence."""

from abc import abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.batch import ForwardBatch
from models.cache import StateCache
from models.config import Mamba1Spec, Mamba2Spec, RecurrentSpec
from models.kernels.interface import RecurrentKernels
from models.kernels.torch_backend import SELECTIVE_SCAN, SSD
from models.layers import GatedRMSNorm, RMSNorm, rms_normalised
from models.linear import Linear


class RecurrentMixer(nn.Module):
    """What the recurrent mixers share: which of a batch's sequences take a scan and which a step, and their rows."""

    spec: RecurrentSpec
    kernels: RecurrentKernels
    conv_weight: nn.Parameter
    conv_bias: nn.Parameter | None
    A_log: nn.Parameter
    _rates: Tensor | None = None

    def prepare(self) -> None:
        """Compute once what follows from the weights alone. They must not change afterwards."""
        self._rates = None
        self._rates = self._decay_rates()

    def _decay_rates(self) -> Tensor:
        """A of the recurrence, negative, in A_log's shape, float32."""
        return -self.A_log.float().exp() if self._rates is None else self._rates

    @abstractmethod
    def _scan(self, x: Tensor, conv_state: Tensor, ssm_state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Whole runs of tokens: x (b, l, hidden) and the states before -> output and the states after."""

    @abstractmethod
    def _step(self, x: Tensor, cache: StateCache, slots: Tensor) -> Tensor:
        """One token per sequence: x (b, hidden) -> (b, hidden); rows `slots` (b,) of the cache change in place."""

    def forward(self, x: Tensor, batch: ForwardBatch, cache: StateCache) -> Tensor:
        """x (t, hidden) of a mixed batch -> (t, hidden); each sequence's state row is replaced."""
        steps = batch.steps
        if steps.rows is None:
            return self._step(x, cache, batch.state_slots)
        out = torch.empty_like(x)
        if steps.count:
            out[steps.rows] = self._step(x[steps.rows], cache, batch.state_slots[steps.sequences])
        for i in batch.scans:
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

    def _convolve(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        return self.kernels.convolve(x, state, self.conv_weight, self.conv_bias)

    def _convolve_step(self, x: Tensor, cache: StateCache, slots: Tensor) -> Tensor:
        return self.kernels.convolve_step(x, cache.conv_state, slots, self.conv_weight, self.conv_bias)


class Mamba1(RecurrentMixer):
    """in_proj -> causal convolution -> step, B and C from its output -> selective scan -> gate -> out_proj.

    Source: arXiv:2312.00752, section 3.
    """

    def __init__(self, hidden_size: int, spec: Mamba1Spec) -> None:
        super().__init__()
        self.spec: Mamba1Spec = spec
        self.kernels = SELECTIVE_SCAN
        inner = spec.inner_size
        self.in_proj = Linear(hidden_size, 2 * inner, bias=spec.proj_bias)
        self.conv_weight = nn.Parameter(torch.empty(inner, 1, spec.conv_kernel))
        self.conv_bias = nn.Parameter(torch.zeros(inner)) if spec.conv_bias else None
        self.x_proj = Linear(inner, spec.step_rank + 2 * spec.state_size, bias=False)
        self.dt_proj = Linear(spec.step_rank, inner)
        self.A_log = nn.Parameter(torch.zeros(inner, spec.state_size))
        self.D = nn.Parameter(torch.ones(inner))
        if spec.inner_norm_eps is not None and spec.inner_norm_weights:
            self.dt_norm = RMSNorm(spec.step_rank, spec.inner_norm_eps)
            self.B_norm = RMSNorm(spec.state_size, spec.inner_norm_eps)
            self.C_norm = RMSNorm(spec.state_size, spec.inner_norm_eps)
        self.out_proj = Linear(inner, hidden_size, bias=spec.proj_bias)

    def _select(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Convolved x (..., inner) -> dt (..., inner) > 0, B and C (..., state_size), float32."""
        spec = self.spec
        step, B, C = self.x_proj(x).split([spec.step_rank, spec.state_size, spec.state_size], dim=-1)
        if spec.inner_norm_eps is not None:
            if spec.inner_norm_weights:
                step, B, C = self.dt_norm(step), self.B_norm(B), self.C_norm(C)
            else:
                step, B, C = (rms_normalised(part, spec.inner_norm_eps) for part in (step, B, C))
        dt = self.dt_proj.linear(step, self.dt_proj.weight).float() + self.dt_proj.bias.float()
        return F.softplus(dt), B.float(), C.float()

    def _finish(self, y: Tensor, x: Tensor, gate: Tensor) -> Tensor:
        y = torch.addcmul(y, x, self.D.float()) * F.silu(gate.float())
        out: Tensor = self.out_proj(y.to(gate.dtype))
        return out

    def _scan(self, x: Tensor, conv_state: Tensor, ssm_state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        inner, gate = self.in_proj(x).chunk(2, dim=-1)
        inner, conv_state = self._convolve(inner, conv_state)
        dt, B, C = self._select(inner)
        A = self._decay_rates()
        y, ssm_state = self.kernels.scan(inner.float(), dt, A, B, C, state=ssm_state)
        return self._finish(y, inner.float(), gate), conv_state, ssm_state

    def _step(self, x: Tensor, cache: StateCache, slots: Tensor) -> Tensor:
        inner, gate = self.in_proj(x).chunk(2, dim=-1)
        inner = self._convolve_step(inner, cache, slots)
        dt, B, C = self._select(inner)
        A = self._decay_rates()
        y = self.kernels.step(inner.float(), dt, A, B, C, pool=cache.ssm_state, slots=slots)
        return self._finish(y, inner.float(), gate)


class Mamba2(RecurrentMixer):
    """in_proj -> causal convolution over x, B, C -> SSD -> gated norm -> out_proj. Source: arXiv:2405.21060."""

    def __init__(self, hidden_size: int, spec: Mamba2Spec) -> None:
        super().__init__()
        self.spec: Mamba2Spec = spec
        self.kernels = SSD
        self.in_proj = Linear(hidden_size, spec.inner_size + spec.conv_size + spec.num_heads, bias=spec.proj_bias)
        self.conv_weight = nn.Parameter(torch.empty(spec.conv_size, 1, spec.conv_kernel))
        self.conv_bias = nn.Parameter(torch.zeros(spec.conv_size)) if spec.conv_bias else None
        self.dt_bias = nn.Parameter(torch.zeros(spec.num_heads))
        self.A_log = nn.Parameter(torch.zeros(spec.num_heads))
        self.D = nn.Parameter(torch.ones(spec.num_heads))
        self.norm: GatedRMSNorm | None = None
        if spec.gated_norm is not None:
            norm_first = spec.gated_norm == "norm_first"
            self.norm = GatedRMSNorm(spec.inner_size, spec.norm_eps, spec.num_groups, norm_first=norm_first)
        self.out_proj = Linear(spec.inner_size, hidden_size, bias=spec.out_bias)

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
        """Convolved (..., conv_size) -> x (..., heads, head_dim), B and C (..., groups, state_size)."""
        spec = self.spec
        bc_size = spec.num_groups * spec.state_size
        x, B, C = xbc.split([spec.inner_size, bc_size, bc_size], dim=-1)
        return (
            x.unflatten(-1, (spec.num_heads, spec.head_dim)),
            B.unflatten(-1, (spec.num_groups, spec.state_size)),
            C.unflatten(-1, (spec.num_groups, spec.state_size)),
        )

    def _finish(self, y: Tensor, x: Tensor, gate: Tensor) -> Tensor:
        y = torch.addcmul(y, x.to(y.dtype), self.D.float().unsqueeze(-1))
        y = y.flatten(-2).to(gate.dtype)
        out: Tensor = self.out_proj(y * F.silu(gate) if self.norm is None else self.norm(y, gate))
        return out

    def _scan(self, x: Tensor, conv_state: Tensor, ssm_state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        gate, xbc, dt = self._split(x)
        xbc, conv_state = self._convolve(xbc, conv_state)
        heads, B, C = self._heads(xbc)
        A = self._decay_rates()
        y, ssm_state = self.kernels.scan(heads, dt, A, B, C, state=ssm_state)
        return self._finish(y, heads, gate), conv_state, ssm_state

    def _step(self, x: Tensor, cache: StateCache, slots: Tensor) -> Tensor:
        gate, xbc, dt = self._split(x)
        heads, B, C = self._heads(self._convolve_step(xbc, cache, slots))
        A = self._decay_rates()
        y = self.kernels.step(heads, dt, A, B, C, pool=cache.ssm_state, slots=slots)
        return self._finish(y, heads, gate)
