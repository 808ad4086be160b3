"""Checkpoints as strangers have them, through a real server: their sampling defaults, tokenizers and templates."""

import json
import shutil

import httpx
import openai
import pytest
import torch
from server_checks import refusal
from serving import ServerProcess
from tokenizer_files import declared, train_pieces, train_ranks, write_config, write_ranks
from transformers import LlamaConfig, LlamaForCausalLM

from models.embedded import embedded_directory
from models.errors import ModelError
from server.generation_config import GenerationConfig, SamplingDefaults, read_generation_config

NUM_RANKS = 700
API_DEFAULTS = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
PROMPTS = ("Question: Who", "She is a", "Ana Torres was born in")  # what one of them gives may be empty


def write_generation(directory, **content):
    directory.mkdir(exist_ok=True)
    (directory / "generation_config.json").write_text(json.dumps(content))
    return directory


@pytest.mark.parametrize(
    ("content", "defaults"),
    [
        ({}, {}),
        ({"temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": 0.05}, None),
        ({"temperature": 2, "top_p": 1, "top_k": -1, "min_p": None}, {"temperature": 2.0}),
        ({"do_sample": True, "temperature": 0.7}, {"temperature": 0.7}),
        ({"do_sample": False, "temperature": 0.7, "top_p": 0.9}, {"temperature": 0.0, "top_p": 0.9}),
        ({"repetition_penalty": 1.05, "do_sample": False}, {"repetition_penalty": 1.05, "temperature": 0.0}),
        ({"do_sample": None, "top_k": None, "eos_token_id": [1, 2], "transformers_version": "4.1"}, {}),
    ],
)
def test_defaults_by_the_file(tmp_path, content, defaults):
    config = read_generation_config(write_generation(tmp_path, **content))
    assert config == GenerationConfig(SamplingDefaults(**(content if defaults is None else defaults)))


def test_what_is_asked_for_and_not_implemented_is_listed(tmp_path):
    content = {
        "no_repeat_ngram_size": 3,
        "num_beams": 1,
        "max_new_tokens": 512,
        "suppress_tokens": [],
        "min_length": 0,
    }
    ignored = read_generation_config(write_generation(tmp_path, **content, typical_p=1.0, stop_strings=["x"])).ignored
    assert ignored == ("no_repeat_ngram_size 3", "max_new_tokens 512", "stop_strings ['x']")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"temperature": 2.5}', "temperature must be a number, at least 0 and at most 2, not 2.5"),
        ('{"temperature": -0.1}', "temperature must be a number, at least 0 and at most 2, not -0.1"),
        ('{"temperature": NaN}', "temperature must be a number, at least 0 and at most 2, not nan"),
        ('{"temperature": "hot"}', "temperature must be a number, at least 0 and at most 2, not 'hot'"),
        ('{"top_p": 0}', "top_p must be a number, above 0 and at most 1, not 0"),
        ('{"top_p": true}', "top_p must be a number, above 0 and at most 1, not True"),
        ('{"min_p": 1.5}', "min_p must be a number, at least 0 and at most 1, not 1.5"),
        ('{"top_k": 1.5}', "top_k must be a whole number"),
        ('{"top_k": -2}', "top_k must be a whole number"),
        ('{"do_sample": "no"}', "do_sample must be true or false, not 'no'"),
        ("[]", "is not a JSON object"),
        ("{", "cannot be read as JSON"),
    ],
)
def test_values_that_no_request_could_have_are_named(tmp_path, content, words):
    (tmp_path / "generation_config.json").write_text(content)
    with pytest.raises(ModelError, match=r"generation_config\.json") as raised:
        read_generation_config(tmp_path)
    assert words in str(raised.value)


def test_no_file_means_the_api_s_defaults(tmp_path):
    assert read_generation_config(tmp_path) == GenerationConfig()


def write_llama(directory, vocab_size):
    torch.manual_seed(2)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=512,
        eos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    """Of what they say of sampling: greedy, and among the likeliest one. Of their tokenizer: pieces, and ranks."""
    root = tmp_path_factory.mktemp("checkpoints")
    for name in ("greedy", "likeliest"):
        shutil.copytree(embedded_directory("embedded:transformer"), root / name)
    write_generation(root / "greedy", eos_token_id=4, do_sample=False, temperature=0.9, typical_p=0.9)
    write_generation(root / "likeliest", eos_token_id=4, temperature=2.0, top_k=1)
    (write_llama(root / "pieces", 400) / "tokenizer.model").write_bytes(train_pieces())
    write_ranks(write_llama(root / "ranks", NUM_RANKS + 2) / "tokenizer.model", train_ranks(NUM_RANKS))
    specials = {NUM_RANKS: "<|begin|>", NUM_RANKS + 1: "<|end|>"}
    write_config(root / "ranks", bos_token="<|begin|>", added_tokens_decoder=declared(specials))
    return [root / name for name in ("greedy", "likeliest", "pieces", "ranks")]


