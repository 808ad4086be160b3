"""Files of ranks as tokenizers, beside tiktoken itself."""

import random
import re
import unicodedata

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_files import TEXTS, declared, train_ranks, write_config, write_ranks

from models.errors import ModelError, UnsupportedModelError
from server.tokenizer import IncrementalDetokenizer, ModelTokenizer
from server.vocabulary.ranks import LLAMA, QWEN, QWEN_SPECIAL

RANKS = train_ranks()
NUM_RANKS = len(RANKS)
# As Llama 3's: behind the ranks, with a gap.
ADDED = {NUM_RANKS: "<|begin_of_text|>", NUM_RANKS + 1: "<|end_of_text|>", NUM_RANKS + 9: "<|eot_id|>"}
LLAMA_CONFIG = {"tokenizer_class": "PreTrainedTokenizerFast", "added_tokens_decoder": declared(ADDED)}
SPECIALS_INSIDE = ("<|eot_id|>", "a<|eot_id|> b\n<|begin_of_text|><|end_of_text|>", "<|eot_id", " <|eot_id|>\n\n")
# What joins in more than one way: runs, and words of few letters.
runs = st.one_of(st.text("ab- =\n1", max_size=60), st.text("a ", max_size=60), st.sampled_from(TEXTS))


def write(directory, name="tokenizer.model", ranks=RANKS, **config):
    write_ranks(directory / name, ranks)
    write_config(directory, **config)
    return directory


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return ModelTokenizer(write(tmp_path_factory.mktemp("llama"), **LLAMA_CONFIG))


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    return ModelTokenizer(write(tmp_path_factory.mktemp("qwen"), "qwen.tiktoken", tokenizer_class="QWenTokenizer"))


REFERENCES = {
    "llama": tiktoken.Encoding(
        "llama", pat_str=LLAMA, mergeable_ranks=RANKS, special_tokens={text: token for token, text in ADDED.items()}
    ),
    "qwen": tiktoken.Encoding(
        "qwen",
        pat_str=QWEN,
        mergeable_ranks=RANKS,
        special_tokens={text: NUM_RANKS + number for number, text in enumerate(QWEN_SPECIAL)},
    ),
}


@pytest.fixture(params=REFERENCES)
def pair(request):
    return request.getfixturevalue(request.param), REFERENCES[request.param]


def test_ids_may_have_gaps(llama):
    assert llama.vocab_size == NUM_RANKS + 10
    known = [
        llama.has_text(token) for token in (NUM_RANKS - 1, NUM_RANKS, NUM_RANKS + 5, NUM_RANKS + 9, NUM_RANKS + 10)
    ]
    assert known == [True, False, False, False, False]


def test_texts_are_encoded_as_by_tiktoken(pair):
    tokenizer, reference = pair

    @given(st.one_of(runs, st.text(max_size=60), st.lists(st.sampled_from(TEXTS), max_size=3).map(" ".join)))
    @settings(max_examples=500, deadline=None)
    def check(text):
        token_ids = reference.encode(text, allowed_special="all")
        assert tokenizer.encode(text, add_special_tokens=False) == token_ids
        assert tokenizer.decode(token_ids, skip_special_tokens=False) == text

    check()
    for text in (*TEXTS, *SPECIALS_INSIDE):
        token_ids = reference.encode(text, allowed_special="all")
        assert tokenizer.encode(text, add_special_tokens=False) == token_ids
        assert tokenizer.decode(token_ids, skip_special_tokens=False) == reference.decode(token_ids) == text


def test_tokens_have_tiktokens_bytes(pair):
    tokenizer, reference = pair
    tokens = [*range(NUM_RANKS), *(reference.encode_single_token(text) for text in reference.special_tokens_set)]
    assert [tokenizer.token_bytes(token) for token in tokens] == reference.decode_tokens_bytes(tokens)
    assert tokenizer.token_bytes(tokenizer.vocab_size) == b""


def test_ranks_in_any_order(tmp_path):
    """The longest do not need to be the last: what counts is the rank of what two neighbours make together."""
    rng = random.Random(1)
    for number in range(6):
        joined = [token for token in RANKS if len(token) > 1]
        ranks = {token: rank for token, rank in RANKS.items() if len(token) == 1}
        ranks |= dict(zip(rng.sample(joined, len(joined)), range(256, NUM_RANKS), strict=True))
        directory = tmp_path / str(number)
        directory.mkdir()
        tokenizer = ModelTokenizer(write(directory, ranks=ranks, **LLAMA_CONFIG))
        reference = tiktoken.Encoding("x", pat_str=LLAMA, mergeable_ranks=ranks, special_tokens={})
        for _ in range(200):
            text = "".join(rng.choices("ab- torkenhel1", k=rng.randint(1, 40)))
            assert tokenizer.encode(text, add_special_tokens=False) == reference.encode(text), text


