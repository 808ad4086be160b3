"""The attention mixer: projections and rotary positions here, the paged cache in the kernels."""

import torch
from torch import Tensor, nn

from models.activations import Activating
from models.batch import ForwardBatch
from models.cache import KVCache
from models.config import AttentionSpec, GrowthSpec, ModelConfig, RopeSpec
from models.kernels.attention_torch import attend_dense
from models.kernels.torch_backend import ATTENTION
from models.layers import RMSNorm
from models.linear import Joined, Linear
from models.rope import Rotary, apply_rotary

Extra = tuple[Tensor, Tensor, Tensor] | None
Angles = dict[RopeSpec, tuple[Tensor, Tensor]]


def query_growth(spec: GrowthSpec, positions: Tensor) -> Tensor:
    """The factors on queries at `positions` (...,) int64 -> (...,) float32."""
    return 1 + spec.rate * torch.log(1 + torch.floor(positions / spec.positions))


class Attention(Activating):
    """Causal attention with grouped key/value heads; norms, positions, window and cap as the spec has them."""

    def __init__(self, config: ModelConfig, spec: AttentionSpec, input_size: int | None = None) -> None:
        super().__init__()
        self.spec = spec
        self.kernels = ATTENTION
        inputs, queries, keys = config.hidden_size, spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
        if input_size is not None:
            inputs = input_size
        self.q_proj = Linear(inputs, queries, bias=spec.qkv_bias)
        self.k_proj = Linear(inputs, keys, bias=spec.qkv_bias)
        self.v_proj = Linear(inputs, keys, bias=spec.qkv_bias)
        self.opening = Joined((self.q_proj, self.k_proj, self.v_proj))
        self.gate_proj = Linear(inputs, queries, bias=spec.qkv_bias) if spec.output_gate else None
        self.o_proj = Linear(queries, config.hidden_size, bias=spec.out_bias)
        self.q_norm: RMSNorm | None = None
        self.k_norm: RMSNorm | None = None
        if spec.qk_norm:
            sizes = (spec.head_dim, spec.head_dim) if spec.qk_norm == "head" else (queries, keys)
            self.q_norm, self.k_norm = (RMSNorm(size, config.norm_eps, config.norm_unit_offset) for size in sizes)
        self.rotary = Rotary(spec.rope) if spec.rope else None
        self.sinks = nn.Parameter(torch.zeros(spec.num_heads)) if spec.sinks else None

    def _heads(self, projected: Tensor, norm: RMSNorm | None) -> Tensor:
        """(..., heads * head_dim) -> (..., heads, head_dim), normalised over what the norm is as wide as."""
        if norm is not None and self.spec.qk_norm == "projection":
            projected, norm = norm(projected), None
        heads = projected.unflatten(-1, (-1, self.spec.head_dim))
        return heads if norm is None else norm(heads)

    def _project(
        self, x: Tensor, positions: Tensor, extra: Extra = None, angles: Angles | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x (..., hidden) -> rotated q (..., heads, head_dim), rotated k and v (..., kv_heads, head_dim).

        angles: those at the positions that other layers have computed; this one's are added.
        """
        q, k, v = self.opening(x)
        if extra is not None:
            q, k, v = q + extra[0], k + extra[1], v + extra[2]
        q, k, v = self._heads(q, self.q_norm), self._heads(k, self.k_norm), self._heads(v, None)
        if self.rotary is not None:
            angles = {} if angles is None else angles
            if self.rotary.spec not in angles:
                angles[self.rotary.spec] = self.rotary.table(positions)
            cos, sin = angles[self.rotary.spec]
            rotate = apply_rotary if torch.is_grad_enabled() else self.kernels.rotate
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if self.spec.growth is not None:
            q = q * query_growth(self.spec.growth, positions).to(q.dtype)[..., None, None]
        return q, k, v

    def _finish(self, read: Tensor, x: Tensor) -> Tensor:
        """What was read (..., heads, head_dim) through the gate and the output projection."""
        read = read.flatten(-2)
        if self.gate_proj is not None:
            read = read * self.functions.sigmoid(self.gate_proj(x))
        projected: Tensor = self.o_proj(read)
        return projected

    def forward(self, x: Tensor, batch: ForwardBatch, cache: KVCache, extra: Extra = None) -> Tensor:
        """x (t, hidden) of a mixed batch -> (t, hidden); the new keys and values are written to the cache.

        extra: what is added to q, k and v before anything else, from adapters.
        """
        q, k, v = self._project(x, batch.positions, extra, batch.angles)
        self.kernels.write(cache, k, v, batch.slot_mapping)
        out = self.kernels.attend(q, cache, batch, scores=self.spec.scores, sinks=self.sinks)
        return self._finish(out, x)

    def forward_dense(self, x: Tensor, positions: Tensor, extra: Extra = None) -> Tensor:
        """x (b, l, hidden), whole sequences and no cache: the differentiable twin of `forward`."""
        q, k, v = self._project(x, positions, extra)
        return self._finish(attend_dense(q, k, v, scores=self.spec.scores, sinks=self.sinks), x)
