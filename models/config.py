"""What a model is: a tuple of layer specs, each with a mixer that declares what it must remember. No torch."""

from dataclasses import dataclass
from functools import reduce
from typing import Literal

ModelKind = Literal["transformer", "mamba", "hybrid"]

STATE_BYTES = 4  # recurrent state is float32 whatever the weights are: errors in it accumulate over the sequence


@dataclass(frozen=True, slots=True)
class CacheNeeds:
    """Bytes that a layer (or a model) must remember: per token of context, and per sequence at any length."""

    bytes_per_token: int
    bytes_per_sequence: int

    def __add__(self, other: "CacheNeeds") -> "CacheNeeds":
        return CacheNeeds(
            self.bytes_per_token + other.bytes_per_token, self.bytes_per_sequence + other.bytes_per_sequence
        )


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """Causal attention with rotary positions and grouped key/value heads."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_theta: float
    bias: bool = False

    def cache_needs(self, element_bytes: int) -> CacheNeeds:
        return CacheNeeds(2 * self.num_kv_heads * self.head_dim * element_bytes, 0)


@dataclass(frozen=True, slots=True)
class Mamba2Spec:
    """A Mamba-2 (SSD) mixer. d_inner = num_heads * head_dim; B and C are shared by the heads of a group."""

    num_heads: int
    head_dim: int
    state_size: int
    num_groups: int
    conv_kernel: int
    conv_bias: bool
    proj_bias: bool
    chunk_size: int
    norm_eps: float
    time_step_limit: tuple[float, float]

    @property
    def inner_size(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def conv_size(self) -> int:
        """Channels of the causal convolution: x, B and C."""
        return self.inner_size + 2 * self.num_groups * self.state_size

    def cache_needs(self, element_bytes: int) -> CacheNeeds:
        del element_bytes  # the state does not follow the weights' dtype
        conv = self.conv_size * (self.conv_kernel - 1)
        ssm = self.num_heads * self.head_dim * self.state_size
        return CacheNeeds(0, (conv + ssm) * STATE_BYTES)


@dataclass(frozen=True, slots=True)
class MLPSpec:
    """A gated MLP: down(silu(gate(x)) * up(x))."""

    intermediate_size: int
    bias: bool = False


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """One layer: norm + mixer, then (for most transformers) norm + MLP."""

    mixer: AttentionSpec | Mamba2Spec
    mlp: MLPSpec | None


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A whole model. `max_positions` is None where nothing in the model bounds the context."""

    architecture: str
    hidden_size: int
    vocab_size: int
    layers: tuple[LayerSpec, ...]
    norm_eps: float
    tie_embeddings: bool
    max_positions: int | None
    eos_token_ids: tuple[int, ...]
    residual_in_float32: bool = False

    @property
    def kind(self) -> ModelKind:
        attends = {isinstance(layer.mixer, AttentionSpec) for layer in self.layers}
        if attends == {True}:
            return "transformer"
        return "mamba" if attends == {False} else "hybrid"

    def cache_needs(self, element_bytes: int) -> CacheNeeds:
        """Sum over the layers, for cached keys and values of `element_bytes` each."""
        needs = (layer.mixer.cache_needs(element_bytes) for layer in self.layers)
        return reduce(lambda total, one: total + one, needs, CacheNeeds(0, 0))
