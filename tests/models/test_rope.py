"""Rotary frequencies are those of transformers to the last bit: far out, another rounding would turn the angles."""

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from models.config import RopeSpec, YarnScaling
from models.families.rope import read_rope
from models.rope import Rotary, apply_rotary, frequencies

LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


@pytest.mark.parametrize(
    "fields",
    [
        {"rope_type": "linear", "factor": 8.0},
        {"rope_type": "dynamic", "factor": 2.0},
        {"rope_type": "llama3", **LLAMA3},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
        {"rope_type": "yarn", "factor": 16.0, "original_max_position_embeddings": 4096, "attention_factor": 1.5},
        {
            "rope_type": "yarn",
            "factor": 40.0,
            "original_max_position_embeddings": 4096,
            "mscale": 0.707,
            "mscale_all_dim": 1.0,
            "beta_fast": 16.0,
            "beta_slow": 2.0,
            "truncate": False,
        },
        {
            "rope_type": "longrope",
            "short_factor": [1 + 0.01 * i for i in range(64)],
            "long_factor": [1.0 + i for i in range(64)],
            "original_max_position_embeddings": 4096,
            "factor": 32.0,
        },
    ],
    ids=lambda fields: f"{fields['rope_type']}-{fields['factor']}",
)
@pytest.mark.parametrize("theta", [10_000.0, 500_000.0])
def test_frequencies_are_those_of_transformers(fields, theta):
    raw = {"max_position_embeddings": 131_072, "rope_parameters": {**fields, "rope_theta": theta}}
    spec = read_rope(raw, 128).spec
    config = LlamaConfig(hidden_size=4096, num_attention_heads=32, **raw)
    theirs, attention_factor = ROPE_INIT_FUNCTIONS[fields["rope_type"]](config)
    assert torch.equal(frequencies(spec), theirs)
    cos, _ = Rotary(spec).table(torch.tensor([0]))
    torch.testing.assert_close(cos, torch.full((1, 128), float(attention_factor)))


def test_yarn_goes_as_far_as_its_factor():
    """A config.json of which only `rope_scaling` was edited, as the cards of Qwen2.5 tell one to."""
    raw = {
        "max_position_embeddings": 32_768,
        "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32_768},
    }
    rope = read_rope(raw, 128)
    assert isinstance(rope.spec.scaling, YarnScaling)
    assert rope.max_positions == 131_072


def test_scores_depend_on_distance_alone():
    generator = torch.Generator().manual_seed(4)
    q, k = (torch.randn(1, 1, 12, generator=generator) for _ in range(2))
    rotary = Rotary(RopeSpec(theta=100.0, rotary_dim=8))

    def score(at_q, at_k):
        (turned_q, turned_k) = (apply_rotary(x, *rotary.table(torch.tensor([at]))) for x, at in ((q, at_q), (k, at_k)))
        return float((turned_q * turned_k).sum())

    assert score(9, 4) == pytest.approx(score(105, 100), abs=1e-5)
    assert score(9, 4) != pytest.approx(score(9, 5), abs=1e-3)
    torch.testing.assert_close(apply_rotary(q, *rotary.table(torch.tensor([7])))[..., 8:], q[..., 8:])
