"""What a model is: a tuple of layer specs, each with a mixer that declares what it must remember. No torch."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import reduce
from typing import Literal

ModelKind = Literal["transformer", "mamba", "hybrid"]

# Recurrent state is float32 whatever the weights are, unless told otherwise: errors in it accumulate over a sequence.
STATE_BYTES = 4
CONV_STATE_BYTES = 4


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
class GrowthSpec:
    """Queries times 1 + rate * ln(1 + floor(position / positions)), so that far out attention stays as sharp."""

    rate: float
    positions: int


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """Causal attention with grouped key/value heads: over everything before, or over a window of it.

    rope: None for a layer without positions. qk_norm: RMS norm of queries and keys before they are rotated, for each
    head or over the whole projection. output_gate: what is read passes a sigmoid gate before the output projection.
    growth: a factor on the queries that grows with their position. sinks: whether each head has a logit of its own that
    takes a share of the weight and gives nothing.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope: RopeSpec | None
    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: Literal["head", "projection"] | None = None
    scores: ScoreSpec = ScoreSpec()
    output_gate: bool = False
    growth: GrowthSpec | None = None
    sinks: bool = False

    def cache_needs(self, element_bytes: int, state_bytes: int = STATE_BYTES) -> CacheNeeds:
        """All tokens, in a layer with a window too: what lies before the window is masked, not yet given back."""
        del state_bytes
        return CacheNeeds(2 * self.num_kv_heads * self.head_dim * element_bytes, 0)


@dataclass(frozen=True, slots=True)
class Mamba2Spec:
    """A Mamba-2 (SSD) mixer. d_inner = num_heads * head_dim; B and C are shared by the heads of a group.

    gated_norm: whether the output is gated and then normalised group by group, the other way round, or only gated.
    out_bias: whether the output projection has a bias, proj_bias that of the input. projection_scales: factors on what
    the input projection gives as gate, x, B, C and dt.
    """

    num_heads: int
    head_dim: int
    state_size: int
    num_groups: int
    conv_kernel: int
    conv_bias: bool
    proj_bias: bool
    chunk_size: int
    norm_eps: float
    time_step_limit: tuple[float, float] = (0.0, math.inf)
    out_bias: bool = False
    gated_norm: Literal["gate_first", "norm_first"] | None = "gate_first"
    projection_scales: tuple[float, float, float, float, float] | None = None

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

    def cache_needs(self, element_bytes: int, state_bytes: int = STATE_BYTES) -> CacheNeeds:
        del element_bytes  # the state does not follow the weights' dtype
        return state_needs(self, state_bytes)


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

    def cache_needs(self, element_bytes: int, state_bytes: int = STATE_BYTES) -> CacheNeeds:
        del element_bytes  # the state does not follow the weights' dtype
        return state_needs(self, state_bytes)


@dataclass(frozen=True, slots=True)
class DeltaNetSpec:
    """A Gated DeltaNet mixer: a matrix of memory per value head, decayed, corrected and read at every token.

    Each key head serves num_value_heads / num_key_heads neighbouring value heads.
    """

    num_key_heads: int
    num_value_heads: int
    key_head_dim: int
    value_head_dim: int
    conv_kernel: int
    norm_eps: float

    @property
    def key_size(self) -> int:
        return self.num_key_heads * self.key_head_dim

    @property
    def value_size(self) -> int:
        return self.num_value_heads * self.value_head_dim

    @property
    def conv_size(self) -> int:
        """Channels of the causal convolution: queries, keys and values."""
        return 2 * self.key_size + self.value_size

    @property
    def state_shape(self) -> tuple[int, ...]:
        return self.num_value_heads, self.key_head_dim, self.value_head_dim

    def cache_needs(self, element_bytes: int, state_bytes: int = STATE_BYTES) -> CacheNeeds:
        del element_bytes  # the state does not follow the weights' dtype
        return state_needs(self, state_bytes)


RecurrentSpec = Mamba1Spec | Mamba2Spec | DeltaNetSpec


def state_needs(spec: RecurrentSpec, state_bytes: int = STATE_BYTES) -> CacheNeeds:
    """One row of recurrent state: the convolution's last inputs, and the state itself, of state_bytes a number."""
    conv = spec.conv_size * (spec.conv_kernel - 1)
    return CacheNeeds(0, conv * CONV_STATE_BYTES + math.prod(spec.state_shape) * state_bytes)


@dataclass(frozen=True, slots=True)
class ParallelSpec:
    """Attention and a recurrent mixer that read the same input side by side; what they give is added.

    scales: factors on the input of attention, on its output, on the recurrent mixer's input and on its output.
    """

    attention: AttentionSpec
    recurrent: RecurrentSpec
    scales: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)

    def cache_needs(self, element_bytes: int, state_bytes: int = STATE_BYTES) -> CacheNeeds:
        return self.attention.cache_needs(element_bytes) + self.recurrent.cache_needs(element_bytes, state_bytes)