@pytest.fixture(scope="module")
def served(directories):
    with ServerProcess(*map(str, directories), "--threads", "1", "--cache-gib", "0.1") as server:
        yield server.wait_ready()


@pytest.fixture
def stranger(served):
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def texts_of(client, model, *, extra=None, **options):
    body = {"model": model, "max_tokens": 24, "seed": 7, "extra_body": {"ignore_eos": True} | (extra or {})} | options
    texts = [client.completions.create(prompt=prompt, **body).choices[0].text for prompt in PROMPTS]
    assert any(texts)
    return texts


def test_a_request_that_says_nothing_gets_the_model_s_defaults(stranger, served):
    entries = {entry.id: entry.fathom["sampling_defaults"] for entry in stranger.models.list()}
    assert entries == {
        "greedy": API_DEFAULTS | {"temperature": 0.0},
        "likeliest": API_DEFAULTS | {"temperature": 2.0, "top_k": 1},
        "pieces": API_DEFAULTS,
        "ranks": API_DEFAULTS,
    }
    greedy = texts_of(stranger, "greedy", temperature=0)
    assert texts_of(stranger, "greedy") == texts_of(stranger, "likeliest") == greedy
    assert texts_of(stranger, "greedy", temperature=2) != greedy
    drawn = [texts_of(stranger, "likeliest", extra={"top_k": value}) for value in (0, -1)]
    assert drawn[0] == drawn[1] == texts_of(stranger, "greedy", temperature=2)
    [line] = [line for line in served.log if "not implemented" in line]
    assert line.endswith("greedy: generation_config.json asks for what is not implemented: typical_p 0.9")


def test_the_file_can_be_left_aside(directories):
    options = ("--generation-config", "none", "--threads", "1", "--cache-gib", "0.1")
    with ServerProcess(str(directories[0]), *options) as server:
        server.wait_ready()
        assert not any("not implemented" in line for line in server.log)
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            assert client.models.retrieve("greedy").fathom["sampling_defaults"] == API_DEFAULTS
            assert texts_of(client, "greedy") == texts_of(client, "greedy", temperature=1)
            assert texts_of(client, "greedy") != texts_of(client, "greedy", temperature=0)


@pytest.mark.parametrize("model", ["pieces", "ranks"])
def test_other_tokenizers_serve_completions(stranger, served, model):
    text = "Ana Torres was born in 1812. 日本 🙂\n\n  x"
    options = {"model": model, "max_tokens": 60, "temperature": 1.5, "seed": 3}
    whole = stranger.completions.create(prompt=text, **options)
    streamed = stranger.completions.create(prompt=text, stream=True, **options)
    assert "".join(chunk.choices[0].text for chunk in streamed) == whole.choices[0].text != ""
    tokens = httpx.post(f"{served.url}/tokenize", json={"model": model, "prompt": text}).json()["tokens"]
    assert whole.usage.prompt_tokens == len(tokens)
    begin = {"pieces": "<s>", "ranks": "<|begin|>"}[model]
    again = httpx.post(f"{served.url}/detokenize", json={"model": model, "tokens": tokens}).json()
    assert again == {"prompt": begin + text}


@pytest.mark.parametrize("stream", [False, True])
def test_a_completion_begins_with_the_space_that_parts_it_from_its_prompt(stranger, stream):
    """SentencePiece drops it at the begin of a text, which a completion is not."""
    texts = []
    for seed in range(12):
        options = {"prompt": "Ana Torres", "max_tokens": 3, "temperature": 2, "seed": seed, "stream": stream}
        answer = stranger.completions.create(model="pieces", **options)
        texts.append("".join(chunk.choices[0].text for chunk in answer) if stream else answer.choices[0].text)
    assert any(text.startswith(" ") for text in texts)


@pytest.mark.parametrize("model", ["pieces", "ranks"])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/tokenize"])
def test_without_a_template_chats_are_refused(served, model, path):
    body = {"model": model, "messages": [{"role": "user", "content": "Hello"}]}
    answer = httpx.post(f"{served.url}{path}", json=body)
    assert (answer.status_code, refusal(answer)["param"]) == (400, "messages")
    assert "no chat template; use /v1/completions" in refusal(answer)["message"]