def test_every_character_is_cut_as_by_tiktoken(llama):
    assigned = [chr(code) for code in range(0x110000) if unicodedata.category(chr(code)) not in ("Cn", "Co", "Cs")]
    for start in range(0, len(assigned), 1000):
        text = "".join(f"a{one}b1{one} {one}'{one}" for one in assigned[start : start + 1000])
        token_ids = REFERENCES["llama"].encode(text)
        assert llama.encode(text, add_special_tokens=False) == token_ids, hex(ord(assigned[start]))


@given(st.lists(st.one_of(st.integers(0, NUM_RANKS + 10), st.integers(0, 300)), max_size=60), st.data())
@settings(deadline=None)
def test_pieces_joined_are_the_whole_text(llama, token_ids, data):
    detokenizer = IncrementalDetokenizer(llama)
    given_out, start = "", 0
    while start < len(token_ids):
        size = data.draw(st.integers(1, 3))
        given_out += detokenizer.add(token_ids[start : start + size])
        start += size
    known = [token for token in token_ids if token < NUM_RANKS]
    assert given_out + detokenizer.add([], last=True) == llama.decode(token_ids) == REFERENCES["llama"].decode(known)


def test_runs_that_tiktoken_gives_up_on(llama):
    spaces = " " * 1_000_000
    with pytest.raises(ValueError, match="stack"):
        REFERENCES["llama"].encode(spaces)
    assert llama.decode(llama.encode(spaces, add_special_tokens=False)) == spaces


@pytest.mark.parametrize(
    ("config", "around"),
    [
        ({}, ([], [])),
        ({"bos_token": "<|begin_of_text|>"}, ([NUM_RANKS], [])),
        ({"bos_token": "<|begin_of_text|>", "add_bos_token": False}, ([], [])),
        ({"eos_token": "<|eot_id|>", "add_eos_token": True}, ([], [NUM_RANKS + 9])),
    ],
)
def test_begin_and_end_are_added_as_configured(tmp_path, config, around):
    tokenizer = ModelTokenizer(write(tmp_path, **LLAMA_CONFIG, **config))
    inner = tokenizer.encode("Ana", add_special_tokens=False)
    assert tokenizer.encode("Ana", add_special_tokens=True) == around[0] + inner + around[1]
    assert tokenizer.decode(around[0] + inner + around[1]) == "Ana"


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ({"tokenizer_class": "TikTokenTokenizer"}, UnsupportedModelError, "tokenizer_class 'TikTokenTokenizer' cuts"),
        ({}, ModelError, "names no special tokens"),
        ({"added_tokens_decoder": declared({3: "<x>"})}, ModelError, "'<x>' cannot be token 3: tokenizer.model has it"),
    ],
)
def test_what_cannot_be_known_is_refused(tmp_path, config, error, message):
    with pytest.raises(error, match=message):
        ModelTokenizer(write(tmp_path, **config))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content + b"AAA= x\n", f"line {NUM_RANKS + 1}: no base64 text and number"),
        (lambda content: content + b"AAAAA= 5\n", f"line {NUM_RANKS + 1}: "),
        (lambda content: content[content.index(b"\n") + 1 :], "byte 33 has no rank"),
        (lambda content: content + b"AAA= 5\n", "two byte strings have the same rank"),
    ],
)
def test_broken_files_are_named(tmp_path, change, message):
    directory = write(tmp_path, ranks=dict(sorted(RANKS.items(), key=lambda item: item[1])), **LLAMA_CONFIG)
    file = directory / "tokenizer.model"
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(ModelError, match=re.escape(f"{file} is no file of ranks: {message}")):
        ModelTokenizer(directory)


def test_a_tiktoken_file_that_is_something_else(tmp_path):
    (tmp_path / "qwen.tiktoken").write_text("version https://git-lfs.github.com/spec/v1\n")
    write_config(tmp_path, tokenizer_class="QWenTokenizer")
    with pytest.raises(ModelError, match=r"qwen\.tiktoken is no file of ranks: line 1"):
        ModelTokenizer(tmp_path)
