"""Texts that begin like one before have the tokens that they have alone, and most of them is not tokenized again."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from models.embedded import embedded_directory
from server.vocabulary.ranks import LLAMA, QWEN
from server.vocabulary.reuse import ReusingEncoder, is_memoryless, num_common
from tests.tokenizer_files import TEXTS, WORDS, lines

BEGIN, SPECIAL = "<|begin|>", "<|end|>"


def byte_level(pattern: str | None, normalizer: normalizers.Normalizer | None = None) -> Tokenizer:
    """Byte-level BPE over the words of a pattern, GPT-2's if it is None, with a special token put in front."""
    tokenizer = Tokenizer(models.BPE())
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    split = [] if pattern is None else [pre_tokenizers.Split(Regex(pattern), behavior="isolated")]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*split, level])
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    # Runs of one letter, whose parts can be joined in more than one way.
    runs = ["-" * n + " " * n + "a" * n for n in range(1, 40)] * 2
    tokenizer.train_from_iterator(
        [*lines(), *runs], trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, show_progress=False)
    )
    tokenizer.add_special_tokens([AddedToken(BEGIN), AddedToken(SPECIAL, lstrip=True, rstrip=True)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", special_tokens=[(BEGIN, tokenizer.token_to_id(BEGIN))]
    )
    return tokenizer


TOKENIZERS = {
    "gpt2": byte_level(None),
    "llama": byte_level(LLAMA, normalizers.NFC()),
    "qwen": byte_level(QWEN, normalizers.Prepend(" ")),
    "embedded": Tokenizer.from_file(str(embedded_directory("embedded:mamba") / "tokenizer.json")),
}

texts = st.lists(st.sampled_from([*TEXTS, *WORDS, *WORDS, SPECIAL, " ", " ", "\n", "a", "aa", "'s", "1"]), max_size=60)


def plain(tokenizer: Tokenizer, text: str, *, add_special_tokens: bool) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_tokens_are_those_of_the_whole_text(name):
    """Texts cut anywhere, in the middle of words, characters' parts, runs and special tokens, that go on otherwise."""
    tokenizer, reused = TOKENIZERS[name], []

    @settings(max_examples=60, deadline=None)
    @given(data=st.data())
    def compare(data):
        encoder = ReusingEncoder(tokenizer, least_chars=50, most_chars=20_000)
        add = data.draw(st.booleans())
        text = " ".join(lines(80)[data.draw(st.integers(0, 20)) :])
        for _ in range(4):
            kept = len(text) - data.draw(st.one_of(st.integers(0, 200), st.integers(0, len(text))))
            text = text[: max(0, kept)] + "".join(data.draw(texts))
            assert encoder.encode(text, add_special_tokens=add) == plain(tokenizer, text, add_special_tokens=add)
        reused.append(encoder.num_reused)

    compare()
    assert sum(map(bool, reused)) > 10, "hardly anything was taken over, and so nothing tested"


@pytest.mark.parametrize("name", TOKENIZERS)
def test_most_of_a_text_is_not_tokenized_again(name):
    tokenizer = TOKENIZERS[name]
    encoder = ReusingEncoder(tokenizer)
    context = "\n\n".join(lines(1500))
    for number, end in enumerate(("Where was Ana Torres born?", "What is a token?", SPECIAL)):
        text = f"{context}\n\n{end}"
        assert encoder.encode(text, add_special_tokens=True) == plain(tokenizer, text, add_special_tokens=True)
        assert encoder.num_reused >= 0.95 * number * len(context)
    assert encoder.num_reused < 2 * len(context)
    before = encoder.num_reused
    encoder.encode(f"{context}\n\nWhere was Ana Torres born?", add_special_tokens=False)
    assert encoder.num_reused == before, "what stands around a text is not the same with and without"


def test_one_long_word_is_tokenized_whole():
    """Where nothing tells that words begin in step, nothing is taken over."""
    tokenizer = TOKENIZERS["llama"]
    encoder = ReusingEncoder(tokenizer, least_chars=50)
    for end in ("b", "c d", "aaa"):
        text = "a" * 3000 + end
        assert encoder.encode(text, add_special_tokens=False) == plain(tokenizer, text, add_special_tokens=False)
    assert encoder.num_reused == 0


def test_the_oldest_text_is_forgotten_first():
    tokenizer = TOKENIZERS["gpt2"]
    first, second, third = (f"{name} " + " ".join(lines(60)) for name in ("Ana", "Zürich", "hello"))
    encoder = ReusingEncoder(tokenizer, least_chars=50, most_chars=int(2.5 * len(first)))
    for text in (first, second, first, third):
        encoder.encode(text, add_special_tokens=False)
    encoder.encode(f"{second} more", add_special_tokens=False)
    assert encoder.num_reused == 0
    encoder.encode(f"{third} more", add_special_tokens=False)
    assert encoder.num_reused > 0


def test_only_words_cut_from_left_to_right():
    assert all(is_memoryless(tokenizer) for tokenizer in TOKENIZERS.values())
    whole = Tokenizer(models.BPE())
    assert not is_memoryless(whole), "one word, however long"
    whole.pre_tokenizer = pre_tokenizers.ByteLevel(use_regex=False)
    assert not is_memoryless(whole)
    merged = Tokenizer(models.BPE())
    merged.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_next")
    assert not is_memoryless(merged)
    random = Tokenizer(models.BPE(dropout=0.1))
    random.pre_tokenizer = pre_tokenizers.ByteLevel()
    assert not is_memoryless(random)
    unigram = Tokenizer(models.Unigram())
    unigram.pre_tokenizer = pre_tokenizers.ByteLevel()
    assert not is_memoryless(unigram)


@given(first=st.text("ab", max_size=8), second=st.text("ab", max_size=8))
def test_characters_in_common(first, second):
    common = num_common(first, second)
    assert first[:common] == second[:common]
    assert common == min(len(first), len(second)) or first[common] != second[common]
