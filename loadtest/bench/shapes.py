"""The models that are raced: their configurations, and their tensors as Hugging Face names them. Data only.

Each tensor says how its random values are drawn, so that activations keep their scale, states fade as in trained
models, and the likeliest token is likeliest by far: else rounding alone would tell two right answers apart.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

Draw = Literal["normal", "near_one", "small", "rate", "rates", "step"]
Tensor = tuple[str, tuple[int, ...], Draw]
PAD_TOKEN_ID, END_TOKEN_ID = 0, 1


@dataclass(frozen=True, slots=True)
class Shape:
    """One model without its values.

    Attributes:
        config: what its config.json holds.
        head: the tensor whose rows score the tokens.
    """

    name: str
    config: dict[str, Any]
    head: str

    @property
    def vocab_size(self) -> int:
        return int(self.config["vocab_size"])

    def tensors(self) -> Iterator[Tensor]:
        yield from {"llama": _llama, "mamba2": _mamba2, "mamba": _mamba}[self.config["model_type"]](self.config)


def llama(*, layers: int = 12, width: int = 768, heads: int = 12, inner: int = 2048, vocab: int = 32_000) -> Shape:
    """134M parameters by default, with as many heads of keys as of queries."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": width // heads,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "max_position_embeddings": 32768,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
    }
    return Shape("llama", config | _tokens(vocab), "lm_head.weight")


def mamba2(*, layers: int = 24, width: int = 768, heads: int = 24, state: int = 128, vocab: int = 50_288) -> Shape:
    """129M parameters by default: the shape of the published 130M model."""
    config = {
        "architectures": ["Mamba2ForCausalLM"],
        "model_type": "mamba2",
        "hidden_size": width,
        "expand": 2,
        "num_heads": heads,
        "head_dim": 2 * width // heads,
        "state_size": state,
        "n_groups": 1,
        "chunk_size": 256,
        "rms_norm": True,
    }
    return Shape("mamba2", config | _recurrent(layers) | _tokens(vocab), "backbone.embeddings.weight")


def mamba(*, layers: int = 24, width: int = 768, vocab: int = 50_288) -> Shape:
    """129M parameters by default: the shape of the published 130M model of the first Mamba."""
    config = {
        "architectures": ["MambaForCausalLM"],
        "model_type": "mamba",
        "hidden_size": width,
        "expand": 2,
        "intermediate_size": 2 * width,
        "state_size": 16,
        "time_step_rank": -(-width // 16),
    }
    return Shape("mamba", config | _recurrent(layers) | _tokens(vocab), "backbone.embeddings.weight")


def _recurrent(layers: int) -> dict[str, Any]:
    return {
        "num_hidden_layers": layers,
        "conv_kernel": 4,
        "use_conv_bias": True,
        "use_bias": False,
        "hidden_act": "silu",
        "layer_norm_epsilon": 1e-5,
        "residual_in_fp32": True,
        "tie_word_embeddings": True,
    }


def _tokens(vocab: int) -> dict[str, Any]:
    ids = {"bos_token_id": None, "eos_token_id": END_TOKEN_ID, "pad_token_id": PAD_TOKEN_ID}
    return {"vocab_size": vocab, "torch_dtype": "float32", **ids}


def _llama(config: dict[str, Any]) -> Iterator[Tensor]:
    width, inner, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    yield "model.embed_tokens.weight", (vocab, width), "normal"
    for number in range(config["num_hidden_layers"]):
        layer = f"model.layers.{number}"
        yield f"{layer}.input_layernorm.weight", (width,), "near_one"
        for name in "qkvo":
            yield f"{layer}.self_attn.{name}_proj.weight", (width, width), "normal"
        yield f"{layer}.post_attention_layernorm.weight", (width,), "near_one"
        for name in ("gate", "up"):
            yield f"{layer}.mlp.{name}_proj.weight", (inner, width), "normal"
        yield f"{layer}.mlp.down_proj.weight", (width, inner), "normal"
    yield "model.norm.weight", (width,), "near_one"
    yield "lm_head.weight", (vocab, width), "normal"


def _mamba2(config: dict[str, Any]) -> Iterator[Tensor]:
    width, heads, state = config["hidden_size"], config["num_heads"], config["state_size"]
    inner = config["expand"] * width
    channels = inner + 2 * config["n_groups"] * state
    yield "backbone.embeddings.weight", (config["vocab_size"], width), "normal"
    for number in range(config["num_hidden_layers"]):
        mixer = f"backbone.layers.{number}.mixer"
        yield f"backbone.layers.{number}.norm.weight", (width,), "near_one"
        yield f"{mixer}.in_proj.weight", (inner + channels + heads, width), "normal"
        yield from _convolution(mixer, channels, config["conv_kernel"])
        yield f"{mixer}.dt_bias", (heads,), "step"
        yield f"{mixer}.A_log", (heads,), "rate"
        yield f"{mixer}.D", (heads,), "near_one"
        yield f"{mixer}.norm.weight", (inner,), "near_one"
        yield f"{mixer}.out_proj.weight", (width, inner), "normal"
    yield "backbone.norm_f.weight", (width,), "near_one"


def _mamba(config: dict[str, Any]) -> Iterator[Tensor]:
    width, inner, state = config["hidden_size"], config["intermediate_size"], config["state_size"]
    rank = config["time_step_rank"]
    yield "backbone.embeddings.weight", (config["vocab_size"], width), "normal"
    for number in range(config["num_hidden_layers"]):
        mixer = f"backbone.layers.{number}.mixer"
        yield f"backbone.layers.{number}.norm.weight", (width,), "near_one"
        yield f"{mixer}.in_proj.weight", (2 * inner, width), "normal"
        yield from _convolution(mixer, inner, config["conv_kernel"])
        yield f"{mixer}.x_proj.weight", (rank + 2 * state, inner), "normal"
        yield f"{mixer}.dt_proj.weight", (inner, rank), "normal"
        yield f"{mixer}.dt_proj.bias", (inner,), "step"
        yield f"{mixer}.A_log", (inner, state), "rates"
        yield f"{mixer}.D", (inner,), "near_one"
        yield f"{mixer}.out_proj.weight", (width, inner), "normal"
    yield "backbone.norm_f.weight", (width,), "near_one"


def _convolution(mixer: str, channels: int, taps: int) -> Iterator[Tensor]:
    yield f"{mixer}.conv1d.weight", (channels, 1, taps), "normal"
    yield f"{mixer}.conv1d.bias", (channels,), "small"