Activation = Literal["silu", "gelu", "gelu_tanh", "relu2"]


@dataclass(frozen=True, slots=True)
class ClampSpec:
    """gate * sigmoid(slope * gate) * (up + 1), of a gate of at most `limit` and an up within it on both sides."""

    slope: float
    limit: float


@dataclass(frozen=True, slots=True)
class MLPSpec:
    """down(activation(gate(x)) * up(x)) or, without a gate, down(activation(up(x))).

    scales: factors on what the gate projection gives, before the activation, and on what the whole MLP gives.
    clamp: how gate and up are combined instead.
    """

    intermediate_size: int
    bias: bool = False
    activation: Activation = "silu"
    gated: bool = True
    scales: tuple[float, float] | None = None
    clamp: ClampSpec | None = None


@dataclass(frozen=True, slots=True)
class SharedSpec:
    """A transformer block that several layers share, before a recurrent mixer that reads what it gives (Zamba2).

    block: which of the blocks. use: the how-manieth layer with such a block this is; its adapters, of adapter_rank, are
    its own: on the MLP and, with attention_adapters, on queries, keys and values.
    """

    attention: AttentionSpec
    mlp: MLPSpec
    recurrent: RecurrentSpec
    block: int
    use: int
    adapter_rank: int
    attention_adapters: bool

    def cache_needs(self, element_bytes: int, state_bytes: int = STATE_BYTES) -> CacheNeeds:
        return self.attention.cache_needs(element_bytes) + self.recurrent.cache_needs(element_bytes, state_bytes)


MixerSpec = AttentionSpec | RecurrentSpec | ParallelSpec | SharedSpec


@dataclass(frozen=True, slots=True)
class RouterSpec:
    """Which of `num_experts` a token reads, and with which weights: its `top_k` best by a softmax or by sigmoids.

    renormalise: whether the weights of those chosen are made to sum to one. selection_bias: a bias that counts for the
    choice and not for the weight; bias: one of the projection, which counts for both. groups: (how many, how many of
    them may be chosen from): the best groups by the sum of their two best. scale: a factor on all weights.
    """

    num_experts: int
    top_k: int
    renormalise: bool
    scoring: Literal["softmax", "sigmoid"] = "softmax"
    selection_bias: bool = False
    bias: bool = False
    groups: tuple[int, int] | None = None
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class ExpertsSpec:
    """A mixture of MLPs, all of one shape, of which a router chooses some for each token.

    shared: an MLP that every token reads too, through a sigmoid gate where shared_gate is set. latent_size: the
    experts read and write a projection of so many dimensions. expert_biases: whether each expert's projections have
    biases.
    """

    router: RouterSpec
    expert: MLPSpec
    shared: MLPSpec | None = None
    shared_gate: bool = False
    latent_size: int | None = None
    expert_biases: bool = False


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """One layer: a mixer, then an MLP, each added to the residual stream; either may be missing.

    norms: where each of the two is normalised: "pre" before it, "post" after it (what it adds), "both", or "inside" of
    a mixer that does it itself.
    """

    mixer: MixerSpec | None
    mlp: MLPSpec | ExpertsSpec | None
    norms: Literal["pre", "post", "both", "inside"] = "pre"


def simple_mixers(layers: Iterable[LayerSpec]) -> Iterator[AttentionSpec | RecurrentSpec]:
    """Every attention and every recurrence, those that share a layer one by one."""
    for mixer in (layer.mixer for layer in layers if layer.mixer is not None):
        yield from (mixer.attention, mixer.recurrent) if isinstance(mixer, ParallelSpec | SharedSpec) else (mixer,)


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A whole model. `max_positions` is None where nothing in the model bounds the context.

    norm_unit_offset: norms multiply by 1 + weight. embedding_scale: embeddings are multiplied by it.
    residual_scale: what mixers and MLPs add is multiplied by it, as logits are by logit_scale.
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
    residual_scale: float | None = None
    logit_scale: float | None = None
    logit_softcap: float | None = None

    @property
    def kind(self) -> ModelKind:
        mixers = [layer.mixer for layer in self.layers if layer.mixer is not None]
        attends = {isinstance(mixer, AttentionSpec) for mixer in mixers}
        if any(isinstance(mixer, ParallelSpec | SharedSpec) for mixer in mixers) or len(attends) == 2:
            return "hybrid"
        return "transformer" if attends == {True} else "mamba"

    def cache_needs(self, element_bytes: int, state_bytes: int = STATE_BYTES) -> CacheNeeds:
        """Sum over the layers, for cached keys and values of `element_bytes` each and states of `state_bytes`."""
        mixers = (layer.mixer for layer in self.layers if layer.mixer is not None)
        needs = (mixer.cache_needs(element_bytes, state_bytes) for mixer in mixers)
        return reduce(lambda total, one: total + one, needs, CacheNeeds(0, 0))
