"""The attention mixer: projections and rotary positions here, the paged cache in the kernels."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.batch import ForwardBatch
from models.cache import KVCache
from models.config import AttentionSpec
from models.kernels.attention_torch import attend_decode, attend_prefill, write_kv
from models.layers import apply_rotary, rotary_table


class Attention(nn.Module):
    """Causal attention with grouped key/value heads and rotary positions."""

    def __init__(self, hidden_size: int, spec: AttentionSpec) -> None:
        super().__init__()
        self.spec = spec
        self.q_proj = nn.Linear(hidden_size, spec.num_heads * spec.head_dim, bias=spec.bias)
        self.k_proj = nn.Linear(hidden_size, spec.num_kv_heads * spec.head_dim, bias=spec.bias)
        self.v_proj = nn.Linear(hidden_size, spec.num_kv_heads * spec.head_dim, bias=spec.bias)
        self.o_proj = nn.Linear(spec.num_heads * spec.head_dim, hidden_size, bias=spec.bias)

    def _project(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (..., hidden) -> rotated q (..., heads, head_dim), rotated k and v (..., kv_heads, head_dim)."""
        q, k, v = (
            projection(x).unflatten(-1, (-1, self.spec.head_dim))
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        cos, sin = rotary_table(positions, self.spec.head_dim, self.spec.rope_theta)
        return apply_rotary(q, cos, sin), apply_rotary(k, cos, sin), v

    def forward(self, x: Tensor, batch: ForwardBatch, cache: KVCache) -> Tensor:
        """x (t, hidden) of a mixed batch -> (t, hidden); the new keys and values are written to the cache."""
        q, k, v = self._project(x, batch.positions)
        write_kv(cache, k, v, batch.slot_mapping)
        out = torch.empty_like(q)
        lengths = batch.query_start.diff()
        decodes = (lengths == 1).nonzero().squeeze(-1)
        if len(decodes):
            rows = batch.query_start[decodes].to(x.device)
            tables = batch.block_tables[decodes.to(batch.block_tables.device)]
            out[rows] = attend_decode(q[rows], cache, tables, batch.context_lens[decodes] + 1)
        for i in (lengths > 1).nonzero().squeeze(-1).tolist():
            start, stop = int(batch.query_start[i]), int(batch.query_start[i + 1])
            out[start:stop] = attend_prefill(q[start:stop], cache, batch.block_tables[i], int(batch.context_lens[i]))
        projected: Tensor = self.o_proj(out.flatten(-2))
        return projected

    def forward_dense(self, x: Tensor, positions: Tensor) -> Tensor:
        """x (b, l, hidden), whole sequences and no cache: the differentiable twin of `forward`."""
        q, k, v = self._project(x, positions)
        out = F.scaled_dot_product_attention(
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            is_causal=True,
            enable_gqa=self.spec.num_heads != self.spec.num_kv_heads,
        )
        projected: Tensor = self.o_proj(out.transpose(1, 2).flatten(-2))
        return projected
