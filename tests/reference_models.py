"""Small random models of transformers for every family, in odd sizes: what ours are compared with.

On purpose: head_dim no power of two, three queries to a key, a vocabulary that is no multiple of 64, windows shorter
than the prompts, positions beyond those of the unscaled rotary angles.
"""

from collections.abc import Callable
from typing import Any

from transformers import (
    BambaConfig,
    BambaForCausalLM,
    FalconH1Config,
    FalconH1ForCausalLM,
    FalconMambaConfig,
    FalconMambaForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GptOssConfig,
    GptOssForCausalLM,
    GraniteMoeHybridConfig,
    GraniteMoeHybridForCausalLM,
    JambaConfig,
    JambaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Mamba2Config,
    Mamba2ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    Ministral3Config,
    Ministral3ForCausalLM,
    MinistralConfig,
    MinistralForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    NemotronHConfig,
    NemotronHForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3_5ForCausalLM,
    Qwen3_5MoeForCausalLM,
    Qwen3_5MoeTextConfig,
    Qwen3_5TextConfig,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
    Zamba2Config,
    Zamba2ForCausalLM,
)

VOCAB_SIZE = 131
# The reference bounds the step of these from below in whole runs of tokens, but not when it goes on from its cache.
CACHE_CONTRADICTS = ("nemotron-h-bounded-step",)
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 72,
    "intermediate_size": 100,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 24,
}
YARN = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 20}
LINEAR = {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 3.0}
DEFAULT = {"rope_type": "default", "rope_theta": 1234.5}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 2.0}


def llama(**options: Any) -> PreTrainedModel:
    options = {"head_dim": 20, "rope_parameters": DEFAULT, **options}
    return LlamaForCausalLM(LlamaConfig(**SIZES, **options))


def mistral(**options: Any) -> PreTrainedModel:
    return MistralForCausalLM(MistralConfig(**SIZES, head_dim=20, rope_parameters=DEFAULT, **options))


def ministral(**options: Any) -> PreTrainedModel:
    return MinistralForCausalLM(MinistralConfig(**SIZES, head_dim=20, rope_parameters=DEFAULT, **options))


def growing(**options: Any) -> dict[str, Any]:
    """Rotary fields of queries that grow, within the lengths of the tests several times."""
    return {**YARN, "llama_4_scaling_beta": 0.3, "max_position_embeddings": 80, **options}


def ministral3(rope: dict[str, Any], **options: Any) -> PreTrainedModel:
    config = Ministral3Config(**SIZES, head_dim=20, rope_parameters=rope, max_position_embeddings=80, **options)
    return Ministral3ForCausalLM(config)


def qwen2(**options: Any) -> PreTrainedModel:
    return Qwen2ForCausalLM(Qwen2Config(**SIZES, **options))


def qwen3(**options: Any) -> PreTrainedModel:
    return Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=20, **options))


def smollm3(**options: Any) -> PreTrainedModel:
    return SmolLM3ForCausalLM(SmolLM3Config(**SIZES, **options))


def olmo2(**options: Any) -> PreTrainedModel:
    return Olmo2ForCausalLM(Olmo2Config(**SIZES, **options))


def gemma2(**options: Any) -> PreTrainedModel:
    return Gemma2ForCausalLM(Gemma2Config(**SIZES, head_dim=20, query_pre_attn_scalar=15, **options))


def gemma3(**options: Any) -> PreTrainedModel:
    return Gemma3ForCausalLM(Gemma3TextConfig(**SIZES, head_dim=20, query_pre_attn_scalar=15, **options))


def phi3(**options: Any) -> PreTrainedModel:
    return Phi3ForCausalLM(Phi3Config(**SIZES, **options))


def longrope(positions: int) -> dict[str, Any]:
    """For heads of 12, of which 8 entries are rotated: four pairs."""
    return {
        "rope_type": "longrope",
        "rope_theta": 10_000.0,
        "partial_rotary_factor": 0.7,
        "short_factor": [1.0, 1.1, 1.3, 1.7],
        "long_factor": [1.0, 2.0, 4.0, 8.0],
        "original_max_position_embeddings": positions,
        "factor": 4.0,
    }


def mixtral(**options: Any) -> PreTrainedModel:
    return MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=5, **options))


def qwen3_moe(**options: Any) -> PreTrainedModel:
    config = Qwen3MoeConfig(**SIZES, moe_intermediate_size=44, num_experts=7, head_dim=20, **options)
    return Qwen3MoeForCausalLM(config)


