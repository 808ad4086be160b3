"""gpt-oss as it is published, its experts packed as MXFP4: read to the numbers that transformers reads."""

import json

import pytest
import torch
from paged_driver import PagedDriver
from reference_models import SIZES, YARN
from safetensors.torch import save_file
from transformers import GptOssConfig, GptOssForCausalLM, Mxfp4Config
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from models import mxfp4, shards
from models.errors import UnsupportedModelError, WeightsError
from models.families import read_config
from models.load import load_decoder

HIDDEN, INNER, EXPERTS = 96, 64, 5
QUANTIZED = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]}


def packed(*shape: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Random blocks, of every four bits there are, and scales about those of trained weights."""
    blocks = torch.randint(0, 256, (*shape[:-1], shape[-1] // 32, 16), generator=generator, dtype=torch.uint8)
    scales = torch.randint(120, 125, blocks.shape[:-1], generator=generator, dtype=torch.uint8)
    return blocks, scales


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A checkpoint whose blocks and scales lie in different files, as in those published some do."""
    directory = tmp_path_factory.mktemp("packed")
    torch.manual_seed(11)
    config = GptOssConfig(
        **{**SIZES, "hidden_size": HIDDEN, "intermediate_size": INNER},
        head_dim=20,
        num_local_experts=EXPERTS,
        num_experts_per_tok=2,
        sliding_window=9,
        rope_parameters={**YARN, "truncate": False},
        max_position_embeddings=80,
    )
    model = GptOssForCausalLM(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(directory)
    (directory / "model.safetensors").unlink()
    generator = torch.Generator().manual_seed(12)
    tensors, scales = {}, {}
    for name, tensor in model.state_dict().items():
        if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            columns, rows = tensor.shape[1:]
            blocks = packed(EXPERTS, rows, columns, generator=generator)
            tensors[f"{name}_blocks"], scales[f"{name}_scales"] = blocks
        else:
            tensors[name] = tensor.to(torch.bfloat16).contiguous()
    weight_map = {}
    for number, held in enumerate((tensors, scales), start=1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file(held, directory / file)
        weight_map |= dict.fromkeys(held, file)
    (directory / shards.INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": QUANTIZED}))
    return directory


def load(directory, dtype=torch.float32, device="cpu"):
    return load_decoder(directory, dtype=dtype, device=torch.device(device))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_code_and_scale_is_what_transformers_reads(dtype):
    blocks = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 255, 16, 16)
    scales = torch.arange(255, dtype=torch.uint8).view(1, 255, 1).expand(1, 255, 16).contiguous()
    theirs = convert_moe_packed_tensors(blocks.contiguous(), scales, dtype=dtype).transpose(1, 2)
    assert torch.equal(mxfp4.unpack(blocks, scales).to(dtype), theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_packed_checkpoint_is_the_model_that_transformers_reads(checkpoint, device, dtype):
    ours = load(checkpoint, dtype, device)
    reference = GptOssForCausalLM.from_pretrained(
        checkpoint, dtype=dtype, quantization_config=Mxfp4Config(dequantize=True)
    )
    for layer, theirs in zip(ours.layers, reference.model.layers, strict=True):
        experts, fused = layer.mlp.experts, theirs.mlp.experts.gate_up_proj.transpose(1, 2)
        assert torch.equal(experts.gate_proj.cpu(), fused[:, ::2])
        assert torch.equal(experts.up_proj.cpu(), fused[:, 1::2])
        assert torch.equal(experts.down_proj.cpu(), theirs.mlp.experts.down_proj.transpose(1, 2))


def test_its_logits_are_those_of_the_reference(checkpoint):
    reference = GptOssForCausalLM.from_pretrained(
        checkpoint, dtype=torch.float32, quantization_config=Mxfp4Config(dequantize=True)
    )
    ids = torch.randint(0, 131, (67,), generator=torch.Generator().manual_seed(13)).tolist()
    driver = PagedDriver(load(checkpoint), 1, 67)
    ours = torch.cat([driver.step({0: ids[start:stop]})[0] for start, stop in ((0, 23), (23, 24), (24, 67))])
    with torch.inference_mode():
        assert (ours - reference(torch.tensor([ids])).logits[0]).abs().max() < 1e-4


def rewritten(checkpoint, tmp_path, edit, number=1):
    """A copy of the checkpoint whose file of that number went through `edit`."""
    for file in checkpoint.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    file = tmp_path / f"model-0000{number}-of-00002.safetensors"
    tensors = shards_tensors(file)
    edit(tensors)
    save_file(tensors, file)
    return tmp_path


def shards_tensors(file):
    reader = shards.ShardReader()
    return {name: reader.read(file, name).clone() for name in shards.read_headers(file)}


DOWN = "model.layers.1.mlp.experts.down_proj"


@pytest.mark.parametrize(
    ("edit", "number", "message"),
    [
        (lambda tensors: tensors.pop(f"{DOWN}_scales"), 2, f"tensors are missing: {DOWN}_scales "),
        (lambda tensors: tensors.pop(f"{DOWN}_blocks"), 1, f"tensors are missing: {DOWN}_blocks "),
        (
            lambda tensors: tensors.update({f"{DOWN}_scales": tensors[f"{DOWN}_scales"][:, :, :1].contiguous()}),
            2,
            rf"'{DOWN}_scales' has shape \[5, 96, 1\], not \[5, 96, 2\]",
        ),
        (
            lambda tensors: tensors.update({f"{DOWN}_blocks": tensors[f"{DOWN}_blocks"].to(torch.int8)}),
            1,
            f"'{DOWN}_blocks' has dtype I8; supported: U8",
        ),
        (
            lambda tensors: tensors.update({DOWN: torch.zeros(EXPERTS, INNER, HIDDEN)}),
            1,
            f"tensor '{DOWN}' belongs to no parameter",
        ),
    ],
    ids=["no scales", "no blocks", "misshapen", "signed", "twice"],
)
def test_a_spoiled_one_is_refused_by_name(checkpoint, tmp_path, edit, number, message):
    with pytest.raises(WeightsError, match=message):
        load(rewritten(checkpoint, tmp_path, edit, number))


def test_it_is_unpacked_a_few_experts_at_a_time(checkpoint, monkeypatch):
    """What is unpacked at once is what fits, whatever the tensor holds."""
    unpacked = []
    unpack = mxfp4.unpack

    def counted(blocks, scales):
        unpacked.append(len(blocks))
        return unpack(blocks, scales)

    monkeypatch.setattr(mxfp4, "unpack", counted)
    monkeypatch.setattr(shards, "RESIDENT_BYTES", 2 * 8 * HIDDEN * 2 * INNER)
    load(checkpoint)
    assert max(unpacked) < EXPERTS
    assert sum(unpacked) == 2 * 3 * EXPERTS


@pytest.mark.parametrize("method", ["gptq", "awq", "fp8", "bitsandbytes", "compressed-tensors"])
@pytest.mark.parametrize("place", ["plain", "wrapped"])
def test_other_ways_of_packing_are_refused_by_name(checkpoint, tmp_path, method, place):
    fields = json.loads((checkpoint / "config.json").read_text())
    if place == "wrapped":
        text = {**fields, "model_type": "mistral", "quantization_config": {"quant_method": method}}
        fields = {"architectures": ["Mistral3ForConditionalGeneration"], "text_config": text}
        supported = "none for this architecture"
    else:
        fields["quantization_config"] = {"quant_method": method}
        supported = "'mxfp4'"
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(
        UnsupportedModelError, match=f"quant_method = '{method}' is not supported; supported: {supported}"
    ):
        read_config(tmp_path)
