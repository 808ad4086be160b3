"""The first layout of Mamba checkpoints: transformers' tensors under the first names give the same logits."""

import json

import pytest
import torch
from safetensors.torch import save_file
from transformers import Mamba2Config, Mamba2ForCausalLM, MambaConfig, MambaForCausalLM, PreTrainedModel

from models.errors import UnsupportedModelError
from models.families import read_config
from models.load import load_decoder

VOCAB_SIZE = 131
IDS = torch.randint(0, VOCAB_SIZE, (1, 40), generator=torch.Generator().manual_seed(3))


def mamba1() -> PreTrainedModel:
    return MambaForCausalLM(MambaConfig(vocab_size=136, hidden_size=40, num_hidden_layers=2))


def mamba2() -> PreTrainedModel:
    config = Mamba2Config(
        vocab_size=144,
        hidden_size=32,
        num_heads=4,
        head_dim=16,
        state_size=24,
        n_groups=1,
        chunk_size=256,
        num_hidden_layers=2,
        tie_word_embeddings=False,
    )
    return Mamba2ForCausalLM(config)


FIELDS_1 = {"d_model": 40, "n_layer": 2, "ssm_cfg": {}, "pad_vocab_size_multiple": 8}
FIELDS_2 = {
    "d_model": 32,
    "n_layer": 2,
    "d_intermediate": 0,
    "ssm_cfg": {"layer": "Mamba2", "headdim": 16, "d_state": 24},
    "attn_layer_idx": [],
    "attn_cfg": {},
    "pad_vocab_size_multiple": 16,
    "tie_embeddings": False,
}
COMMON = {"vocab_size": VOCAB_SIZE, "rms_norm": True, "residual_in_fp32": True, "fused_add_norm": True}


@pytest.mark.parametrize(("build", "fields"), [(mamba1, FIELDS_1), (mamba2, FIELDS_2)], ids=["mamba-1", "mamba-2"])
def test_same_logits_under_the_first_names(tmp_path, build, fields):
    torch.manual_seed(5)
    reference = build().eval()
    tensors = {}
    for name, tensor in reference.state_dict().items():
        tensors[name.replace("embeddings", "embedding")] = tensor.clone()
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(COMMON | fields))
    ours = load_decoder(tmp_path, dtype=torch.float32, device=torch.device("cpu"))
    with torch.inference_mode():
        logits = ours.logits(ours.forward_dense(IDS))
        assert (logits - reference(IDS).logits).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attn_layer_idx": [9, 18]}, r"attn_layer_idx = \[9, 18\]"),
        ({"d_intermediate": 64}, "d_intermediate = 64"),
        ({"rms_norm": False}, "rms_norm = False"),
        ({"ssm_cfg": {"layer": "Mamba3"}}, "layer = 'Mamba3' is not supported; supported: 'Mamba1', 'Mamba2'"),
        ({"ssm_cfg": {"layer": "Mamba2", "D_has_hdim": True}}, "ssm_cfg of Mamba2 with D_has_hdim"),
        ({"ssm_cfg": {"headdim": 8}}, "ssm_cfg of Mamba1 with headdim"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(tmp_path, changes, message):
    (tmp_path / "config.json").write_text(json.dumps(COMMON | FIELDS_1 | changes))
    with pytest.raises(UnsupportedModelError, match=message):
        read_config(tmp_path)
