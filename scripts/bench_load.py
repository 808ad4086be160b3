"""What loading a checkpoint takes in memory, measured in a process that does nothing else.

    python -m scripts.bench_load --gb 2

Writes a random Llama of that size, loads it in a fresh process, and prints the peak of its resident memory.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from models.load import load_decoder

MEBIBYTE = 1 << 20


def write_random_llama(directory: Path, gigabytes: float) -> int:
    """A checkpoint of about that many 10^9 bytes in bfloat16, in shards of 512 MiB; returns its bytes."""
    hidden, inner, vocab = 2048, 5632, 32_000
    per_layer = hidden * hidden * 2 + 2 * hidden * 512 + 3 * hidden * inner
    layers = max(1, round((gigabytes * 1e9 / 2 - vocab * hidden) / per_layer))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": hidden,
        "intermediate_size": inner,
        "max_position_embeddings": 4096,
        "num_attention_heads": 16,
        "num_hidden_layers": layers,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "vocab_size": vocab,
    }
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden), "model.norm.weight": (hidden,)}
    for layer in range(layers):
        for name, shape in {
            "input_layernorm": (hidden,),
            "self_attn.q_proj": (hidden, hidden),
            "self_attn.k_proj": (512, hidden),
            "self_attn.v_proj": (512, hidden),
            "self_attn.o_proj": (hidden, hidden),
            "post_attention_layernorm": (hidden,),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
        }.items():
            shapes[f"model.layers.{layer}.{name}.weight"] = shape
    total, shard, number = 0, {}, 0
    for name, shape in shapes.items():
        shard[name] = torch.randn(shape, dtype=torch.bfloat16)
        total += shard[name].nbytes
        if sum(tensor.nbytes for tensor in shard.values()) > 512 * MEBIBYTE or name == list(shapes)[-1]:
            save_file(shard, directory / f"part-{number:03d}.safetensors")
            shard, number = {}, number + 1
    return total


def peak_bytes() -> int:
    """Peak resident memory of this program. The kernel's own count: `ru_maxrss` starts at the parent's."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def load_only(directory: Path) -> None:
    """Load and print the peaks before and after; for a process of its own."""
    before = peak_bytes()
    started_s = time.perf_counter()
    load_decoder(directory, dtype=torch.bfloat16, device=torch.device("cpu"))
    print(json.dumps({"before": before, "after": peak_bytes(), "seconds": time.perf_counter() - started_s}))


def measure_load(gigabytes: float) -> str:
    with tempfile.TemporaryDirectory() as directory:
        size = write_random_llama(Path(directory), gigabytes)
        command = [sys.executable, "-m", "scripts.bench_load", "--load-only", directory]
        result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    after, before = result["after"], result["before"]
    return (
        f"load: {size / 1e9:.2f} GB of weights; peak of resident memory {after / 1e9:.2f} GB = {after / size:.3f} "
        f"times the weights, of which {before / 1e9:.2f} GB were there before "
        f"(without them {(after - before) / size:.3f}); {result['seconds']:.1f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what loading takes in memory.")
    parser.add_argument("--gb", type=float, default=2.0, help="weights, in 10^9 bytes")
    parser.add_argument("--load-only", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.load_only:
        load_only(arguments.load_only)
    else:
        print(measure_load(arguments.gb))


if __name__ == "__main__":
    main()
