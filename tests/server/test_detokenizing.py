"""Texts that are their tokens' bytes, beside what the vocabulary itself makes of them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizer_files import declared, train_ranks, write_config, write_ranks
from tokenizers import AddedToken, Tokenizer, decoders, models

from models.embedded import embedded_directory
from server.detokenizing import ByteDetokenizer, detokenizer_of
from server.tokenizer import IncrementalDetokenizer, ModelTokenizer
from server.vocabulary.fast import FastVocabulary
from server.vocabulary.letters import byte_letters


@pytest.fixture(scope="module")
def vocabulary() -> FastVocabulary:
    """Every byte, runs of bytes, and added tokens: with letters that stand for bytes, for none, and for both."""
    letters = byte_letters()
    runs = ["🙂".encode(), "🙂".encode()[:2], "é".encode()[1:] + b"a", b" the", b"\xff\xc3"]
    words = [*letters, *("".join(letters[byte] for byte in run) for run in runs)]
    tokenizer = Tokenizer(models.BPE({word: number for number, word in enumerate(words)}, []))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens(["<tool>", "<é>", "<日>", AddedToken("<two words>")])
    tokenizer.add_special_tokens(["<end>"])
    return FastVocabulary(tokenizer)


@given(st.data())
def test_texts_are_those_of_the_vocabulary_however_they_are_cut(vocabulary, data):
    token_ids = data.draw(st.lists(st.integers(0, vocabulary.size + 1), max_size=20))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(token_ids)), max_size=6)))
    detokenizer, pieces = ByteDetokenizer(vocabulary.text_bytes), []
    for start, end in zip([0, *cuts], [*cuts, len(token_ids)], strict=True):
        pieces.append(detokenizer.add(token_ids[start:end]))
    pieces.append(detokenizer.add([], last=True))
    assert "".join(pieces) == vocabulary.decode(token_ids, skip_special_tokens=True)


def test_a_character_that_a_prompt_begins_is_the_answers(vocabulary):
    smile = list("🙂".encode())
    prompt = [ord("x")] * 20 + smile[:3]
    assert ByteDetokenizer(vocabulary.text_bytes, prompt).add([smile[3], ord("!")]) == "🙂!"
    assert ByteDetokenizer(vocabulary.text_bytes, prompt).add([ord("!")]) == "\ufffd!"
    assert ByteDetokenizer(vocabulary.text_bytes, prompt[:-3]).add([ord("!")]) == "!"


def test_only_bytes_in_a_row_are_taken_for_such(tmp_path):
    ranks = train_ranks()
    write_ranks(tmp_path / "ranks.tiktoken", ranks)
    special = declared({len(ranks): "<|endoftext|>"})
    write_config(tmp_path, tokenizer_class="QWenTokenizer", added_tokens_decoder=special)
    assert isinstance(detokenizer_of(ModelTokenizer(tmp_path)), ByteDetokenizer)
    embedded = ModelTokenizer(embedded_directory("embedded:transformer"))
    assert isinstance(detokenizer_of(embedded), IncrementalDetokenizer)
