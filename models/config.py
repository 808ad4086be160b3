"""What a model is: a tuple of layer specs, each with a mixer that declares what it must remember. No torch."""

import math
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
class LinearScaling:
    """All frequencies divided by `factor`."""

    factor: float


@dataclass(frozen=True, slots=True)
class Llama3Scaling:
    """Low frequencies divided by `factor`, high ones kept, those between blended (Llama 3.1)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_positions: int


@dataclass(frozen=True, slots=True)
class YarnScaling:
    """As Llama3Scaling by a linear ramp over the dimensions; cosines and sines times `attention_factor`."""

    factor: float
    original_positions: int
    attention_factor: float
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True


@dataclass(frozen=True, slots=True)
class LongRopeScaling:
    """Each frequency divided by a factor of its own; cosines and sines times `attention_factor` (Phi-3)."""

    factors: tuple[float, ...]
    attention_factor: float


RopeScaling = LinearScaling | Llama3Scaling | YarnScaling | LongRopeScaling


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """Rotary positions of the first `rotary_dim` entries of each head; the others are passed on as they are."""

    theta: float
    rotary_dim: int
    scaling: RopeScaling | None = None


@dataclass(frozen=True, slots=True)
class ScoreSpec:
    """How queries meet keys: softmax(cap(scale * q.k)) over the last `window` positions, the query's own included.

    scale None is head_dim**-0.5; softcap c makes scores c * tanh(score / c); window None is everything before.
    """

    scale: float | None = None
    softcap: float | None = None
    window: int | None = None


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """Causal attention with grouped key/value heads: over everything before, or over a window of it.

    rope: None for a layer without positions. qk_norm: RMS norm of queries and keys before they are rotated, for each
    head or over the whole projection.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope: RopeSpec | None
    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: Literal["head", "projection"] | None = None
    scores: ScoreSpec = ScoreSpec()

    def cache_needs(self, element_bytes: int) -> CacheNeeds:
        """All tokens, in a layer with a window too: what lies before the window is masked, not yet given back."""
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

    @property
    def state_shape(self) -> tuple[int, ...]:
        return self.num_heads, self.head_dim, self.state_size

    def cache_needs(self, element_bytes: int) -> CacheNeeds:
        del element_bytes  # the state does not follow the weights' dtype
        return state_needs(self)


@dataclass(frozen=True, slots=True)
class Mamba1Spec:
    """A Mamba-1 (selective scan) mixer: every channel of `inner_size` has a step and a decay of its own.

    inner_norm_eps: the eps of RMS norms over the projected step, B and C, or None without such norms;
    inner_norm_weights: whether those have weights.
    """

    inner_size: int
    state_size: int
    step_rank: int
    conv_kernel: int
    conv_bias: bool
    proj_bias: bool
    inner_norm_eps: float | None = None
    inner_norm_weights: bool = False

    @property
    def conv_size(self) -> int:
        """Channels of the causal convolution."""
        return self.inner_size

    @property
    def state_shape(self) -> tuple[int, ...]:
        return self.inner_size, self.state_size

    def cache_needs(self, element_bytes: int) -> CacheNeeds:
        del element_bytes  # the state does not follow the weights' dtype
        return state_needs(self)


RecurrentSpec = Mamba1Spec | Mamba2Spec
MixerSpec = AttentionSpec | RecurrentSpec
Activation = Literal["silu", "gelu_tanh"]


def state_needs(spec: RecurrentSpec) -> CacheNeeds:
    """One row of recurrent state: the convolution's last inputs and the state itself."""
    conv = spec.conv_size * (spec.conv_kernel - 1)
    return CacheNeeds(0, (conv + math.prod(spec.state_shape)) * STATE_BYTES)


@dataclass(frozen=True, slots=True)
class MLPSpec:
    """A gated MLP: down(activation(gate(x)) * up(x))."""

    intermediate_size: int
    bias: bool = False
    activation: Activation = "silu"


@dataclass(frozen=True, slots=True)
class ExpertsSpec:
    """A mixture of gated MLPs, of which a router chooses `top_k` for each token and weights them by its softmax.

    renormalise: whether the weights of those chosen are made to sum to one.
    """

    num_experts: int
    top_k: int
    intermediate_size: int
    renormalise: bool
    activation: Activation = "silu"


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """One layer: a mixer, then (for most transformers) an MLP, each added to the residual stream.

    norms: where each of the two is normalised: "pre" before it, "post" after it (what it adds), "both".
    """

    mixer: MixerSpec
    mlp: MLPSpec | ExpertsSpec | None
    norms: Literal["pre", "post", "both"] = "pre"


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A whole model. `max_positions` is None where nothing in the model bounds the context.

    norm_unit_offset: norms multiply by 1 + weight. embedding_scale: embeddings are multiplied by it.
    logit_softcap: logits become c * tanh(logit / c).
    """

    architecture: str
    hidden_size: int
    vocab_size: int
    layers: tuple[LayerSpec, ...]
    norm_eps: float
    tie_embeddings: bool
    max_positions: int | None
    eos_token_ids: tuple[int, ...]
    residual_in_float32: bool = False
    norm_unit_offset: bool = False
    embedding_scale: float | None = None
    logit_softcap: float | None = None

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
