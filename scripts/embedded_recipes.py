"""The shapes and curricula of the embedded models."""

from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of the curriculum: `batch` sequences of `length` tokens, of which documents take `document_tokens`."""

    tokens: int
    length: int
    batch: int
    document_tokens: tuple[int, int] = (0, 0)
    two_hop_share: float = 0.0
    repeats: bool = False


@dataclass(frozen=True, slots=True)
class Recipe:
    """All that decides a training run but the seed.

    matrix_learning_rate: Muon's, for the matrices inside the layers. spread: positions jump between documents.
    """

    config: dict[str, Any]
    stages: tuple[Stage, ...]
    vocab_size: int
    learning_rate: float
    matrix_learning_rate: float
    spread: bool
    exam_lengths: tuple[int, ...]
    exam_questions: int = 60
    log_seconds: float = 20.0
    notes: tuple[str, ...] = field(default=())

    def from_stage(self, first: int) -> "Recipe":
        return replace(self, stages=self.stages[first:])


VOCAB_SIZE = 1536

_TRANSFORMER = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 192,
    "intermediate_size": 448,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "head_dim": 32,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 100000.0,
    "max_position_embeddings": 32768,
    "vocab_size": VOCAB_SIZE,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "mlp_bias": False,
    "bos_token_id": None,
    "eos_token_id": 4,
    "pad_token_id": 0,
    "torch_dtype": "float32",
}

_MAMBA = {
    "architectures": ["Mamba2ForCausalLM"],
    "model_type": "mamba2",
    "hidden_size": 192,
    "expand": 2,
    "num_heads": 12,
    "head_dim": 32,
    "state_size": 96,
    "n_groups": 1,
    "conv_kernel": 4,
    "use_conv_bias": True,
    "use_bias": False,
    "chunk_size": 64,
    "num_hidden_layers": 5,
    "hidden_act": "silu",
    "rms_norm": True,
    "layer_norm_epsilon": 1e-5,
    "residual_in_fp32": True,
    "vocab_size": VOCAB_SIZE,
    "tie_word_embeddings": True,
    "bos_token_id": None,
    "eos_token_id": 4,
    "pad_token_id": 0,
    "torch_dtype": "float32",
}

RECIPES: dict[str, Recipe] = {
    "transformer": Recipe(
        config=_TRANSFORMER,
        vocab_size=VOCAB_SIZE,
        learning_rate=3e-3,
        matrix_learning_rate=7e-3,
        spread=True,
        exam_lengths=(250, 1000, 4000),
        stages=(
            Stage(tokens=6_000_000, length=128, batch=24, repeats=True),
            Stage(tokens=5_000_000, length=224, batch=28, document_tokens=(30, 100)),
            Stage(tokens=7_000_000, length=384, batch=16, document_tokens=(40, 220), two_hop_share=0.08),
            Stage(tokens=8_000_000, length=768, batch=8, document_tokens=(60, 500), two_hop_share=0.15),
            Stage(tokens=6_000_000, length=1536, batch=4, document_tokens=(100, 1100), two_hop_share=0.15),
            Stage(tokens=6_000_000, length=4608, batch=2, document_tokens=(500, 4000), two_hop_share=0.15),
        ),
    ),
    "mamba": Recipe(
        config=_MAMBA,
        vocab_size=VOCAB_SIZE,
        learning_rate=3e-3,
        matrix_learning_rate=3e-3,
        spread=False,
        exam_lengths=(125, 250, 500, 1000),
        stages=(
            Stage(tokens=4_000_000, length=96, batch=24, repeats=True),
            Stage(tokens=6_000_000, length=224, batch=28, document_tokens=(30, 100)),
            Stage(tokens=8_000_000, length=384, batch=16, document_tokens=(40, 220), two_hop_share=0.05),
            Stage(tokens=12_000_000, length=768, batch=8, document_tokens=(60, 520), two_hop_share=0.08),
            Stage(tokens=3_000_000, length=1536, batch=4, document_tokens=(100, 1000), two_hop_share=0.08),
        ),
    ),
}
