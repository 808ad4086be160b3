"""The one decoder: an embedding, a list of layers built from their specs, a norm and a head."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from models.activations import Activating
from models.attention import Attention
from models.batch import ForwardBatch
from models.cache import LayerCache
from models.config import (
    AttentionSpec,
    ExpertsSpec,
    LayerSpec,
    Mamba1Spec,
    Mamba2Spec,
    MixerSpec,
    MLPSpec,
    ModelConfig,
    ParallelSpec,
    RecurrentSpec,
    SharedSpec,
)
from models.delta_net import DeltaNet
from models.experts import MixtureOfExperts
from models.layers import MLP, RMSNorm, soft_cap
from models.linear import LayOut, Linear, Panels, Projecting, laid_out
from models.parallel import Parallel
from models.shared_block import SharedBlock, SharedThenRecurrent
from models.ssm import Mamba1, Mamba2, RecurrentMixer

Mixer = Attention | RecurrentMixer | Parallel | SharedThenRecurrent


def build_recurrent(hidden_size: int, spec: RecurrentSpec) -> RecurrentMixer:
    if isinstance(spec, Mamba1Spec):
        return Mamba1(hidden_size, spec)
    return Mamba2(hidden_size, spec) if isinstance(spec, Mamba2Spec) else DeltaNet(hidden_size, spec)


def build_shared(config: ModelConfig) -> dict[int, SharedBlock]:
    """The blocks that layers share, by their numbers."""
    uses: dict[int, list[SharedSpec]] = {}
    for layer in config.layers:
        if isinstance(layer.mixer, SharedSpec):
            uses.setdefault(layer.mixer.block, []).append(layer.mixer)
    return {block: SharedBlock(config, specs) for block, specs in uses.items()}


def build_mixer(config: ModelConfig, spec: MixerSpec, shared: Mapping[int, SharedBlock]) -> Mixer:
    if isinstance(spec, AttentionSpec):
        return Attention(config, spec)
    if isinstance(spec, ParallelSpec):
        return Parallel(config, spec, build_recurrent(config.hidden_size, spec.recurrent))
    if isinstance(spec, SharedSpec):
        recurrent = build_recurrent(config.hidden_size, spec.recurrent)
        return SharedThenRecurrent(config, spec, shared[spec.block], recurrent)
    return build_recurrent(config.hidden_size, spec)


def build_mlp(hidden_size: int, spec: MLPSpec | ExpertsSpec) -> MLP | MixtureOfExperts:
    return MLP(hidden_size, spec) if isinstance(spec, MLPSpec) else MixtureOfExperts(hidden_size, spec)


class Layer(Activating):
    """A mixer and an MLP, where the spec has them, each added to the residual stream, with norms before or after."""

    def __init__(self, config: ModelConfig, spec: LayerSpec, shared: Mapping[int, SharedBlock]) -> None:
        super().__init__()
        self.residual_scale = config.residual_scale

        def norm(place: Literal["pre", "post"], part: object | None) -> RMSNorm | None:
            there = part is not None and spec.norms in (place, "both")
            return RMSNorm(config.hidden_size, config.norm_eps, config.norm_unit_offset) if there else None

        self.mixer_norm = norm("pre", spec.mixer)
        self.mixer = build_mixer(config, spec.mixer, shared) if spec.mixer else None
        self.mixer_post_norm = norm("post", spec.mixer)
        self.mlp_norm = norm("pre", spec.mlp)
        self.mlp = build_mlp(config.hidden_size, spec.mlp) if spec.mlp else None
        self.mlp_post_norm = norm("post", spec.mlp)

    def _enter(self, residual: Tensor, norm: RMSNorm | None) -> Tensor:
        """What a mixer or MLP reads: the residual in the weights' dtype, normalised where there is a norm before."""
        if norm is None:
            return residual.to(next(self.parameters()).dtype)
        normalised: Tensor = norm(residual.to(norm.weight.dtype))
        return normalised

    def _add(self, residual: Tensor, added: Tensor, post_norm: RMSNorm | None) -> Tensor:
        if post_norm is not None:
            added = post_norm(added)
        return self.functions.add(residual, added if self.residual_scale is None else added * self.residual_scale)

    def _mlp(self, residual: Tensor) -> Tensor:
        if self.mlp is None:
            return residual
        return self._add(residual, self.mlp(self._enter(residual, self.mlp_norm)), self.mlp_post_norm)

    def forward(self, residual: Tensor, embedded: Tensor, batch: ForwardBatch, cache: LayerCache) -> Tensor:
        """residual (t, hidden) -> the same with what mixer and MLP add; embedded (t, hidden) is where it began."""
        if self.mixer is not None:
            x = self._enter(residual, self.mixer_norm)
            if isinstance(self.mixer, SharedThenRecurrent):
                mixed = self.mixer(x, embedded.to(x.dtype), batch, cache)
            else:
                mixed = self.mixer(x, batch, cache)
            residual = self._add(residual, mixed, self.mixer_post_norm)
        return self._mlp(residual)

    def forward_dense(self, residual: Tensor, embedded: Tensor, positions: Tensor) -> Tensor:
        if self.mixer is not None:
            x = self._enter(residual, self.mixer_norm)
            if isinstance(self.mixer, SharedThenRecurrent):
                mixed = self.mixer.forward_dense(x, embedded.to(x.dtype), positions)
            else:
                mixed = self.mixer.forward_dense(x, positions)
            residual = self._add(residual, mixed, self.mixer_post_norm)
        return self._mlp(residual)


