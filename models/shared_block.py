"""A transformer block that several layers share, each with adapters of its own, before a recurrent mixer."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from models.attention import Attention
from models.batch import ForwardBatch
from models.cache import KVCache, ParallelCache
from models.config import ModelConfig, SharedSpec
from models.layers import MLP, RMSNorm
from models.linear import Linear
from models.ssm import RecurrentMixer


class Adapters(nn.Module):
    """What one layer adds to the projections of a shared block: products of two narrow matrices."""

    def __init__(self, hidden_size: int, spec: SharedSpec) -> None:
        super().__init__()
        attention, rank = spec.attention, spec.adapter_rank

        def narrow(inputs: int, outputs: int) -> nn.Sequential:
            return nn.Sequential(Linear(inputs, rank, bias=False), Linear(rank, outputs, bias=False))

        if spec.attention_adapters:
            queries, keys = attention.num_heads * attention.head_dim, attention.num_kv_heads * attention.head_dim
            self.q = narrow(2 * hidden_size, queries)
            self.k = narrow(2 * hidden_size, keys)
            self.v = narrow(2 * hidden_size, keys)
        self.gate_up = narrow(hidden_size, 2 * spec.mlp.intermediate_size)

    def attention(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
        """What is added to q, k and v."""
        return (self.q(x), self.k(x), self.v(x)) if hasattr(self, "q") else None

    def mlp(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What is added to what the MLP's gate and up projections give."""
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return gate, up


class SharedBlock(nn.Module):
    """Attention over hidden states and embeddings side by side, then an MLP; nothing is added to a residual inside."""

    def __init__(self, config: ModelConfig, specs: Iterable[SharedSpec]) -> None:
        super().__init__()
        specs = list(specs)
        hidden_size = config.hidden_size
        self.norm = RMSNorm(2 * hidden_size, config.norm_eps)
        self.attention = Attention(config, specs[0].attention, input_size=2 * hidden_size)
        self.mlp_norm = RMSNorm(hidden_size, config.norm_eps)
        self.mlp = MLP(hidden_size, specs[0].mlp)
        self.adapters = nn.ModuleDict({str(spec.use): Adapters(hidden_size, spec) for spec in specs})

    def adapters_of(self, use: int) -> Adapters:
        adapters = self.adapters[str(use)]
        assert isinstance(adapters, Adapters)
        return adapters

    def enter(self, hidden: Tensor, embedded: Tensor) -> Tensor:
        normalised: Tensor = self.norm(torch.cat((hidden, embedded), dim=-1))
        return normalised

    def finish(self, attended: Tensor, adapters: Adapters) -> Tensor:
        x = self.mlp_norm(attended)
        out: Tensor = self.mlp(x, adapters.mlp(x))
        return out


class SharedThenRecurrent(nn.Module):
    """A use of a shared block, and a recurrent mixer that reads the hidden state with what the block gives added."""

    def __init__(self, config: ModelConfig, spec: SharedSpec, block: SharedBlock, recurrent: RecurrentMixer) -> None:
        super().__init__()
        self.use = spec.use
        self.block = block
        self.linear = Linear(config.hidden_size, config.hidden_size, bias=False)
        self.enter_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.recurrent = recurrent

    def _enter(self, hidden: Tensor, attended: Tensor) -> Tensor:
        given = self.linear(self.block.finish(attended, self.block.adapters_of(self.use)))
        entered: Tensor = self.enter_norm(hidden + given)
        return entered

    def forward(self, hidden: Tensor, embedded: Tensor, batch: ForwardBatch, cache: ParallelCache) -> Tensor:
        """hidden, embedded (t, hidden) of a mixed batch -> (t, hidden); both caches are written."""
        x = self.block.enter(hidden, embedded)
        extra = self.block.adapters_of(self.use).attention(x)
        keys_and_values: KVCache = cache.attention
        attended = self.block.attention(x, batch, keys_and_values, extra)
        mixed: Tensor = self.recurrent(self._enter(hidden, attended), batch, cache.recurrent)
        return mixed

    def forward_dense(self, hidden: Tensor, embedded: Tensor, positions: Tensor) -> Tensor:
        """hidden, embedded (b, l, hidden), whole sequences and no cache: the differentiable twin of `forward`."""
        x = self.block.enter(hidden, embedded)
        attended = self.block.attention.forward_dense(x, positions, self.block.adapters_of(self.use).attention(x))
        return self.recurrent.forward_dense(self._enter(hidden, attended), positions)
