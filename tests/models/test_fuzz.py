"""Spoiled checkpoints: each is refused with a clear error, or loads as the very model that it was."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from models.errors import ModelError
from models.load import load_decoder
from models.shards import INDEX, shard_files

CASES = 130  # of each kind of spoiling, over all checkpoints
NAMES = ("llama-untied-biased", "mixtral", "gpt-oss", "wrapped-gemma3", "nemotron-h-moe", "qwen3-next", "zamba2")
Spoil = Callable[[random.Random, Path], None]


def read_header(shard: Path) -> tuple[dict, bytes]:
    """The header of a safetensors file, and what stands behind it."""
    content = shard.read_bytes()
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def write_header(shard: Path, header: dict, data: bytes) -> None:
    text = json.dumps(header).encode()
    shard.write_bytes(len(text).to_bytes(8, "little") + text + data)


def flip_header_bytes(rng: random.Random, directory: Path) -> None:
    shard = rng.choice(shard_files(directory))
    content = bytearray(shard.read_bytes())
    end = 8 + int.from_bytes(content[:8], "little")
    for _ in range(rng.choice((1, 1, 1, 3, 20))):
        content[rng.choice((rng.randrange(8), rng.randrange(end)))] ^= 1 << rng.randrange(8)
    shard.write_bytes(content)


def cut(rng: random.Random, directory: Path) -> None:
    shard = rng.choice(shard_files(directory))
    content = shard.read_bytes()
    keep = rng.choice((rng.randrange(len(content)), rng.randrange(16), len(content) - 1))
    shard.write_bytes(content[:keep] if rng.random() < 0.8 else content + content[:keep])


def lie_in_header(rng: random.Random, directory: Path) -> None:
    shard = rng.choice(shard_files(directory))
    header, data = read_header(shard)
    name = rng.choice([name for name in header if name != "__metadata__"])
    entry = header[name]
    match rng.randrange(6):
        case 0:
            entry["dtype"] = rng.choice(("I32", "F16", "F8_E4M3", "U8", "F64", "X", 3, None))
        case 1:
            entry["shape"] = rng.choice(([], [0], [-1], [1 << 62], [1 << 40, 1 << 40], [*entry["shape"], 1], "x"))
        case 2:
            entry["data_offsets"] = rng.choice(([0, 0], [-1, 4], [0, 1 << 62], [8, 0], [1], "x"))
        case 3:
            entry["shape"] = [size + rng.choice((-1, 1)) for size in entry["shape"]]
        case 4:
            header[rng.choice(("surplus", "", "a" * 10_000))] = dict(entry)
        case 5:
            header[name] = rng.choice((None, [], 5, {}))
    write_header(shard, header, data)


def lose_or_rename(rng: random.Random, directory: Path) -> None:
    shard = rng.choice(shard_files(directory))
    header, data = read_header(shard)
    names = [name for name in header if name != "__metadata__"]
    name = rng.choice(names)
    entry = header.pop(name)
    if rng.random() < 0.5:
        header[name.replace(".", "_", 1)] = entry
    elif len(names) > 1 and rng.random() < 0.5:
        other = rng.choice(names)
        header[name] = header.pop(other) if other != name else {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    write_header(shard, header, data)


def other_config(rng: random.Random, directory: Path) -> None:
    path = directory / "config.json"
    config = json.loads(path.read_text())
    numbers = [key for key, value in config.items() if isinstance(value, int) and not isinstance(value, bool)]
    key = rng.choice(numbers)
    config[key] = rng.choice((0, -1, config[key] + 1, config[key] * 2, 10**6, 10**12, 10**30, 1.5, "7", None, [3]))
    path.write_text(json.dumps(config))


def other_index(rng: random.Random, directory: Path) -> None:
    path = directory / INDEX
    index = json.loads(path.read_text())
    weights = index["weight_map"]
    name = rng.choice(sorted(weights))
    weights[name] = rng.choice(("absent.safetensors", "../x", "/dev/zero", "", ".", 3, None, [], "a" * 5000, "\0"))
    text = json.dumps(rng.choice((index, index, index, {"weight_map": []}, {"weight_map": {}}, [], {})))
    path.write_text(text if rng.random() < 0.8 else text[: rng.randrange(len(text))])


def weights_of(directory: Path) -> dict[str, torch.Tensor]:
    return load_decoder(directory, dtype=torch.float32, device=torch.device("cpu")).state_dict()


def refusal(directory: Path) -> str | None:
    """The message with which a checkpoint is refused, or None."""
    try:
        weights_of(directory)
    except ModelError as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    "spoil",
    [flip_header_bytes, cut, lie_in_header, lose_or_rename, other_config, other_index],
    ids=lambda f: f.__name__,
)
def test_a_spoiled_checkpoint_is_refused_or_loads_as_it_was(pairs, tmp_path, spoil: Spoil):
    rng = random.Random(spoil.__name__)
    refused = 0
    for case in range(CASES):
        whole = pairs(NAMES[case % len(NAMES)])
        directory = tmp_path / str(case)
        shutil.copytree(whole.directory, directory)
        spoil(rng, directory)
        message = refusal(directory)
        if message is None:
            weights, expected = weights_of(directory), weights_of(whole.directory)
            assert weights.keys() == expected.keys()
            assert all(torch.equal(weights[name], expected[name]) for name in expected)
        else:
            refused += 1
            assert str(directory) in message or "config.json" in message
            assert len(message) < 20_000
        shutil.rmtree(directory)
    assert refused > CASES // 4
