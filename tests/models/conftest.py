"""Random small checkpoints, written by transformers in odd sizes, with the reference model beside each."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from devices import DEVICES
from transformers import LlamaConfig, LlamaForCausalLM, Mamba2Config, Mamba2ForCausalLM, PreTrainedModel

from models.decoder import Decoder
from models.load import load_decoder

VOCAB_SIZE = 131


@dataclass(frozen=True)
class Pair:
    """One checkpoint, loaded by us and by transformers."""

    directory: Path
    ours: Decoder
    reference: PreTrainedModel

    def reference_logits(self, token_ids: list[int]) -> torch.Tensor:
        with torch.inference_mode():
            return self.reference(torch.tensor([token_ids])).logits[0]


def llama(tied: bool) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=72,
        intermediate_size=100,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=20,
        attention_bias=not tied,
        mlp_bias=not tied,
        tie_word_embeddings=tied,
        rope_parameters={"rope_type": "default", "rope_theta": 1234.5},
    )
    return LlamaForCausalLM(config)


def mamba2(tied: bool) -> Mamba2ForCausalLM:
    config = Mamba2Config(
        vocab_size=VOCAB_SIZE,
        hidden_size=48,
        expand=2,
        num_heads=6,
        head_dim=16,
        state_size=12,
        n_groups=2 if tied else 1,
        conv_kernel=4 if tied else 3,
        chunk_size=16,
        num_hidden_layers=3,
        use_bias=not tied,
        use_conv_bias=tied,
        tie_word_embeddings=tied,
    )
    return Mamba2ForCausalLM(config)


BUILDERS = {
    "llama-tied": lambda: llama(True),
    "llama-untied-biased": lambda: llama(False),
    "mamba2-tied": lambda: mamba2(True),
    "mamba2-untied-biased": lambda: mamba2(False),
}


@pytest.fixture(scope="session", params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    """Where our model computes; the reference always computes on the CPU."""
    return torch.device(request.param)


@pytest.fixture(scope="session", params=sorted(BUILDERS))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, device: torch.device) -> Pair:
    torch.manual_seed(sorted(BUILDERS).index(request.param))
    reference = BUILDERS[request.param]().eval()
    for name, parameter in reference.named_parameters():
        if parameter.dim() >= 2:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
        elif "A_log" not in name:
            parameter.data += 0.1 * torch.randn_like(parameter)
    directory = tmp_path_factory.mktemp(request.param)
    reference.save_pretrained(directory, max_shard_size="100KB")
    ours = load_decoder(directory, dtype=torch.float32, device=device)
    return Pair(directory, ours, reference)
