"""The one decoder: an embedding, a list of layers built from their specs, a norm and a head."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.attention import Attention
from models.batch import ForwardBatch
from models.cache import LayerCache
from models.config import AttentionSpec, LayerSpec, ModelConfig
from models.layers import GatedMLP, RMSNorm
from models.ssm import Mamba2


class Layer(nn.Module):
    """norm + mixer, then norm + MLP where the spec has one, each added to the residual stream."""

    def __init__(self, config: ModelConfig, spec: LayerSpec) -> None:
        super().__init__()
        size = config.hidden_size
        self.mixer_norm = RMSNorm(size, config.norm_eps)
        self.mixer: Attention | Mamba2
        if isinstance(spec.mixer, AttentionSpec):
            self.mixer = Attention(size, spec.mixer)
        else:
            self.mixer = Mamba2(size, spec.mixer)
        self.mlp_norm = RMSNorm(size, config.norm_eps) if spec.mlp else None
        self.mlp = GatedMLP(size, spec.mlp) if spec.mlp else None

    def _after_mixer(self, residual: Tensor, dtype: torch.dtype) -> Tensor:
        if self.mlp is None or self.mlp_norm is None:
            return residual
        return residual + self.mlp(self.mlp_norm(residual.to(dtype)))

    def forward(self, residual: Tensor, batch: ForwardBatch, cache: LayerCache) -> Tensor:
        dtype = self.mixer_norm.weight.dtype
        mixed: Tensor = self.mixer(self.mixer_norm(residual.to(dtype)), batch, cache)
        return self._after_mixer(residual + mixed, dtype)

    def forward_dense(self, residual: Tensor, positions: Tensor) -> Tensor:
        dtype = self.mixer_norm.weight.dtype
        mixed = self.mixer.forward_dense(self.mixer_norm(residual.to(dtype)), positions)
        return self._after_mixer(residual + mixed, dtype)


class Decoder(nn.Module):
    """A causal language model over token ids."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, spec) for spec in config.layers)
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.head = None if config.tie_embeddings else nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def _embed(self, token_ids: Tensor) -> Tensor:
        embedded: Tensor = self.embedding(token_ids)
        return embedded.float() if self.config.residual_in_float32 else embedded

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states (..., hidden) before the last norm -> float32 logits (..., vocab)."""
        weight = self.embedding.weight if self.head is None else self.head.weight
        return F.linear(self.norm(hidden.to(self.norm.weight.dtype)), weight).float()

    def forward(self, batch: ForwardBatch, caches: Sequence[LayerCache]) -> Tensor:
        """Read the batch's new tokens, update the caches, and return logits.

        Returns:
            (r, vocab) float32, one row for each of batch.logit_rows.
        """
        residual = self._embed(batch.token_ids)
        for layer, cache in zip(self.layers, caches, strict=True):
            residual = layer(residual, batch, cache)
        return self.logits(residual[batch.logit_rows])

    def forward_dense(self, token_ids: Tensor, positions: Tensor | None = None) -> Tensor:
        """Whole sequences without a cache: the differentiable twin of `forward`, for training and tests.

        Args:
            token_ids: (b, l) int64. positions: (b, l) int64, by default 0 .. l - 1.
        Returns:
            (b, l, hidden) hidden states before the last norm; `logits` makes logits of them.
        """
        if positions is None:
            positions = torch.arange(token_ids.shape[1], device=token_ids.device).expand_as(token_ids)
        residual = self._embed(token_ids)
        for layer in self.layers:
            assert isinstance(layer, Layer)
            residual = layer.forward_dense(residual, positions)
        return residual