def gpt_oss(**options: Any) -> PreTrainedModel:
    config = GptOssConfig(**{**SIZES, "intermediate_size": 44, **options}, head_dim=20, num_experts_per_tok=3)
    return GptOssForCausalLM(config)


# Mamba-2 inside of hybrids: eight heads of 18 in two groups.
MIXER: dict[str, Any] = {
    "mamba_n_heads": 8,
    "mamba_d_head": 18,
    "mamba_n_groups": 2,
    "mamba_d_state": 10,
    "mamba_d_conv": 3,
    "mamba_chunk_size": 16,
}


def bamba(**options: Any) -> PreTrainedModel:
    return BambaForCausalLM(BambaConfig(**SIZES, **MIXER, attn_layer_indices=[1], **options))


def granite(**options: Any) -> PreTrainedModel:
    config = GraniteMoeHybridConfig(
        **SIZES,
        **MIXER,
        shared_intermediate_size=60,
        layer_types=["linear_attention", "full_attention", "linear_attention"],
        embedding_multiplier=12,
        attention_multiplier=0.4,
        residual_multiplier=0.22,
        logits_scaling=6,
        **options,
    )
    return GraniteMoeHybridForCausalLM(config)


def jamba(**options: Any) -> PreTrainedModel:
    config = JambaConfig(
        **SIZES, mamba_d_state=10, mamba_dt_rank=5, attn_layer_period=3, attn_layer_offset=1, **options
    )
    return JambaForCausalLM(config)


def falcon_h1(**options: Any) -> PreTrainedModel:
    config = FalconH1Config(
        **SIZES,
        **{**MIXER, "mamba_d_head": 12},
        mamba_d_ssm=96,
        key_multiplier=0.7,
        attention_in_multiplier=0.9,
        attention_out_multiplier=1.2,
        ssm_in_multiplier=0.8,
        ssm_out_multiplier=1.3,
        ssm_multipliers=[0.6, 1.4, 0.9, 1.1, 0.7],
        mlp_multipliers=[0.8, 1.2],
        embedding_multiplier=5.6,
        lm_head_multiplier=0.3,
        **options,
    )
    return FalconH1ForCausalLM(config)


def nemotron_h(kinds: list[str], **options: Any) -> PreTrainedModel:
    sizes = {key: value for key, value in SIZES.items() if key != "num_hidden_layers"}
    config = NemotronHConfig(
        **sizes,
        layers_block_type=kinds,
        head_dim=20,
        ssm_state_size=10,
        mamba_num_heads=8,
        mamba_head_dim=18,
        n_groups=2,
        conv_kernel=3,
        chunk_size=16,
        n_routed_experts=8,
        moe_intermediate_size=28,
        moe_shared_expert_intermediate_size=44,
        num_experts_per_tok=3,
        **options,
    )
    return NemotronHForCausalLM(config)


# Where a query meets no key, what is read is nearly nothing and the norm after it blows up rounding: hence the eps.
DELTA: dict[str, Any] = {
    "rms_norm_eps": 1e-4,
    "linear_key_head_dim": 12,
    "linear_value_head_dim": 10,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 6,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
}
MIXTURE: dict[str, Any] = {
    "moe_intermediate_size": 44,
    "shared_expert_intermediate_size": 30,
    "num_experts": 7,
    "num_experts_per_tok": 3,
}


def qwen3_next(**options: Any) -> PreTrainedModel:
    return Qwen3NextForCausalLM(Qwen3NextConfig(**SIZES, **DELTA, **MIXTURE, head_dim=24, **options))


def qwen3_5(**options: Any) -> PreTrainedModel:
    return Qwen3_5ForCausalLM(Qwen3_5TextConfig(**SIZES, **DELTA, head_dim=24, **options))


def qwen3_5_moe(**options: Any) -> PreTrainedModel:
    sizes = {key: value for key, value in SIZES.items() if key != "intermediate_size"}
    return Qwen3_5MoeForCausalLM(Qwen3_5MoeTextConfig(**sizes, **DELTA, **MIXTURE, head_dim=24, **options))