class Decoder(Projecting):
    """A causal language model over token ids."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        shared = build_shared(config)
        self.layers = nn.ModuleList(Layer(config, spec, shared) for spec in config.layers)
        self.norm = RMSNorm(config.hidden_size, config.norm_eps, config.norm_unit_offset)
        self.head = None if config.tie_embeddings else Linear(config.hidden_size, config.vocab_size, bias=False)
        self._tied: Panels | None = None

    def lay_out(self, lay_out: LayOut) -> None:
        if self.head is None and self._tied is None:
            self._tied = laid_out(self.embedding.weight, lay_out)

    def _embed(self, token_ids: Tensor) -> Tensor:
        embedded: Tensor = self.embedding(token_ids) if self._tied is None else self._tied.rows(token_ids)
        if self.config.embedding_scale is not None:
            # Rounded to the weights' dtype before the product, as the published models are trained.
            embedded = embedded * torch.full(
                (), self.config.embedding_scale, dtype=embedded.dtype, device=embedded.device
            )
        return embedded.float() if self.config.residual_in_float32 else embedded

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states (..., hidden) before the last norm -> float32 logits (..., vocab)."""
        tied = self.embedding.weight if self._tied is None else self._tied
        weight = tied if self.head is None else self.head.matrix
        logits = self.linear(self.norm(hidden.to(self.norm.weight.dtype)), weight).float()
        if self.config.logit_scale is not None:
            logits = logits * self.config.logit_scale
        return logits if self.config.logit_softcap is None else soft_cap(logits, self.config.logit_softcap)

    def forward(self, batch: ForwardBatch, caches: Sequence[LayerCache]) -> Tensor:
        """Read the batch's new tokens, update the caches, and return logits.

        Returns:
            (r, vocab) float32, one row for each of batch.logit_rows.
        """
        return self.logits(self.hidden(batch, caches)[batch.logit_rows])

    def hidden(self, batch: ForwardBatch, caches: Sequence[LayerCache]) -> Tensor:
        """The same without the head: (t, hidden) hidden states before the last norm, one row for each new token."""
        residual = embedded = self._embed(batch.token_ids)
        for layer, cache in zip(self.layers, caches, strict=True):
            residual = layer(residual, embedded, batch, cache)
        return residual

    def forward_dense(self, token_ids: Tensor, positions: Tensor | None = None) -> Tensor:
        """Whole sequences without a cache: the differentiable twin of `forward`, for training and tests.

        Args:
            token_ids: (b, l) int64. positions: (b, l) int64, by default 0 .. l - 1.
        Returns:
            (b, l, hidden) hidden states before the last norm; `logits` makes logits of them.
        """
        if positions is None:
            positions = torch.arange(token_ids.shape[1], device=token_ids.device).expand_as(token_ids)
        residual = embedded = self._embed(token_ids)
        for layer in self.layers:
            assert isinstance(layer, Layer)
            residual = layer.forward_dense(residual, embedded, positions)
        return residual
