"""Text models inside of classes that see: either layout on disk, flags on either level, defaults left out."""

import json
import re
import shutil

import pytest
import torch
from reference_wrapped import WRAPPED
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from models.errors import ModelError, UnsupportedModelError, WeightsError
from models.families import FAMILIES, read_config
from models.families.wrapped import DEFAULTS
from models.load import load_decoder
from models.shards import INDEX, shard_files


@pytest.fixture
def rewritten(pairs, tmp_path):
    """A copy of a checkpoint in one file, its tensors through `edit`, its config.json's objects merged with changes."""

    def rewrite(name, edit=lambda tensors: tensors, text=None, **changes):
        directory = tmp_path / "copy"
        shutil.copytree(pairs(name).directory, directory)
        tensors = {}
        for shard in shard_files(directory):
            tensors |= load_file(shard)
            shard.unlink()
        (directory / INDEX).unlink(missing_ok=True)
        save_file({key: value.contiguous() for key, value in edit(tensors).items()}, directory / "model.safetensors")
        path = directory / "config.json"
        fields = json.loads(path.read_text()) | changes
        if text is not None:
            fields["text_config"] = drop(fields["text_config"] | text)
        path.write_text(json.dumps(drop(fields)))
        return directory

    return rewrite


def drop(fields):
    return {key: value for key, value in fields.items() if value is not ...}


def load(directory):
    return load_decoder(directory, dtype=torch.float32, device=torch.device("cpu"))


def assert_same(ours, pair):
    assert ours.config == pair.ours.config
    assert ours.state_dict().keys() == pair.weights.keys()
    assert all(torch.equal(tensor, pair.weights[name].cpu()) for name, tensor in ours.state_dict().items())


def renamed(pattern, name):
    return lambda tensors: {re.sub(pattern, name, key): tensor for key, tensor in tensors.items()}


def today(tensors):
    """Names as the classes of today have them, whatever the files have."""
    for pattern, name in (
        (r"^language_model\.lm_head\.", "lm_head."),
        (r"^language_model\.model\.", "model.language_model."),
        (r"^(?=vision_tower\.|multi_modal_projector\.|image_newline|visual\.)", "model."),
        (r"^model\.(?=layers\.|embed_tokens\.|norm\.)", "model.language_model."),
    ):
        tensors = renamed(pattern, name)(tensors)
    return tensors


def first(tensors):
    """Names as the first checkpoints had them; a `text_model` stands where it always stood."""
    tensors = renamed(r"^model\.language_model\.", "language_model.model.")(today(tensors))
    tensors = renamed(r"^model\.(?=vision_tower|multi_modal|image_newline|visual)", "")(tensors)
    inside = any(key.startswith("language_model.") for key in tensors)
    return renamed(r"^(?=lm_head\.)", "language_model." if inside else "")(tensors)


@pytest.mark.parametrize("edit", [today, first], ids=["today", "first"])
@pytest.mark.parametrize("name", sorted(WRAPPED))
def test_either_way_of_naming(pairs, rewritten, name, edit):
    directory = rewritten(name, edit)
    names = load_file(directory / "model.safetensors").keys()
    assert any("vision" in key or "visual" in key for key in names)
    assert_same(load(directory), pairs(name))


@pytest.mark.parametrize("turned", [False, True], ids=["as matrices", "turned round"])
@pytest.mark.parametrize("name", ["wrapped-qwen3-vl-moe", "wrapped-qwen3-5-moe"])
def test_experts_in_one_tensor(pairs, rewritten, name, turned):
    def stack(tensors):
        reference = pairs(name).reference.state_dict()
        experts = {key: tensor for key, tensor in reference.items() if ".mlp.experts." in key}
        assert experts
        rest = {key: tensor for key, tensor in tensors.items() if ".mlp.experts." not in key}
        return rest | {key: tensor.transpose(1, 2) if turned else tensor for key, tensor in experts.items()}

    assert_same(load(rewritten(name, stack)), pairs(name))


def test_the_flat_config_of_the_first_qwen_vl(pairs, rewritten):
    name = "wrapped-qwen2-5-vl"
    text = json.loads((pairs(name).directory / "config.json").read_text())["text_config"]
    text |= {"rope_parameters": ..., "rope_theta": 1234.5, "model_type": "qwen2_5_vl"}
    rope = {"rope_scaling": {"type": "mrope", "mrope_section": [1, 2, 3]}}
    directory = rewritten(name, **text, **rope, text_config=...)
    assert_same(load(directory), pairs(name))


@pytest.mark.parametrize("kind", sorted(DEFAULTS))
def test_what_a_text_config_leaves_out(kind):
    reference = AutoConfig.for_model(kind)
    for field, value in DEFAULTS[kind].items():
        theirs = reference.rope_parameters["rope_theta"] if field == "rope_theta" else getattr(reference, field)
        assert theirs == value, field