def zamba2(**options: Any) -> PreTrainedModel:
    """Three uses of two shared blocks."""
    config = Zamba2Config(
        **{**SIZES, "num_hidden_layers": 5, **options},
        layers_block_type=["linear_attention", "hybrid", "hybrid", "linear_attention", "hybrid"],
        mamba_d_state=10,
        mamba_d_conv=3,
        mamba_ngroups=2,
        n_mamba_heads=8,
        chunk_size=16,
        num_mem_blocks=2,
        adapter_rank=6,
        time_step_min=1e-9,
    )
    return Zamba2ForCausalLM(config)


MAMBA: dict[str, Any] = {"vocab_size": VOCAB_SIZE, "hidden_size": 40, "state_size": 10, "num_hidden_layers": 3}


def mamba2(tied: bool) -> PreTrainedModel:
    config = Mamba2Config(
        vocab_size=VOCAB_SIZE,
        hidden_size=48,
        expand=2,
        num_heads=8,
        head_dim=12,
        state_size=10,
        n_groups=2 if tied else 1,
        conv_kernel=4 if tied else 3,
        chunk_size=16,
        num_hidden_layers=3,
        use_bias=not tied,
        use_conv_bias=tied,
        tie_word_embeddings=tied,
    )
    return Mamba2ForCausalLM(config)


