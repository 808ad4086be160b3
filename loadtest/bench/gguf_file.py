"""Writes a checkpoint of ours as the GGUF file that llama.cpp reads. Run by an interpreter that has `gguf` and numpy.

    python gguf_file.py CHECKPOINT OUT.gguf float32|bfloat16

What llama.cpp wants otherwise than Hugging Face: rows of queries and keys interleaved as its rotation pairs them; the
rates of a Mamba as -exp(A_log); convolutions without their empty axis; each group's norm as a row of its own.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "mamba2": gguf.MODEL_ARCH.MAMBA2,
    "mamba": gguf.MODEL_ARCH.MAMBA,
}
FILE_TYPES = {"float32": gguf.LlamaFileType.ALL_F32, "bfloat16": gguf.LlamaFileType.MOSTLY_BF16}


def read_tensors(file: Path) -> Iterator[tuple[str, Array]]:
    """Names and values of a safetensors file of float32."""
    with file.open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        start = stream.tell()
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] != "F32":
            raise SystemExit(f"{file}: {name} is {entry['dtype']}, and only F32 is read")
        begin, end = entry["data_offsets"]
        values = np.fromfile(file, np.float32, (end - begin) // 4, offset=start + begin)
        yield name, values.reshape(entry["shape"])


def write(checkpoint: Path, out: Path, dtype: str) -> None:
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    architecture = ARCHITECTURES[config["model_type"]]
    names = gguf.get_tensor_name_map(architecture, config["num_hidden_layers"])
    writer = gguf.GGUFWriter(out, gguf.MODEL_ARCH_NAMES[architecture])
    writer.add_file_type(FILE_TYPES[dtype])
    _add_sizes(writer, config)
    _add_tokens(writer, checkpoint, config)
    for name, values in read_tensors(checkpoint / "model.safetensors"):
        known = names.get_name(name.replace("dt_bias", "dt_proj.bias"), try_suffixes=(".weight", ".bias"))
        if known is None:
            raise SystemExit(f"llama.cpp has no name for {name}")
        _add_tensor(writer, known, arrange(name, values, config), dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def arrange(name: str, values: Array, config: dict[str, Any]) -> Array:
    """A tensor's values in the order in which llama.cpp wants them."""
    if name.endswith("q_proj.weight"):
        return interleave(values, config["num_attention_heads"])
    if name.endswith("k_proj.weight"):
        return interleave(values, config["num_key_value_heads"])
    if name.endswith("A_log"):
        values = -np.exp(values)
    if name.endswith("conv1d.weight"):
        return values[:, 0]
    if config["model_type"] == "mamba2":
        if name.endswith(("A_log", ".D")):
            return values[:, None]
        if name.endswith("mixer.norm.weight"):
            return values.reshape(config["n_groups"], -1)
    return values


def interleave(rows: Array, heads: int) -> Array:
    """First and second half of each head's rows, taken in turn."""
    halves = rows.reshape(heads, 2, -1, rows.shape[1])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def _add_tensor(writer: gguf.GGUFWriter, name: str, values: Array, dtype: str) -> None:
    """llama.cpp computes with vectors, norms, convolutions and what is no weight in float32 always."""
    small = values.ndim == 1 or "norm" in name or "conv1d" in name or not name.endswith(".weight")
    values = np.ascontiguousarray(values)
    if dtype == "float32" or small:
        writer.add_tensor(name, values)
    else:
        kind = gguf.GGMLQuantizationType.BF16
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)


def _add_sizes(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config.get("max_position_embeddings", 1 << 20))
    if config["model_type"] == "llama":
        writer.add_feed_forward_length(config["intermediate_size"])
        writer.add_head_count(config["num_attention_heads"])
        writer.add_head_count_kv(config["num_key_value_heads"])
        writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
        writer.add_rope_freq_base(config["rope_theta"])
        writer.add_rope_dimension_count(config["head_dim"])
        writer.add_vocab_size(config["vocab_size"])
        return
    inner = config["expand"] * config["hidden_size"]
    writer.add_feed_forward_length(0)
    writer.add_head_count(0)
    writer.add_layer_norm_rms_eps(config["layer_norm_epsilon"])
    writer.add_ssm_conv_kernel(config["conv_kernel"])
    writer.add_ssm_inner_size(inner)
    writer.add_ssm_state_size(config["state_size"])
    if config["model_type"] == "mamba2":
        writer.add_ssm_time_step_rank(config["num_heads"])
        writer.add_ssm_group_count(config["n_groups"])
    else:
        writer.add_ssm_time_step_rank(config["time_step_rank"])
        writer.add_ssm_dt_b_c_rms(False)


def _add_tokens(writer: gguf.GGUFWriter, checkpoint: Path, config: dict[str, Any]) -> None:
    """The vocabulary, for the text of answers; prompts come as ids, so how llama.cpp cuts text does not matter."""
    tokenizer = json.loads((checkpoint / "tokenizer.json").read_text(encoding="utf-8"))
    places = {place: token for token, place in tokenizer["model"]["vocab"].items()}
    special = {token["id"]: token["content"] for token in tokenizer["added_tokens"]}
    ids = range(config["vocab_size"])
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in tokenizer["model"]["merges"]]
    normal, control, unused = gguf.TokenType.NORMAL, gguf.TokenType.CONTROL, gguf.TokenType.UNUSED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([special.get(place) or places.get(place) or f"<unused {place}>" for place in ids])
    writer.add_token_types([control if n in special else normal if n in places else unused for n in ids])
    writer.add_token_merges(merges)
    writer.add_add_bos_token(False)
    if config.get("eos_token_id") is not None:
        writer.add_eos_token_id(config["eos_token_id"])


if __name__ == "__main__":
    write(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