def test_a_text_config_that_says_nearly_nothing(tmp_path):
    """As Gemma 3 4B is published, read as it is read by the reference."""
    text = {
        "hidden_size": 2560,
        "intermediate_size": 10_240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    }
    fields = {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "eos_token_id": [1, 106],
        "model_type": "gemma3",
        "text_config": text,
    }
    (tmp_path / "config.json").write_text(json.dumps(fields))
    ours, theirs = read_config(tmp_path), AutoConfig.from_pretrained(tmp_path).text_config
    assert (ours.vocab_size, ours.max_positions) == (theirs.vocab_size, theirs.max_position_embeddings)
    assert ours.tie_embeddings
    assert ours.eos_token_ids == (1, 106)
    for layer, kind in zip(ours.layers, theirs.layer_types, strict=True):
        attention, rope = layer.mixer, theirs.rope_parameters[kind]
        assert (attention.num_heads, attention.num_kv_heads, attention.head_dim) == (8, 4, 256)
        assert attention.rope.theta == rope["rope_theta"]
        assert (attention.rope.scaling is not None) == (rope["rope_type"] == "linear") == (kind == "full_attention")
        assert attention.scores.window == (1024 if kind == "sliding_attention" else None)


@pytest.mark.parametrize(
    ("outer", "inner", "expected"), [(2, ..., (2,)), ([3, 4], 5, (3, 4)), (..., 5, (5,)), (None, [6], (6,))]
)
def test_end_tokens_on_either_level(rewritten, outer, inner, expected):
    directory = rewritten("wrapped-mistral3", eos_token_id=outer, text={"eos_token_id": inner})
    assert read_config(directory).eos_token_ids == expected


@pytest.mark.parametrize("inner", [True, False, ...])
@pytest.mark.parametrize("outer", [True, False, ...])
def test_the_head_in_the_files_counts_more_than_flags(pairs, rewritten, outer, inner):
    """As Mistral Small 3.1: it has a head of its own, and its class ties by default."""
    directory = rewritten("wrapped-mistral3", tie_word_embeddings=outer, text={"tie_word_embeddings": inner})
    assert_same(load(directory), pairs("wrapped-mistral3"))


@pytest.mark.parametrize(
    ("name", "tied"), [("wrapped-gemma3", True), ("wrapped-mistral3-tied", True), ("wrapped-llava", False)]
)
def test_without_a_flag_the_class_says_whether_embeddings_are_tied(rewritten, name, tied):
    directory = rewritten(name, tie_word_embeddings=..., text={"tie_word_embeddings": ...})
    assert read_config(directory).tie_embeddings == tied


def test_a_second_copy_of_tied_embeddings_is_not_kept(pairs, rewritten):
    def copy(tensors):
        return tensors | {"lm_head.weight": tensors["model.language_model.embed_tokens.weight"].clone()}

    assert_same(load(rewritten("wrapped-qwen3-vl", copy)), pairs("wrapped-qwen3-vl"))


def test_a_misshapen_head_of_tied_embeddings_is_refused(rewritten):
    directory = rewritten("wrapped-qwen3-vl", lambda tensors: tensors | {"lm_head.weight": torch.zeros(130, 72)})
    with pytest.raises(WeightsError, match=r"tensor 'lm_head.weight' has shape \[130, 72\], not \[131, 72\]"):
        load(directory)


def test_tensors_of_no_known_part_are_refused(rewritten):
    directory = rewritten("wrapped-llava", lambda tensors: tensors | {"adapter.weight": torch.zeros(3)})
    with pytest.raises(WeightsError, match=r"tensor 'adapter.weight' belongs to no parameter"):
        load(directory)


def test_a_text_model_that_is_not_ours(rewritten):
    directory = rewritten("wrapped-llava", text={"model_type": "cohere"})
    with pytest.raises(UnsupportedModelError, match=r"= 'cohere' is not supported for Llava.*: llama, mistral, qwen2"):
        read_config(directory)


def test_an_option_inside_of_text_config_is_refused_by_name(rewritten):
    directory = rewritten("wrapped-llava", text={"sliding_window": 8})
    with pytest.raises(UnsupportedModelError, match="sliding_window: not supported for LlavaForConditionalGeneration"):
        read_config(directory)


@pytest.mark.parametrize("value", [None, [], "x", 3])
def test_a_text_config_that_is_none(rewritten, value):
    with pytest.raises(ModelError, match="text_config must be an object"):
        read_config(rewritten("wrapped-llava", text_config=value))


def test_without_text_config(rewritten):
    with pytest.raises(ModelError, match="field 'text_config' is missing"):
        read_config(rewritten("wrapped-llava", text_config=...))


def test_every_wrapper_is_compared_with_the_reference():
    assert {type(build()).__name__ for build in WRAPPED.values()} == {
        name for name, family in FAMILIES.items() if family.wraps
    }
