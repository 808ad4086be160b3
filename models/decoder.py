"""The one decoder: an embedding, a list of layers built from their specs, a norm and a head."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.attention import Attention
from models.batch import ForwardBatch
from models.cache import LayerCache
from models.config import AttentionSpec, LayerSpec, Mamba1Spec, MixerSpec, ModelConfig
from models.layers import RMSNorm, build_mlp, soft_cap
from models.ssm import Mamba1, Mamba2


def build_mixer(config: ModelConfig, spec: MixerSpec) -> Attention | Mamba1 | Mamba2:
    if isinstance(spec, AttentionSpec):
        return Attention(config, spec)
    return Mamba1(config.hidden_size, spec) if isinstance(spec, Mamba1Spec) else Mamba2(config.hidden_size, spec)


class Layer(nn.Module):
    """A mixer and, where the spec has one, an MLP, each added to the residual stream, with norms before or after."""

    def __init__(self, config: ModelConfig, spec: LayerSpec) -> None:
        super().__init__()

        def norm(place: Literal["pre", "post"], wanted: bool) -> RMSNorm | None:
            there = wanted and spec.norms in (place, "both")
            return RMSNorm(config.hidden_size, config.norm_eps, config.norm_unit_offset) if there else None

        self.mixer_norm = norm("pre", True)
        self.mixer = build_mixer(config, spec.mixer)
        self.mixer_post_norm = norm("post", True)
        self.mlp_norm = norm("pre", spec.mlp is not None)
        self.mlp = build_mlp(config.hidden_size, spec.mlp) if spec.mlp else None
        self.mlp_post_norm = norm("post", spec.mlp is not None)

    def _enter(self, residual: Tensor, norm: RMSNorm | None) -> Tensor:
        """What a mixer or MLP reads: the residual in the weights' dtype, normalised where there is a norm before."""
        any_norm = self.mixer_norm or self.mixer_post_norm
        assert any_norm is not None
        x = residual.to(any_norm.weight.dtype)
        return x if norm is None else norm(x)

    def _after_mixer(self, residual: Tensor, mixed: Tensor) -> Tensor:
        residual = residual + (mixed if self.mixer_post_norm is None else self.mixer_post_norm(mixed))
        if self.mlp is None:
            return residual
        added = self.mlp(self._enter(residual, self.mlp_norm))
        return residual + (added if self.mlp_post_norm is None else self.mlp_post_norm(added))

    def forward(self, residual: Tensor, batch: ForwardBatch, cache: LayerCache) -> Tensor:
        return self._after_mixer(residual, self.mixer(self._enter(residual, self.mixer_norm), batch, cache))

    def forward_dense(self, residual: Tensor, positions: Tensor) -> Tensor:
        mixed = self.mixer.forward_dense(self._enter(residual, self.mixer_norm), positions)
        return self._after_mixer(residual, mixed)


class Decoder(nn.Module):
    """A causal language model over token ids."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, spec) for spec in config.layers)
        self.norm = RMSNorm(config.hidden_size, config.norm_eps, config.norm_unit_offset)
        self.head = None if config.tie_embeddings else nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def _embed(self, token_ids: Tensor) -> Tensor:
        embedded: Tensor = self.embedding(token_ids)
        if self.config.embedding_scale is not None:
            # Rounded to the weights' dtype before the product, as the published models are trained.
            embedded = embedded * torch.full(
                (), self.config.embedding_scale, dtype=embedded.dtype, device=embedded.device
            )
        return embedded.float() if self.config.residual_in_float32 else embedded

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states (..., hidden) before the last norm -> float32 logits (..., vocab)."""
        weight = self.embedding.weight if self.head is None else self.head.weight
        logits = F.linear(self.norm(hidden.to(self.norm.weight.dtype)), weight).float()
        return logits if self.config.logit_softcap is None else soft_cap(logits, self.config.logit_softcap)

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
