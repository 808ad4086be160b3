"""What a config.json asks for: every option is honoured or refused by name, in today's style and in older ones."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from reference_models import YARN
from reference_wrapped import BUILDERS
from transformers import AutoConfig

from models.config import (
    AttentionSpec,
    ClampSpec,
    ExpertsSpec,
    MixerSpec,
    MLPSpec,
    ModelConfig,
    ParallelSpec,
    SharedSpec,
)
from models.decoder import Decoder
from models.errors import ModelError, UnsupportedModelError
from models.families import FAMILIES, read_config

IDS = torch.randint(0, 131, (1, 60), generator=torch.Generator().manual_seed(9))


@pytest.fixture
def edited(pairs, tmp_path):
    """A copy of a checkpoint whose config.json was changed; a change to `...` removes the field."""

    def edit(name, **changes):
        shutil.copytree(pairs(name).directory, tmp_path / name)
        path = tmp_path / name / "config.json"
        fields = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({key: value for key, value in fields.items() if value is not ...}))
        return path.parent

    return edit


def test_every_family_is_compared_with_the_reference():
    """The first layout of Mamba, which transformers does not write, in test_mamba_original.py."""
    assert {type(build()).__name__ for build in BUILDERS.values()} == set(FAMILIES) - {"MambaLMHeadModel"}


def changed_mixer(mixer: MixerSpec | None, whole: str, part: str, value: object) -> MixerSpec | None:
    """The mixer, and those inside of a parallel one, with a field replaced where it has it."""
    if isinstance(mixer, ParallelSpec | SharedSpec):
        if whole == "parallel":
            return replace(mixer, **{part: value})
        attention = changed_mixer(mixer.attention, whole, part, value)
        return replace(mixer, attention=attention, recurrent=changed_mixer(mixer.recurrent, whole, part, value))
    if isinstance(mixer, AttentionSpec) and whole == "scores":
        return replace(mixer, scores=replace(mixer.scores, **{part: value}))
    if isinstance(mixer, AttentionSpec) and whole == "rope" and mixer.rope is not None:
        return replace(mixer, rope=replace(mixer.rope, **{part: value}))
    return replace(mixer, **{part: value}) if whole == "mixer" and hasattr(mixer, part) else mixer


def changed_mlp(
    mlp: MLPSpec | ExpertsSpec | None, whole: str, part: str, value: object
) -> MLPSpec | ExpertsSpec | None:
    if isinstance(mlp, ExpertsSpec) and whole == "router":
        return replace(mlp, router=replace(mlp.router, **{part: value}))
    if isinstance(mlp, ExpertsSpec) and whole == "expert":
        return replace(mlp, expert=replace(mlp.expert, **{part: value}))
    return replace(mlp, **{part: value}) if whole == "mlp" and hasattr(mlp, part) else mlp


def without(config: ModelConfig, **changes) -> ModelConfig:
    """The config with fields of every layer's mixer (or its scores, or the layer, or the whole) replaced."""
    for name, value in changes.items():
        whole, _, part = name.partition("__")
        if whole == "model":
            config = replace(config, **{part: value})
            continue
        layers = [
            replace(
                layer,
                mixer=changed_mixer(layer.mixer, whole, part, value),
                mlp=changed_mlp(layer.mlp, whole, part, value),
            )
            for layer in config.layers
        ]
        config = replace(config, layers=tuple(layers))
    return config


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("llama-linear", {"rope__scaling": None}),
        ("llama-llama3", {"rope__scaling": None}),
        ("llama-yarn", {"rope__scaling": None}),
        ("phi3-longrope", {"rope__scaling": None}),
        ("mistral-window", {"scores__window": None}),
        ("mistral-window", {"scores__window": 12}),
        ("ministral3", {"mixer__growth": None}),
        ("ministral3-window-tied", {"scores__window": None}),
        ("qwen2-late-windows", {"scores__window": None}),
        ("smollm3", {"mixer__rope": None}),
        ("gemma2", {"scores__softcap": None}),
        ("gemma2", {"scores__scale": None}),
        ("gemma2", {"model__logit_softcap": None}),
        ("gemma2", {"model__embedding_scale": None}),
        ("gemma2", {"model__norm_unit_offset": False}),
        ("gemma3", {"rope__theta": 1e6}),
        ("mixtral", {"router__renormalise": False}),
        ("mixtral", {"router__top_k": 3}),
        ("qwen3-moe-mixed", {"router__renormalise": True}),
        ("gpt-oss", {"scores__window": None}),
        ("gpt-oss", {"rope__scaling": None}),
        ("gpt-oss", {"expert__clamp": ClampSpec(1.702, 7.0)}),
        ("gpt-oss", {"expert__clamp": None}),
        ("gpt-oss-unbiased-tied", {"expert__clamp": ClampSpec(1.702, 7.0)}),
        ("gpt-oss", {"router__renormalise": False}),
        ("nemotron-h-moe", {"router__groups": None}),
        ("nemotron-h-moe", {"router__scale": 1.0}),
        ("nemotron-h-moe", {"router__scoring": "softmax"}),
        ("nemotron-h-latent", {"router__renormalise": True}),
        ("nemotron-h-bounded-step", {"mixer__time_step_limit": (0.0, float("inf"))}),
        ("jamba", {"router__renormalise": True}),
        ("jamba", {"mixer__inner_norm_eps": 1e-2}),
        ("granite-hybrid", {"model__residual_scale": None}),
        ("granite-hybrid", {"model__logit_scale": None}),
        ("granite-hybrid", {"model__embedding_scale": None}),
        ("granite-hybrid", {"scores__scale": None}),
        ("bamba", {"rope__rotary_dim": 12}),
        ("falcon-h1", {"parallel__scales": (1.0, 1.2, 0.8, 1.3)}),
        ("falcon-h1", {"parallel__scales": (0.9, 1.0, 0.8, 1.3)}),
        ("falcon-h1", {"parallel__scales": (0.9, 1.2, 1.0, 1.3)}),
        ("falcon-h1", {"parallel__scales": (0.9, 1.2, 0.8, 1.0)}),
        ("falcon-h1", {"scores__scale": None}),
        ("falcon-h1", {"mixer__projection_scales": None}),
        ("falcon-h1-normed", {"mixer__gated_norm": "gate_first"}),
        ("falcon-h1", {"mlp__scales": None}),
        ("qwen3-next", {"rope__rotary_dim": 24}),
        ("zamba2", {"scores__scale": None}),
        ("zamba2", {"rope__theta": 100.0}),
        ("qwen3-5", {"model__norm_unit_offset": False}),
        ("qwen3-moe-mixed", {"scores__window": None}),
        ("mixtral-window-tied", {"scores__window": None}),
        ("falcon-mamba", {"mixer__inner_norm_eps": None}),
        ("falcon-mamba", {"mixer__inner_norm_eps": 1e-6}),
    ],
)
def test_each_option_tells_in_the_logits(pairs, name, changes):
    """Without it (or with another value) the logits are others, so that the comparisons with the reference see it."""
    ours = pairs(name).ours
    other = Decoder(without(ours.config, **changes))
    other.load_state_dict({key: value.cpu() for key, value in pairs(name).weights.items()})
    with torch.inference_mode():
        expected = ours.logits(ours.forward_dense(IDS.to(ours.embedding.weight.device))).cpu()
        assert (other.logits(other.forward_dense(IDS)) - expected).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("llama-tied", {"hidden_act": "relu"}, "hidden_act = 'relu' is not supported; supported: 'silu'"),
        ("llama-tied", {"quantization_config": {"quant_method": "fp8"}}, "quantization_config"),
        ("llama-tied", {"partial_rotary_factor": 0.5}, r"partial_rotary_factor = 0\.5"),
        ("llama-tied", {"rope_parameters": {"rope_type": "spiral"}}, "rope type 'spiral' .*default, linear, dynamic,"),
        ("llama-linear", {"rope_scaling": {"type": "linear", "factor": 2, "extra": 1}}, "'linear' with extra is not"),
        ("qwen3-yarn-tied", {"rope_scaling": {"type": "mrope", "mrope_section": [1]}}, "rope type 'mrope'"),
        ("llama-tied", {"sliding_window": 8}, "sliding_window: not supported for LlamaForCausalLM"),
        (
            "llama-tied",
            {"layer_types": ["full_attention"] * 3, "clip_qkv": 8.0},
            "clip_qkv, layer_types: not supported",
        ),
        ("mamba2-tied", {"rope_scaling": {"type": "linear"}}, "rope_scaling: not supported for Mamba2ForCausalLM"),
        ("phi3-window", {"layer_types": ["full_attention"] * 3}, "layer_types"),
        ("mistral-window", {"attention_bias": True}, "attention_bias = True"),
        ("mistral-window", {"layer_types": ["full_attention"] * 3}, "layer_types"),
        ("qwen2-tied", {"attention_bias": True}, "attention_bias = True"),
        ("olmo2", {"mlp_bias": True}, "mlp_bias = True"),
        ("mixtral", {"attention_bias": True}, "attention_bias = True"),
        ("mamba-tied", {"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ("bamba", {"partial_rotary_factor": 0.25}, r"partial_rotary_factor = 0\.25"),
        ("granite-hybrid", {"position_embedding_type": "alibi"}, "position_embedding_type = 'alibi'"),
        ("jamba", {"sliding_window": 64}, "sliding_window: not supported for JambaForCausalLM"),
        ("nemotron-h", {"mlp_hidden_act": "silu"}, "mlp_hidden_act = 'silu'"),
        ("nemotron-h", {"sliding_window": 64}, "sliding_window = 64"),
        ("nemotron-h-moe", {"n_shared_experts": 2}, "n_shared_experts = 2"),
        ("qwen3-next", {"rope_parameters": {"rope_type": "mrope"}}, "rope type 'mrope'"),
        ("ministral3", {"attention_bias": True}, "attention_bias = True"),
        ("zamba2", {"use_long_context": True}, "use_long_context = True"),
        ("zamba2", {"tie_word_embeddings": False}, "tie_word_embeddings = False"),
        ("gpt-oss", {"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ("gemma2", {"hidden_activation": "gelu"}, "hidden_activation = 'gelu'"),
        ("gemma3", {"use_bidirectional_attention": True}, "use_bidirectional_attention = True"),
        ("gemma3", {"attn_logit_softcapping": 50.0}, r"attn_logit_softcapping = 50\.0"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(edited, name, changes, message):
    with pytest.raises(UnsupportedModelError, match=message):
        read_config(edited(name, **changes))


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("llama-tied", {"num_key_value_heads": 4}, "no multiple of num_key_value_heads = 4"),
        ("llama-llama3", {"rope_parameters": {"rope_type": "llama3"}}, "field .* is missing"),
        ("ministral-mixed", {"layer_types": ["full_attention"]}, "layer_types names 1 layers"),
        ("ministral-mixed", {"layer_types": ["chunked_attention"] * 3}, "chunked_attention"),
        ("ministral-mixed", {"sliding_window": None}, "sliding_window is None"),
        ("ministral3", {"rope_parameters": {"rope_type": "default"}}, "field 'llama_4_scaling_beta' is missing"),
        ("gpt-oss", {"layer_types": ["linear_attention"] * 3}, "linear_attention"),
        ("gpt-oss", {"swiglu_limit": 0}, "swiglu_limit must be a number greater than 0"),
        ("smollm3", {"no_rope_layers": [1]}, "no_rope_layers names 1 layers"),
        ("phi3-longrope", {"num_attention_heads": 12}, "short_factor has 4"),
        ("phi3-partial-tied", {"rope_parameters": {"partial_rotary_factor": 0.25}}, "3 entries of each head"),
        ("gemma3", {"rope_parameters": {"rope_type": "default"}}, "no types of layers"),
        ("gemma2", {"final_logit_softcapping": 0.0}, "final_logit_softcapping must be a number greater than 0"),
        ("mixtral", {"num_experts_per_tok": 6}, "num_experts_per_tok = 6 is more than num_local_experts = 5"),
        ("mixtral", {"num_local_experts": 10**6}, "num_local_experts = 1000000 is more than"),
        ("mixtral", {"num_local_experts": ...}, "field 'num_local_experts' is missing"),
        ("granite-hybrid", {"layer_types": ["mamba"]}, "layer_types must name 3 layers"),
        ("granite-hybrid", {"layer_types": ["conv"] * 3}, "layer_types: conv: none of attention"),
        ("granite-hybrid", {"mamba_d_head": 17}, r"mamba_n_heads \* mamba_d_head = 8 \* 17 must be 144"),
        ("jamba", {"attn_layer_offset": 3}, "attn_layer_offset = 3 must be less than attn_layer_period = 3"),
        ("falcon-h1", {"ssm_multipliers": [1.0]}, "ssm_multipliers must be 5 numbers"),
        ("falcon-h1", {"key_multiplier": -1.0}, "key_multiplier must be a number greater than 0"),
        ("nemotron-h", {"layers_block_type": ["mlp", "dense"]}, "layers_block_type: dense: none of"),
        ("nemotron-h-moe", {"n_group": 3}, "do not fit n_routed_experts = 8"),
        ("nemotron-h-moe", {"num_experts_per_tok": 5}, "more than there are to choose from"),
        ("qwen3-next", {"linear_num_value_heads": 5}, "no multiple of linear_num_key_heads = 2"),
        ("zamba2", {"layers_block_type": ["hybrid"]}, "layers_block_type must name 5 layers"),
        ("zamba2", {"num_key_value_heads": 2}, "num_key_value_heads must be num_attention_heads"),
        ("zamba2", {"n_mamba_heads": 7}, "no multiple of n_mamba_heads = 7"),
        ("mamba-tied", {"time_step_rank": 0}, "time_step_rank must be a whole number"),
        ("olmo2", {"rms_norm_eps": ...}, "field 'rms_norm_eps' is missing"),
        ("mistral-window", {"num_key_value_heads": ...}, "field 'num_key_value_heads' is missing"),
        ("llama-tied", {"num_hidden_layers": 10**9}, "num_hidden_layers = 1000000000 is more than 10000"),
    ],
)
def test_a_config_that_contradicts_itself(edited, name, changes, message):
    with pytest.raises(ModelError, match=message):
        read_config(edited(name, **changes))


ODD_VALUES = (None, -1, 0, 1, 3, 10**9, 0.5, float("nan"), "x", "", True, [], [1], ["x"], {}, {"factor": 0}, {"x": {}})


def fields_of(raw: dict) -> list[tuple[str, ...]]:
    """Paths to every field, those of objects inside included."""
    paths = []
    for name, value in raw.items():
        paths.append((name,))
        if isinstance(value, dict):
            paths += [(name, *path) for path in fields_of(value)]
    return paths


@pytest.mark.parametrize(
    "name",
    [
        "smollm3-window-biased",
        "gemma3-linear",
        "phi3-longrope",
        "llama-yarn",
        "ministral3",
        "gpt-oss",
        "mamba2-tied",
        "mamba-tied",
        "qwen3-moe-mixed",
        "granite-hybrid",
        "jamba",
        "falcon-h1-normed",
        "nemotron-h-moe",
        "qwen3-next",
    ],
)
def test_a_spoiled_config_is_read_or_refused_but_never_crashes(edited, name):
    """Each field in turn takes every odd value: a ModelError, or a model that can at least be laid out."""
    directory = edited(name)
    path = directory / "config.json"
    raw = json.loads(path.read_text())
    refused, laid_out = 0, set()
    for *parents, last in fields_of(raw):
        for value in ODD_VALUES:
            spoiled = json.loads(json.dumps(raw))
            target = spoiled
            for parent in parents:
                target = target[parent]
            target[last] = value
            path.write_text(json.dumps(spoiled))
            try:
                config = read_config(directory)
            except ModelError:
                refused += 1
                continue
            short = replace(config, layers=config.layers[:3])
            if repr(short) not in laid_out:  # most values that are taken change nothing
                with torch.device("meta"):
                    Decoder(short)
                laid_out.add(repr(short))
    assert refused > len(raw)


OLD_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 24,
}


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("llama-tied", {"rope_parameters": ..., "rope_theta": 1234.5, "rope_scaling": None}),
        ("llama-linear", {"rope_parameters": ..., "rope_scaling": {"type": "linear", "factor": 3.0}}),
        ("llama-llama3", {"rope_parameters": ..., "rope_theta": 10_000.0, "rope_scaling": OLD_LLAMA3}),
        (
            "llama-yarn",
            {
                "rope_parameters": ...,
                "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 20},
            },
        ),
        ("qwen2-late-windows", {"layer_types": ...}),
        ("qwen2-tied", {"layer_types": ..., "use_sliding_window": False, "sliding_window": 131_072}),
        ("granite-hybrid", {"layer_types": ["mamba", "attention", "mamba"]}),
        ("jamba-dense-biased", {"num_experts": ..., "num_local_experts": 1}),
        (
            "nemotron-h-moe",
            {"layers_block_type": ..., "hybrid_override_pattern": "ME*E", "n_groups": ..., "mamba_n_groups": 2},
        ),
        ("qwen3-next", {"layer_types": ..., "full_attention_interval": 2}),
        ("zamba2", {"layers_block_type": ["mamba", "hybrid", "hybrid", "mamba", "hybrid"]}),
        ("qwen3-5", {"rope_parameters": ..., "rope_theta": 10_000.0}),
        ("mamba-tied", {"time_step_rank": "auto", "intermediate_size": ...}),
        ("mixtral", {"num_experts": 5, "num_local_experts": ...}),
        ("qwen3-moe", {"num_experts": 7, "num_local_experts": ...}),
        ("smollm3", {"layer_types": ..., "no_rope_layers": ..., "tie_word_embeddings": ...}),
        ("gemma2", {"layer_types": ..., "tie_word_embeddings": ...}),
        (
            "gpt-oss",
            {
                "layer_types": ...,
                "rope_parameters": ...,
                "rope_theta": 10_000.0,
                "rope_scaling": {**YARN, "truncate": False},
                "attention_bias": ...,
            },
        ),
        (
            "gemma3",
            {
                "layer_types": ...,
                "rope_parameters": ...,
                "rope_theta": 1_000_000.0,
                "rope_local_base_freq": 10_000.0,
                "sliding_window_pattern": 3,
                "tie_word_embeddings": ...,
            },
        ),
        (
            "phi3-longrope",
            {
                "rope_parameters": ...,
                "rope_theta": 10_000.0,
                "partial_rotary_factor": 0.7,
                "rope_scaling": {
                    "type": "longrope",
                    "short_factor": [1.0, 1.1, 1.3, 1.7],
                    "long_factor": [1.0, 2.0, 4.0, 8.0],
                },
            },
        ),
    ],
)
def test_older_styles_mean_the_same(pairs, edited, name, changes):
    """Ours reads the older config.json as it reads the new one; so does transformers, which wrote neither."""
    directory = edited(name, **changes)
    assert read_config(directory) == pairs(name).ours.config
    theirs, today = AutoConfig.from_pretrained(directory), pairs(name).reference.config
    assert getattr(theirs, "layer_types", None) == getattr(today, "layer_types", None)
    assert theirs.tie_word_embeddings == today.tie_word_embeddings


def test_longrope_under_its_first_name(pairs, edited):
    """The first Phi-3 checkpoints call it su; transformers of today does not read those."""
    fields = pairs("phi3-longrope").reference.config.rope_parameters
    directory = edited("phi3-longrope", rope_parameters=..., rope_scaling={**fields, "rope_type": "su"})
    assert read_config(directory) == pairs("phi3-longrope").ours.config


def test_positions_end_where_the_frequencies_would_change(pairs):
    longest = {name: pairs(name).ours.config.max_positions for name in ("llama-dynamic", "phi3-longrope", "llama-yarn")}
    assert longest == {"llama-dynamic": 100, "phi3-longrope": 80, "llama-yarn": 80}
