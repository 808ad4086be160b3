"""The shapes and curricula of the embedded models."""

from dataclasses import dataclass, replace
from typing import Any

from scripts.embedded_episodes import Records

HARD_RECORDS = Records(8, 3, 2)


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of the curriculum: `batch` sequences of `length` tokens, of which documents take `document_tokens`.

    focused_share: of the sequences, those about entities of one kind that only their names tell apart.
    alike_share: of the sequences, those where moreover the names share parts.
    name_share: of the sentences, those that name their subject. label_share: of the questions, those about what
    stands beside a name. records_share: of the sequences, those of random records.
    until: the accuracy on answers with which the stage ends, if its tokens have not come first.
    spread: positions jump between documents.
    """

    tokens: int
    length: int
    batch: int
    document_tokens: tuple[int, int] = (0, 0)
    two_hop_share: float = 0.0
    focused_share: float = 0.0
    alike_share: float = 0.0
    name_share: float = 0.4
    label_share: float = 0.0
    records_share: float = 0.0
    records: Records = HARD_RECORDS
    until: float | None = None
    spread: bool = False


@dataclass(frozen=True, slots=True)
class Recipe:
    """All that decides a training run but the seed.

    matrix_learning_rate, weight_decay: Muon's, for the matrices inside the layers.
    second: the stages of a second round, if there is one; for it the learning rates rise once more, to `second_rate`
    of their height.
    """

    config: dict[str, Any]
    stages: tuple[Stage, ...]
    vocab_size: int
    learning_rate: float
    matrix_learning_rate: float
    exam_lengths: tuple[int, ...]
    second: tuple[Stage, ...] = ()
    second_rate: float = 0.5
    weight_decay: float = 0.1
    exam_questions: int = 60
    log_seconds: float = 20.0

    def rounds(self) -> "tuple[Recipe, ...]":
        """Each round as a recipe of its own."""
        if not self.second:
            return (self,)
        second = replace(
            self,
            stages=self.second,
            second=(),
            learning_rate=self.second_rate * self.learning_rate,
            matrix_learning_rate=self.second_rate * self.matrix_learning_rate,
        )
        return replace(self, second=()), second


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
    "state_size": 64,
    "n_groups": 3,
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

# Records of random tokens that grow harder as they are answered.
RECORDS = tuple(
    Stage(2_000_000, 192, 22, records_share=1.0, records=records, until=0.8)
    for records in (Records(4, 1, 0), Records(6, 2, 0), Records(6, 2, 1), HARD_RECORDS)
)
# Many questions on few documents.
QUESTIONS = Stage(
    5_000_000,
    224,
    18,
    (25, 120),
    records_share=0.06,
    focused_share=0.4,
    name_share=0.6,
    label_share=0.12,
)
FEW_DOCUMENTS = Stage(
    11_000_000,
    384,
    12,
    (40, 260),
    two_hop_share=0.05,
    records_share=0.02,
    focused_share=0.3,
    label_share=0.02,
)
# The second round's contexts are as a search gives them.
ALIKE = Stage(20_000_000, 384, 12, (40, 260), two_hop_share=0.05, focused_share=0.1, alike_share=0.55)

RECIPES: dict[str, Recipe] = {
    "transformer": Recipe(
        config=_TRANSFORMER,
        vocab_size=VOCAB_SIZE,
        learning_rate=1.5e-3,
        matrix_learning_rate=2e-3,
        exam_lengths=(125, 250, 500, 1000, 4000),
        exam_questions=60,
        stages=(
            *RECORDS,
            QUESTIONS,
            FEW_DOCUMENTS,
            Stage(8_000_000, 768, 6, (60, 560), two_hop_share=0.08, focused_share=0.2, spread=True),
            Stage(4_500_000, 1536, 3, (100, 1200), two_hop_share=0.08, focused_share=0.15, spread=True),
            Stage(1_000_000, 3072, 2, (200, 2600), two_hop_share=0.08, focused_share=0.1, spread=True),
        ),
        second=(
            ALIKE,
            Stage(13_000_000, 768, 6, (60, 560), two_hop_share=0.05, alike_share=0.5, spread=True),
            Stage(7_000_000, 1536, 3, (80, 1200), two_hop_share=0.05, alike_share=0.4, spread=True),
            Stage(2_000_000, 3072, 2, (80, 2600), two_hop_share=0.05, alike_share=0.3, spread=True),
        ),
    ),
    "mamba": Recipe(
        config=_MAMBA,
        vocab_size=VOCAB_SIZE,
        learning_rate=2e-3,
        matrix_learning_rate=2.5e-3,
        weight_decay=0.0,
        exam_lengths=(125, 250, 500, 1000),
        exam_questions=100,
        # No records first: what they teach is in its beginning.
        stages=(
            replace(QUESTIONS, tokens=3_000_000, focused_share=0.7),
            replace(FEW_DOCUMENTS, tokens=11_000_000, two_hop_share=0.07, focused_share=0.25, alike_share=0.3),
            Stage(14_000_000, 768, 6, (60, 560), two_hop_share=0.07, focused_share=0.15, alike_share=0.3),
            Stage(3_500_000, 1536, 3, (100, 1100), two_hop_share=0.06, focused_share=0.1, alike_share=0.2),
        ),
    ),
}
