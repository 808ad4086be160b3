"""A checkpoint that is not whole is refused, with the tensor, the field or the file named."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.embedded import embedded_directory
from models.errors import ModelError, UnsupportedModelError, WeightsError
from models.families import FAMILIES, read_config
from models.load import load_decoder, read_eos_token_ids
from models.shards import shard_files


@pytest.fixture(params=["llama-tied", "mamba2-untied-biased", "phi3-window"])
def pair(request, pairs):
    """One of each way in which parameters lie in files; what all families do is compared elsewhere."""
    return pairs(request.param)


@pytest.fixture
def copy(pair, tmp_path):
    directory = tmp_path / "checkpoint"
    shutil.copytree(pair.directory, directory)
    return directory


def load(directory):
    return load_decoder(directory, dtype=torch.float32, device=torch.device("cpu"))


def edit_shard(directory, edit):
    """Apply `edit` to the tensors of the first shard; returns the shard's path and a tensor name of it."""
    shard = shard_files(directory)[0]
    tensors = load_file(shard)
    name = sorted(tensors)[0]
    edit(tensors, name)
    save_file(tensors, shard)
    return shard, name


def edit_config(directory, **changes):
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_checkpoints_are_sharded(pair):
    assert len(shard_files(pair.directory)) > 1


def test_missing_tensor(copy):
    _, name = edit_shard(copy, lambda tensors, name: tensors.pop(name))
    with pytest.raises(WeightsError, match=f"missing: {name} "):
        load(copy)


def test_extra_tensor(copy):
    shard, _ = edit_shard(copy, lambda tensors, _: tensors.update(surplus=torch.zeros(2)))
    with pytest.raises(WeightsError, match=rf"{shard.name}: tensor 'surplus' belongs to no parameter"):
        load(copy)


def test_misshapen_tensor(copy):
    shard, name = edit_shard(copy, lambda tensors, name: tensors.update({name: torch.zeros(2, 3, 5, 7)}))
    with pytest.raises(WeightsError, match=rf"{shard.name}: tensor '{name}' has shape \[2, 3, 5, 7\]"):
        load(copy)


@pytest.mark.parametrize("keep", [0, 5, 100, -40])
def test_truncated_file(copy, keep):
    shard = shard_files(copy)[0]
    shard.write_bytes(shard.read_bytes()[:keep])
    with pytest.raises(WeightsError, match=rf"{shard.name} cannot be read"):
        load(copy)


def test_index_that_names_absent_files(copy):
    shard = shard_files(copy)[0]
    shard.unlink()
    with pytest.raises(WeightsError, match=f"files that are not there: {shard.name}"):
        load(copy)


def test_index_that_leads_out_of_the_directory(copy):
    index = copy / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": "../other.safetensors"}}))
    (copy.parent / "other.safetensors").write_bytes(b"")
    with pytest.raises(WeightsError, match="not there"):
        load(copy)


def test_a_second_copy_in_another_layout_is_passed_over(tmp_path):
    shutil.copytree(embedded_directory("embedded:transformer"), tmp_path / "checkpoint")
    save_file({"layers.0.x": torch.zeros(2)}, tmp_path / "checkpoint" / "consolidated.safetensors")
    assert [file.name for file in shard_files(tmp_path / "checkpoint")] == ["model.safetensors"]


def test_a_fused_tensor_must_hold_all_its_rows(pairs, tmp_path):
    directory = tmp_path / "checkpoint"
    shutil.copytree(pairs("phi3-window").directory, directory)
    name = "model.layers.1.self_attn.qkv_proj.weight"
    weights = json.loads((directory / "model.safetensors.index.json").read_text())["weight_map"]
    shard = directory / weights[name]
    tensors = load_file(shard)
    tensors[name] = tensors[name][:-1].contiguous()
    save_file(tensors, shard)
    with pytest.raises(WeightsError, match=rf"{shard.name}: tensor '{name}' has shape \[119, 72\], not \[120, 72\]"):
        load(directory)


def test_unknown_family_lists_those_supported(copy):
    edit_config(copy, architectures=["OtherForCausalLM"])
    with pytest.raises(UnsupportedModelError, match="'OtherForCausalLM' is not supported; supported:") as caught:
        read_config(copy)
    assert str(caught.value).endswith(", ".join(sorted(FAMILIES)))


def test_unsupported_option_is_refused(copy):
    edit_config(copy, hidden_act="gelu")
    with pytest.raises(UnsupportedModelError, match="hidden_act = 'gelu'"):
        read_config(copy)


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"architectures": []}', '{"architectures": ["LlamaForCausalLM"]}'])
def test_broken_config(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError, match=r"config\.json"):
        read_config(tmp_path)


def test_a_directory_without_config(tmp_path):
    with pytest.raises(ModelError, match=r"has no config\.json"):
        read_config(tmp_path)


def test_generation_config_names_the_ends(pair, copy):
    (copy / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, 9]}))
    assert read_eos_token_ids(copy, pair.ours.config) == (3, 9)
    (copy / "generation_config.json").unlink()
    assert read_eos_token_ids(copy, pair.ours.config) == pair.ours.config.eos_token_ids


@pytest.mark.parametrize("text", ["{", "[]", '{"eos_token_id": "</s>"}', '{"eos_token_id": [1, null]}'])
def test_ends_that_are_none_are_refused(pair, copy, text):
    (copy / "generation_config.json").write_text(text)
    with pytest.raises(ModelError, match=r"generation_config\.json cannot be used"):
        read_eos_token_ids(copy, pair.ours.config)


def test_unknown_embedded_name():
    with pytest.raises(ModelError, match="no embedded model 'embedded:other'; there are: embedded:transformer"):
        embedded_directory("embedded:other")
