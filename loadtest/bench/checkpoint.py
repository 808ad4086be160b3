"""Random weights in the usual Hugging Face layout. Every value is one that bfloat16 can hold, so both formats agree."""

import json
import math
import shutil
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from loadtest.bench.shapes import Draw, Shape
from loadtest.bench.vocabulary import write_tokenizer

Array = npt.NDArray[np.float32]
EMBEDDED = Path(__file__).resolve().parents[2] / "models" / "embedded"
STEP_RANGE = (1e-3, 1e-1)
RATE_RANGE = (1.0, 16.0)


def write_checkpoint(directory: Path, shape: Shape) -> Path:
    """Write config, tokenizer and weights; a directory that is complete is taken as it is."""
    weights = directory / "model.safetensors"
    if weights.is_file():
        return directory
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(shape.config, indent=1), encoding="utf-8")
    first_word = write_tokenizer(directory, shape.vocab_size)
    tensors = {name: draw(name, size, kind) for name, size, kind in shape.tensors()}
    # What is no word scores zero, far below the best of thousands of words: no answer ends early or breaks a letter.
    tensors[shape.head][:first_word] = 0.0
    unfinished = weights.with_suffix(".unfinished")
    save_file(tensors, unfinished, metadata={"format": "pt"})
    unfinished.rename(weights)
    return directory


def copy_embedded(directory: Path, name: str) -> Path:
    """An embedded model that never ends an answer by itself, so that everyone's answers are as long."""
    if not (directory / "model.safetensors").is_file():
        shutil.copytree(EMBEDDED / name, directory, ignore=shutil.ignore_patterns("README.md", "training.json"))
        for file in ("config.json", "generation_config.json"):
            content = json.loads((directory / file).read_text(encoding="utf-8"))
            content.pop("eos_token_id", None)
            (directory / file).write_text(json.dumps(content), encoding="utf-8")
    return directory


def draw(name: str, size: tuple[int, ...], kind: Draw) -> Array:
    """The values of one tensor, always the same for the same name."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    match kind:
        case "normal":
            # Each output is a sum over all axes but the first; of embeddings, that is as wide as their rows.
            values = rng.standard_normal(size, dtype=np.float32) * np.float32(np.prod(size[1:]) ** -0.5)
        case "near_one":
            values = rng.uniform(0.8, 1.2, size).astype(np.float32)
        case "small":
            values = rng.uniform(-0.1, 0.1, size).astype(np.float32)
        case "rate":
            values = np.log(rng.uniform(*RATE_RANGE, size)).astype(np.float32)
        case "rates":
            values = np.log(np.tile(np.arange(1, size[1] + 1, dtype=np.float32), (size[0], 1)))
        case "step":
            # The inverse of softplus, of steps that are spread evenly over the powers of ten.
            steps = np.exp(rng.uniform(math.log(STEP_RANGE[0]), math.log(STEP_RANGE[1]), size))
            values = (steps + np.log(-np.expm1(-steps))).astype(np.float32)
    return round_to_bfloat16(values)


def round_to_bfloat16(values: Array) -> Array:
    """The nearest values whose lower 16 bits are zero, halves to even."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)).view(np.float32)
