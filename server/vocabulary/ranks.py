"""Vocabularies of tiktoken: a file of byte strings with their ranks, made into a tokenizer of the `tokenizers` library.

tiktoken joins, again and again, the neighbours whose union has the lowest rank. That is BPE whose merges are all pairs
that make a known byte string, in the order of its rank.
"""

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken as FastAddedToken
from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE

from models.errors import ModelError, UnsupportedModelError
from server.vocabulary.added import CONFIG, AddedToken, SpecialTokens, surrounding
from server.vocabulary.fast import FastVocabulary
from server.vocabulary.letters import byte_letters

LINE = re.compile(rb"([A-Za-z0-9+/]+={0,2}) ([0-9]+)\s*")
# How a text is cut into words before their bytes are joined.
# Source: tokenizer.py of Llama 3, tokenization_qwen.py of Qwen; they differ in how many digits make a word.
WORDS = "|".join((
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
    r"[^\r\n\p{L}\p{N}]?\p{L}+",
    r"\p{N}{%s}",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*",
    r"\s*[\r\n]+",
    r"\s+(?!\S)",
    r"\s+",
))  # fmt: skip
LLAMA, QWEN = WORDS % "1,3", WORDS % "1"
QWEN_CLASS = "QWenTokenizer"
PATTERNS = {
    None: LLAMA,
    "PreTrainedTokenizer": LLAMA,
    "PreTrainedTokenizerFast": LLAMA,
    "LlamaTokenizer": LLAMA,
    "LlamaTokenizerFast": LLAMA,
    QWEN_CLASS: QWEN,
}
# Qwen's are nowhere but in its code.
QWEN_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{number}|>" for number in range(205)))


def is_rank_file(file: Path) -> bool:
    """Whether a file's first line is one of ranks. Raises: OSError."""
    with file.open("rb") as lines:
        return LINE.fullmatch(lines.readline(1024)) is not None


def read_ranks(
    file: Path, added: Sequence[AddedToken], special: SpecialTokens, config: Mapping[str, Any]
) -> FastVocabulary:
    """A file of ranks and the tokens beside it as a vocabulary.

    Args:
        config: tokenizer_config.json's content.
    Raises:
        ModelError: the file is broken, nothing names special tokens, or the checkpoint's tokenizer works in a way that
            only its own code knows.
    """
    kind = config.get("tokenizer_class")
    if kind not in PATTERNS:
        names = ", ".join(sorted(name for name in PATTERNS if name))
        raise UnsupportedModelError(
            f"{file.parent / CONFIG}: tokenizer_class {kind!r} cuts texts in a way that is written down in no file, "
            f"and code of checkpoints is not run; supported with {file.name}: {names}"
        )
    ranks = _read_lines(file)
    if kind == QWEN_CLASS and not added:
        added = [AddedToken(len(ranks) + number, text, special=True) for number, text in enumerate(QWEN_SPECIAL)]
    if not added:
        raise ModelError(f"{file.parent / CONFIG} names no special tokens (added_tokens_decoder); {file.name} has none")
    return FastVocabulary(_tokenizer(file, ranks, added, special, PATTERNS[kind]))


def _read_lines(file: Path) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            match = LINE.fullmatch(line)
            try:
                if match is None:
                    raise ValueError("no base64 text and number")
                ranks[base64.b64decode(match[1], validate=True)] = int(match[2])
            except (ValueError, binascii.Error) as error:
                raise ModelError(f"{file} is no file of ranks: line {number}: {error}") from error
    missing = [byte for byte in range(256) if bytes((byte,)) not in ranks]
    if missing or len(set(ranks.values())) < len(ranks):
        fault = f"byte {missing[0]} has no rank" if missing else "two byte strings have the same rank"
        raise ModelError(f"{file} is no file of ranks: {fault}")
    return ranks


def _tokenizer(
    file: Path, ranks: Mapping[bytes, int], added: Sequence[AddedToken], special: SpecialTokens, pattern: str
) -> Tokenizer:
    """The tokenizer that tiktoken's would be.

    Raises:
        ModelError: an added token has the id of a rank.
    """
    letters = byte_letters()
    vocabulary = {_spell(token, letters): rank for token, rank in ranks.items()}
    taken = set(ranks.values())
    for token in added:
        if token.token_id in taken or token.text in vocabulary:
            raise ModelError(
                f"{file.parent / CONFIG}: {token.text!r} cannot be token {token.token_id}: {file.name} has it"
            )
        # Known to the model as well, the library leaves them their ids.
        vocabulary[token.text] = token.token_id
        taken.add(token.token_id)
    merges = [(_spell(left, letters), _spell(right, letters)) for left, right in _merges(ranks)]
    # tiktoken takes a word that has a rank as it is, whatever its bytes would be joined to.
    tokenizer = Tokenizer(BPE(vocabulary, merges, ignore_merges=True))
    words = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    spelled = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, spelled])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([
        FastAddedToken(
            token.text, special=token.special, lstrip=token.lstrip, rstrip=token.rstrip, normalized=False
        )
        for token in added
    ])  # fmt: skip
    before, behind = surrounding(special, {token.text: token.token_id for token in added})
    if before or behind:
        ids = {token.token_id: token.text for token in added}
        template = [*(ids[one] for one in before), "$A", *(ids[one] for one in behind)]
        around = [(ids[one], one) for one in {*before, *behind}]
        tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=around)
    return tokenizer


def _merges(ranks: Mapping[bytes, int]) -> list[tuple[bytes, bytes]]:
    """All pairs of known byte strings whose union is known, by its rank."""
    merges: list[tuple[bytes, bytes]] = []
    for token in sorted(ranks, key=lambda token: ranks[token]):
        pairs = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        known = [(left, right) for left, right in pairs if left in ranks and right in ranks]
        merges += sorted(known, key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
    return merges


def _spell(token: bytes, letters: Sequence[str]) -> str:
    return "".join(letters[byte] for byte in token)
