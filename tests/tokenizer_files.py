"""Tokenizer files as checkpoints have them, trained here on a few lines."""

import base64
import io
import json
import random
import threading
import time
from pathlib import Path

from sentencepiece import SentencePieceTrainer, set_min_log_level
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers.convert_slow_tokenizer import bytes_to_unicode

WORDS = (
    "the of and a in was born painter Ana Torres hello world token tokens tokenizer naïve Zürich Straße été 1812 2024 "
    "日本語 東京 東京都 Привет мир don't can't we're -- --- == a(b) x[i] user: \"quoted\""
).split()
# Unlike what they are trained on: spaces in runs and at both ends, other scripts, controls, half-known words.
TEXTS = (
    "", " ", "  ", "   \t  ", "a", " a", "  a", "a ", "a  ", "a  b   c",
    "\n", "\n\n\n", "a\nb\n\n c\r\n\r\nd", "\ta\t\tb", "a\u00a0b\u2009c\u3000d\u200be",
    "Ana Torres was born in 1812.", "hello  world ", "unseen wörds, 1234567890 and ½ ³ ①",
    "日本語 東京都は日本。", "🙂🙂 👩\u200d👩\u200d👧 🇩🇪 e\u0301 \u212b \ufb01 \u2167",
    "\x00a\x01\x02\x7f\x1b[0m", "\ufeffbom \ufffd \U0010ffff \ue000",
    "don't DON'T can'T we'Re I'm 'S \u017f's", "▁ is the mark ▁▁ of spaces", "<0x41> <s>x</s> <unk>",
    "-----  =====   -=-=-=", "#" * 300, "ab" * 200, "x" * 1000, " " * 500 + "end",
    "שלום עולם مرحبا नमस्ते", "\uff21\uff42\uff43\uff11\uff12 \uff76\uff80",
)  # fmt: skip


def lines(num_lines: int = 600) -> list[str]:
    rng = random.Random(5)
    return [" ".join(rng.choice(WORDS) for _ in range(rng.randint(3, 14))) for _ in range(num_lines)]


def train_pieces(kind: str = "bpe", *, vocab_size: int = 400, **options: object) -> bytes:
    """A SentencePiece model. The options are the trainer's; by default it is made like Llama 2's."""
    set_min_log_level(2)
    model = io.BytesIO()
    like_llama = {
        "byte_fallback": True, "normalization_rule_name": "identity", "remove_extra_whitespaces": False,
        "split_digits": True, "allow_whitespace_only_pieces": True,
    }  # fmt: skip
    SentencePieceTrainer.train(
        sentence_iterator=iter(lines()),
        model_writer=model,
        model_type=kind,
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        num_threads=1,
        **(like_llama | options),
    )
    return model.getvalue()


def train_ranks(vocab_size: int = 700) -> dict[bytes, int]:
    """Byte strings with their ranks, the 256 bytes first."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    # Runs of one letter, whose parts can be joined in more than one way.
    tokenizer.train_from_iterator([*lines(), *("-" * n + " " * n + "a" * n for n in range(1, 40))] * 2, trainer)
    bytes_of = {letter: byte for byte, letter in bytes_to_unicode().items()}
    return {bytes(bytes_of[letter] for letter in text): rank for text, rank in tokenizer.get_vocab().items()}


def write_ranks(file: Path, ranks: dict[bytes, int]) -> None:
    file.write_bytes(b"".join(b"%s %d\n" % (base64.b64encode(token), rank) for token, rank in ranks.items()))


def write_config(directory: Path, **content: object) -> None:
    (directory / "tokenizer_config.json").write_text(json.dumps(content))


def declared(tokens: dict[int, str], **properties: object) -> dict[str, dict[str, object]]:
    """An added_tokens_decoder of special tokens."""
    return {str(token_id): {"content": text, "special": True} | properties for token_id, text in tokens.items()}


def longest_pause(call):
    """How long this thread stood still at most while another one made the call, and how long that took, in seconds."""
    took_s = []

    def work():
        start = time.monotonic()
        call()
        took_s.append(time.monotonic() - start)

    thread = threading.Thread(target=work)
    worst_s, last = 0.0, time.monotonic()
    thread.start()
    while not took_s:
        time.sleep(0.001)
        worst_s, last = max(worst_s, time.monotonic() - last), time.monotonic()
    thread.join()
    return worst_s, took_s[0]