BUILDERS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama-tied": lambda: llama(tie_word_embeddings=True),
    "llama-untied-biased": lambda: llama(attention_bias=True, mlp_bias=True),
    "llama-dynamic": lambda: llama(rope_parameters=DYNAMIC, max_position_embeddings=100),
    "llama-linear": lambda: llama(rope_parameters=LINEAR, max_position_embeddings=32),
    "llama-llama3": lambda: llama(rope_parameters=LLAMA3, max_position_embeddings=192),
    "llama-yarn": lambda: llama(rope_parameters=YARN, max_position_embeddings=80),
    "llama-yarn-untruncated": lambda: llama(
        rope_parameters={**YARN, "truncate": False, "beta_fast": 8.0, "mscale": 1.0, "mscale_all_dim": 0.7},
        max_position_embeddings=80,
    ),
    "mistral-window": lambda: mistral(sliding_window=11),
    "mistral-full-tied": lambda: mistral(sliding_window=None, tie_word_embeddings=True),
    "ministral-mixed": lambda: ministral(
        sliding_window=9, layer_types=["sliding_attention", "full_attention", "sliding_attention"]
    ),
    "ministral3": lambda: ministral3(growing(mscale=1.0, mscale_all_dim=1.0)),
    "ministral3-window-tied": lambda: ministral3(
        growing(original_max_position_embeddings=13, llama_4_scaling_beta=0.1),
        sliding_window=9,
        tie_word_embeddings=True,
    ),
    "qwen2-tied": lambda: qwen2(tie_word_embeddings=True),
    "qwen2-late-windows": lambda: qwen2(use_sliding_window=True, sliding_window=7, max_window_layers=1),
    "qwen3-biased": lambda: qwen3(attention_bias=True),
    "qwen3-yarn-tied": lambda: qwen3(rope_parameters=YARN, max_position_embeddings=20, tie_word_embeddings=True),
    "smollm3": lambda: smollm3(no_rope_layer_interval=2),
    "smollm3-window-biased": lambda: smollm3(
        no_rope_layers=[0, 1, 0],
        use_sliding_window=True,
        sliding_window=10,
        attention_bias=True,
        mlp_bias=True,
        tie_word_embeddings=False,
    ),
    "olmo2": lambda: olmo2(),
    "olmo2-tied-biased": lambda: olmo2(tie_word_embeddings=True, attention_bias=True),
    "gemma2": lambda: gemma2(sliding_window=10),
    "gemma2-strong-caps": lambda: gemma2(
        sliding_window=3, attn_logit_softcapping=0.5, final_logit_softcapping=1.0, tie_word_embeddings=False
    ),
    "gemma2-uncapped-biased": lambda: gemma2(
        attn_logit_softcapping=None, final_logit_softcapping=None, attention_bias=True, sliding_window=200
    ),
    "gemma3": lambda: gemma3(sliding_window=9, sliding_window_pattern=3),
    "gemma3-linear": lambda: gemma3(
        sliding_window=9,
        layer_types=["full_attention", "sliding_attention", "full_attention"],
        final_logit_softcapping=2.0,
        rope_parameters={
            "full_attention": {"rope_type": "linear", "rope_theta": 20_000.0, "factor": 8.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
        },
    ),
    "phi3-window": lambda: phi3(sliding_window=13),
    "phi3-longrope": lambda: phi3(
        rope_parameters=longrope(80), original_max_position_embeddings=80, max_position_embeddings=320
    ),
    "phi3-partial-tied": lambda: phi3(
        rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
        tie_word_embeddings=True,
    ),
    "mixtral": lambda: mixtral(head_dim=20, num_experts_per_tok=2),
    "mixtral-window-tied": lambda: mixtral(sliding_window=11, num_experts_per_tok=3, tie_word_embeddings=True),
    "qwen3-moe": lambda: qwen3_moe(num_experts_per_tok=3, norm_topk_prob=True),
    "qwen3-moe-mixed": lambda: qwen3_moe(
        num_experts_per_tok=2,
        mlp_only_layers=[0],
        decoder_sparse_step=2,
        use_sliding_window=True,
        sliding_window=9,
        attention_bias=True,
    ),
    "gpt-oss": lambda: gpt_oss(
        num_local_experts=7,
        sliding_window=9,
        swiglu_limit=0.7,
        rope_parameters={**YARN, "truncate": False},
        max_position_embeddings=80,
    ),
    "gpt-oss-unbiased-tied": lambda: gpt_oss(
        num_local_experts=4,
        attention_bias=False,
        sliding_window=13,
        swiglu_alpha=0.9,
        layer_types=["full_attention", "sliding_attention", "sliding_attention"],
        tie_word_embeddings=True,
    ),
    "mamba-tied": lambda: MambaForCausalLM(MambaConfig(**MAMBA, conv_kernel=4)),
    "mamba-untied-biased": lambda: MambaForCausalLM(
        MambaConfig(
            **MAMBA, conv_kernel=3, use_bias=True, use_conv_bias=False, time_step_rank=5, tie_word_embeddings=False
        )
    ),
    "falcon-mamba": lambda: FalconMambaForCausalLM(FalconMambaConfig(**MAMBA, mixer_rms_eps=1e-3)),
    "bamba": lambda: bamba(rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}),
    "bamba-tied-biased": lambda: bamba(
        tie_word_embeddings=True, attention_bias=True, mlp_bias=True, mamba_proj_bias=True, mamba_conv_bias=False
    ),
    "granite-hybrid": lambda: granite(num_local_experts=5, position_embedding_type="rope"),
    "granite-hybrid-dense": lambda: granite(num_local_experts=0, tie_word_embeddings=True),
    "jamba": lambda: jamba(num_experts=4, expert_layer_period=2, expert_layer_offset=1),
    "jamba-dense-biased": lambda: jamba(num_experts=1, mamba_proj_bias=True, tie_word_embeddings=True),
    "falcon-h1": lambda: falcon_h1(),
    "falcon-h1-normed": lambda: falcon_h1(
        mamba_rms_norm=True, projectors_bias=True, attention_bias=True, mlp_bias=True, tie_word_embeddings=True
    ),
    "falcon-h1-gate-first": lambda: falcon_h1(mamba_rms_norm=True, mamba_norm_before_gate=False),
    "nemotron-h": lambda: nemotron_h(
        ["linear_attention", "mlp", "full_attention", "linear_attention", "mlp"], time_step_min=1e-9
    ),
    "nemotron-h-bounded-step": lambda: nemotron_h(["linear_attention", "full_attention"], time_step_min=0.02),
    "nemotron-h-moe": lambda: nemotron_h(
        ["linear_attention", "moe", "full_attention", "moe"],
        n_group=4,
        topk_group=2,
        routed_scaling_factor=1.7,
        mlp_bias=True,
        use_bias=True,
    ),
    "nemotron-h-latent": lambda: nemotron_h(
        ["moe", "full_attention", "linear_attention"], moe_latent_size=24, norm_topk_prob=False
    ),
    "qwen3-next": lambda: qwen3_next(mlp_only_layers=[1]),
    "qwen3-next-biased": lambda: qwen3_next(attention_bias=True, norm_topk_prob=False, tie_word_embeddings=True),
    "qwen3-5": lambda: qwen3_5(tie_word_embeddings=True),
    "qwen3-5-moe": lambda: qwen3_5_moe(),
    "zamba2": lambda: zamba2(use_mem_rope=True, use_shared_attention_adapter=True, num_key_value_heads=6),
    "zamba2-grouped-biased": lambda: zamba2(add_bias_linear=True),
    "mamba2-tied": lambda: mamba2(True),
    "mamba2-untied-biased": lambda: mamba2(False),
}
