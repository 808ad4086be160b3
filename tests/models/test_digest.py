"""The digest names the weights: a retrained checkpoint has another, a copy has the same."""

import shutil

import pytest

from models.digest import checkpoint_digest


def test_a_copy_is_the_same_and_other_weights_are_not(pair, tmp_path):
    copy = shutil.copytree(pair.directory, tmp_path / "copy")
    assert checkpoint_digest(copy) == checkpoint_digest(pair.directory)
    for file in copy.glob("*.safetensors"):
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
        assert checkpoint_digest(copy) != checkpoint_digest(pair.directory)


def test_another_configuration_is_another_model(pair, tmp_path):
    copy = shutil.copytree(pair.directory, tmp_path / "copy")
    with (copy / "config.json").open("a") as config:
        config.write(" ")
    assert checkpoint_digest(copy) != checkpoint_digest(pair.directory)


def test_a_large_file_is_sampled_all_over(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    file = tmp_path / "model.safetensors"
    file.write_bytes(bytes(8 << 20))
    before = checkpoint_digest(tmp_path)
    content = bytearray(8 << 20)
    content[5 << 20 : (5 << 20) + (1 << 18)] = b"\1" * (1 << 18)
    file.write_bytes(content)
    assert checkpoint_digest(tmp_path) != before


def test_no_checkpoint(tmp_path):
    with pytest.raises(OSError, match=r"config\.json"):
        checkpoint_digest(tmp_path)
