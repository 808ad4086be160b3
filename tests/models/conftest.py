"""Random small checkpoints, written by transformers in odd sizes, with the reference model beside each."""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from devices import DEVICES
from reference_wrapped import BUILDERS
from transformers import PreTrainedModel

from models.decoder import Decoder
from models.load import load_decoder


@dataclass(frozen=True)
class Pair:
    """One checkpoint, loaded by us and by transformers."""

    name: str
    directory: Path
    ours: Decoder
    reference: PreTrainedModel
    weights: dict[str, torch.Tensor]  # of ours as they were loaded: kernels lay them out otherwise

    def reference_logits(self, token_ids: list[int]) -> torch.Tensor:
        with torch.inference_mode():
            return self.reference(torch.tensor([token_ids])).logits[0]


@pytest.fixture(scope="session", params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    """Where our model computes; the reference always computes on the CPU."""
    return torch.device(request.param)


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory, device: torch.device) -> Callable[[str], Pair]:
    """The pair of that name, made once."""
    made: dict[str, Pair] = {}

    def pair_of(name: str) -> Pair:
        if name not in made:
            made[name] = make_pair(name, tmp_path_factory.mktemp(name), device)
        return made[name]

    return pair_of


@pytest.fixture(params=sorted(BUILDERS))
def pair(request: pytest.FixtureRequest, pairs: Callable[[str], Pair]) -> Pair:
    return pairs(request.param)


def make_pair(name: str, directory: Path, device: torch.device) -> Pair:
    torch.manual_seed(zlib.crc32(name.encode()))
    reference = BUILDERS[name]().eval()
    reference.set_experts_implementation("eager")  # the other ways want sizes that are multiples of eight
    for parameter_name, parameter in reference.named_parameters():
        if parameter.dim() >= 2:
            torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
        elif "A_log" not in parameter_name:
            parameter.data += 0.1 * torch.randn_like(parameter)
        elif "linear_attn" in parameter_name:
            # As it is begun, a head of a delta net forgets all at once. What it reads is then next to nothing where q
            # and k are orthogonal, and the norm behind it makes that, rounding and all, as large as anything else.
            parameter.data -= 4
    reference.save_pretrained(directory, max_shard_size="100KB")
    ours = load_decoder(directory, dtype=torch.float32, device=device)
    return Pair(name, directory, ours, reference, ours.state_dict())
