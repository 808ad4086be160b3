"""The Mamba mixers: a scan over prefill tokens, a step per decode token, over one row of state per sequence."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from models.activations import Activating
from models.batch import FRESH, ForwardBatch, Piece
from models.cache import StateCache
from models.config import Mamba1Spec, Mamba2Spec, RecurrentSpec
from models.kernels.interface import RecurrentKernels
from models.kernels.state_rows import narrowed, widened
from models.kernels.torch_backend import SELECTIVE_SCAN, SSD
from models.layers import GatedRMSNorm, RMSNorm, rms_normalised
from models.linear import Linear


class RecurrentMixer(Activating):
    """What the recurrent mixers share: which of a batch's sequences take a scan and which a step, and their rows.

    A mixer projects each token (`_open`), convolves the first of what that gives, makes of both the inputs of its
    recurrence (`_inputs`), and of what the recurrence gives its output (`_close`).
    """

    spec: RecurrentSpec
    kernels: RecurrentKernels
    conv_weight: nn.Parameter
    conv_bias: nn.Parameter | None
    A_log: nn.Parameter
    takes_rates = True  # the third input of the recurrence is A, the same for all tokens
    _rates: Tensor | None = None

    def prepare(self) -> None:
        """Compute once what follows from the weights alone. They must not change afterwards."""
        self._rates = None
        self._rates = self._decay_rates()

    def _decay_rates(self) -> Tensor:
        """A of the recurrence, negative, in A_log's shape, float32."""
        return -self.A_log.float().exp() if self._rates is None else self._rates

    @abstractmethod
    def _open(self, x: Tensor) -> tuple[Tensor, ...]:
        """x (..., hidden) -> what is projected from it, each (..., its size); the first is to be convolved."""

    @abstractmethod
    def _inputs(self, convolved: Tensor, opened: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The recurrence's five inputs, as its kernels want them."""

    @abstractmethod
    def _close(self, y: Tensor, inputs: tuple[Tensor, ...], opened: tuple[Tensor, ...]) -> Tensor:
        """What the recurrence gave -> (..., hidden)."""

    def forward(self, x: Tensor, batch: ForwardBatch, cache: StateCache) -> Tensor:
        """x (t, hidden) of a mixed batch -> (t, hidden); each sequence's state row is replaced.

        What a token asks for by itself is computed for all at once: weights are read once, however many prompts come.
        """
        if batch.steps.rows is None:
            return self._step(x, cache, batch.state_slots)
        opened = self._open(x)
        inputs = self._inputs(self._convolve_all(opened[0], batch, cache), opened)
        return self._close(self._recur_all(inputs, batch, cache), inputs, opened)

    def forward_dense(self, x: Tensor, positions: Tensor) -> Tensor:
        """x (b, l, hidden), whole sequences and no cache: the differentiable twin of `forward`."""
        del positions  # the recurrence itself orders the tokens
        opened = self._open(x)
        conv = x.new_zeros(x.shape[0], self.spec.conv_size, self.spec.conv_kernel - 1)
        inputs = self._inputs(self._convolve(opened[0], conv), opened)
        ssm = x.new_zeros(x.shape[0], *self.spec.state_shape, dtype=torch.float32)
        return self._close(self.kernels.scan(*inputs, state=ssm)[0], inputs, opened)

    def _step(self, x: Tensor, cache: StateCache, slots: Tensor) -> Tensor:
        """One token per sequence: x (b, hidden) -> (b, hidden); rows `slots` (b,) of the cache change in place."""
        opened = self._open(x)
        convolved = self.kernels.convolve_step(opened[0], cache.conv_state, slots, self.conv_weight, self.conv_bias)
        inputs = self._inputs(convolved, opened)
        return self._close(self.kernels.step(*inputs, pool=cache.ssm_state, slots=slots), inputs, opened)

    def _convolve_all(self, x: Tensor, batch: ForwardBatch, cache: StateCache) -> Tensor:
        """x (t, conv_size) -> the same, convolved; what the convolution remembers goes to the cache."""
        steps, pool = batch.steps, cache.conv_state
        if self.kernels.convolve_runs is not None:
            out = self.kernels.convolve_runs(x, pool, batch.scans, self.conv_weight, self.conv_bias)
        else:
            out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
            for run in batch.scans.pieces:
                rows = slice(run[0].start, run[-1].stop)
                state = _begun(pool, run[0])
                out[rows] = self._convolve(x[rows].unsqueeze(0), state)[0]
                ends = [(piece.ends, _last_inputs(state[0], x[rows.start : piece.stop])) for piece in run]
                for slot, remembered in ends:
                    pool[slot] = remembered
        if steps.count:
            out[steps.rows] = self.kernels.convolve_step(
                x[steps.rows], pool, batch.state_slots[steps.sequences], self.conv_weight, self.conv_bias
            )
        return out

    def _recur_all(self, inputs: tuple[Tensor, ...], batch: ForwardBatch, cache: StateCache) -> Tensor:
        """What the recurrence gives of its inputs (t, ...), each sequence from its own state, in the inputs' order."""
        steps, pool = batch.steps, cache.ssm_state
        if self.kernels.scan_runs is not None:
            y = self.kernels.scan_runs(*inputs, pool=pool, runs=batch.scans)
        else:
            parts = [part for run in batch.scans.pieces for part in self._scan(inputs, run, pool)]
            first = parts[0][1]
            y = torch.empty(len(inputs[0]), *first.shape[1:], dtype=first.dtype, device=first.device)
            for rows, part in parts:
                y[rows] = part
        if steps.count:
            assert steps.rows is not None
            picked = self._some(inputs, steps.rows)
            y[steps.rows] = self.kernels.step(*picked, pool=pool, slots=batch.state_slots[steps.sequences])
        return y

    def _scan(self, inputs: tuple[Tensor, ...], run: Sequence[Piece], pool: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """A run of one sequence, in the pieces after which its state goes to some slot."""
        state = widened(_begun(pool, run[0]))
        for piece in run:
            if piece.stop > piece.start:
                rows = slice(piece.start, piece.stop)
                picked = (
                    each if each is self._rates_of(inputs) else each.unsqueeze(0) for each in self._some(inputs, rows)
                )
                y, state = self.kernels.scan(*picked, state=state)
                yield rows, y[0]
            pool[piece.ends] = narrowed(state[0], pool.dtype)
            if pool.dtype != state.dtype:
                # On from what was kept, as others who take the snapshot up will.
                state = widened(pool[piece.ends : piece.ends + 1])

    def _rates_of(self, inputs: tuple[Tensor, ...]) -> Tensor | None:
        return inputs[2] if self.takes_rates else None

    def _some(self, inputs: tuple[Tensor, ...], rows: Tensor | slice) -> tuple[Tensor, ...]:
        """Some tokens of the recurrence's inputs (t, ...)."""
        rates = self._rates_of(inputs)
        return tuple(each if each is rates else each[rows] for each in inputs)

    def _convolve(self, x: Tensor, state: Tensor) -> Tensor:
        return self.kernels.convolve(x, state, self.conv_weight, self.conv_bias)[0]


def _begun(pool: Tensor, piece: Piece) -> Tensor:
    """The state (1, ...) that a run begins with, whose first piece this is."""
    if piece.begins == FRESH:
        return torch.zeros_like(pool[:1])
    return pool[piece.begins : piece.begins + 1]


def _last_inputs(before: Tensor, x: Tensor) -> Tensor:
    """The state of a convolution (channels, kernel - 1) that read x (l, channels) after the state `before`."""
    kept = before.shape[1]
    if len(x) >= kept:
        return x[len(x) - kept :].T
    return torch.cat((before[:, len(x) :], x.T.to(before.dtype)), dim=1)


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
        dt = self.dt_proj.linear(step, self.dt_proj.matrix)
        return self.functions.time_steps(dt, self.dt_proj.bias), B.float(), C.float()

    def _open(self, x: Tensor) -> tuple[Tensor, ...]:
        """The convolution's input and the gate, each (..., inner)."""
        return self.in_proj(x).chunk(2, dim=-1)

    def _inputs(self, convolved: Tensor, opened: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        del opened
        dt, B, C = self._select(convolved)
        return convolved.float(), dt, self._decay_rates(), B, C

    def _close(self, y: Tensor, inputs: tuple[Tensor, ...], opened: tuple[Tensor, ...]) -> Tensor:
        return self.out_proj(self.functions.skip_gate(y, inputs[0], self.D, opened[1]))


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

    def _open(self, x: Tensor) -> tuple[Tensor, ...]:
        """x (..., hidden) -> convolution input (..., conv_size), gate (..., inner), dt (..., heads) > 0."""
        spec = self.spec
        projected = self.in_proj(x)
        if spec.projection_scales is not None:
            bc_size = spec.num_groups * spec.state_size
            sizes = (spec.inner_size, spec.inner_size, bc_size, bc_size, spec.num_heads)
            parts = projected.split(sizes, dim=-1)
            scaled = [part * scale for part, scale in zip(parts, spec.projection_scales, strict=True)]
            projected = torch.cat(scaled, dim=-1)
        gate, xbc, dt = projected.split([spec.inner_size, spec.conv_size, spec.num_heads], dim=-1)
        return xbc, gate, self.functions.time_steps(dt, self.dt_bias, *spec.time_step_limit)

    def _inputs(self, convolved: Tensor, opened: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """x (..., heads, head_dim), dt, A, B and C (..., groups, state_size)."""
        spec = self.spec
        bc_size = spec.num_groups * spec.state_size
        x, B, C = convolved.split([spec.inner_size, bc_size, bc_size], dim=-1)
        B, C = (part.unflatten(-1, (spec.num_groups, spec.state_size)) for part in (B, C))
        return x.unflatten(-1, (spec.num_heads, spec.head_dim)), opened[2], self._decay_rates(), B, C

    def _close(self, y: Tensor, inputs: tuple[Tensor, ...], opened: tuple[Tensor, ...]) -> Tensor:
        gate = opened[1]
        skipped = self.D.float().unsqueeze(-1).expand(-1, self.spec.head_dim).reshape(-1)  # of each of a head's numbers
        y = self.functions.skip(y.flatten(-2), inputs[0].flatten(-2), skipped, gate.dtype)
        return self.out_proj(y * self.functions.silu(gate) if self.norm is None else self.norm(y, gate))
