"""Prompts of a wanted number of tokens, for any endpoint.

Every prompt begins with a nonce of its own, so that no prefix cache can flatter the server, also not one that
an earlier run with the same seed filled. All else is drawn from the seed. Nothing is tokenized here: tokens
are counted by the endpoint where it offers that, else estimated from what one measured prompt cost.
"""

import hashlib
import math
import random
from collections.abc import Callable
from dataclasses import dataclass

from loadtest.config import ConfigError

FILLER = (
    "about above across after again along always among animal answer around autumn balance basket before "
    "begin behind below beside better between bread bridge bright broken brother brown build candle "
    "careful castle center chance change circle city clear cloud cold color common corner cotton country "
    "cover cross current dance danger deep desert dinner direct distance doctor double dream early earth "
    "east engine enough evening every family farm father field finger fire fish floor flower follow "
    "forest forward friend front garden gentle glass gold grass great green ground harbor harvest heart "
    "heavy hidden history hollow honest house hundred island journey kitchen ladder lamp language large "
    "letter light little machine market matter meadow measure message middle minute mirror morning mother "
    "mountain music narrow nature needle never north number ocean office open orange paper people picture "
    "place plain planet pocket present question quiet rain rather reason record river road rock round "
    "sail school season second silver simple slow snow south spring square station stone story strange "
    "street summer sunday sure table teacher thousand thread through together tower travel under valley "
    "village voice wagon water weather west whisper winter wonder yellow young"
)
WORDS = tuple(FILLER.split())
CLOSING = "\nContinue this text in the same manner."
CALIBRATION_WORDS = 200
MAX_COUNTS = 6

Counter = Callable[[str], int]


@dataclass(frozen=True, slots=True)
class SizedPrompt:
    text: str
    num_tokens: int


def nonce(seed: int, salt: str, index: int) -> str:
    """16 hexadecimal digits, different for every request and for every salt."""
    return hashlib.blake2b(f"{seed}:{salt}:{index}".encode(), digest_size=8).hexdigest()


def compose(*, seed: int, salt: str, index: int, num_words: int) -> str:
    """The prompt of one request with `num_words` words of filler; more words only extend it."""
    rng = random.Random(f"words:{seed}:{index}")
    sentences: list[str] = []
    left = num_words
    while left > 0:
        length = min(rng.randint(7, 14), left)
        words = rng.choices(WORDS, k=14)[:length]
        sentences.append(" ".join(words).capitalize() + ".")
        left -= length
    return f"[{nonce(seed, salt, index)}] " + " ".join(sentences) + CLOSING


@dataclass(frozen=True, slots=True)
class Sizing:
    """How prompts are brought to their size.

    Attributes:
        count: tokens of a text as a user message, chat template included.
        tokens_per_word: what one more word of filler costs.
        max_tokens: what the model takes at most beside the output, >= target; None = unknown.
    """

    count: Counter
    target: int
    tokens_per_word: float
    max_tokens: int | None = None


def size_prompt(sizing: Sizing, *, seed: int, salt: str, index: int) -> SizedPrompt:
    """Find the number of words that brings the prompt within 1 % (at least 2 tokens) of the target.

    Never above max_tokens: the endpoint would refuse the prompt, under load, request by request.

    Raises:
        ConfigError: the shortest prompt is already longer, or no length comes close enough.
    """
    target, price = sizing.target, sizing.tokens_per_word
    tolerance = max(2, target // 100)
    most = math.inf if sizing.max_tokens is None else sizing.max_tokens
    num_words = max(1, round((target - 20) / price))
    tried: list[SizedPrompt] = []
    for _ in range(MAX_COUNTS):
        text = compose(seed=seed, salt=salt, index=index, num_words=num_words)
        tried.append(SizedPrompt(text, sizing.count(text)))
        num_tokens = tried[-1].num_tokens
        step = round((target - num_tokens) / price)
        if num_tokens > most:
            step = min(step, -1)
        elif abs(num_tokens - target) <= tolerance or step == 0:
            break
        num_words = max(1, num_words + step)
    best = min(tried, key=lambda prompt: (prompt.num_tokens > most, abs(prompt.num_tokens - target)))
    if best.num_tokens > most or abs(best.num_tokens - target) > max(tolerance, 2 * price):
        raise ConfigError(
            f"--context {target}: the nearest prompt has {best.num_tokens} tokens, template and nonce included"
        )
    return best


def tokens_per_word(count: Counter, *, seed: int, salt: str) -> float:
    """The endpoint's own price of one filler word, template and nonce taken out by a difference."""
    few = count(compose(seed=seed, salt=salt, index=-1, num_words=CALIBRATION_WORDS // 4))
    many = count(compose(seed=seed, salt=salt, index=-1, num_words=CALIBRATION_WORDS))
    return max((many - few) / (CALIBRATION_WORDS - CALIBRATION_WORDS // 4), 0.1)


def trial_prompt(*, seed: int, salt: str, target: int) -> str:
    """What is asked once before the run; shorter than the prompts to come, so that it fits where they do."""
    num_words = max(1, min(CALIBRATION_WORDS, target // 4))
    return compose(seed=seed, salt=salt, index=-2, num_words=num_words)


def estimating_counter(*, chars_per_token: float) -> Counter:
    return lambda text: round(len(text) / chars_per_token)
