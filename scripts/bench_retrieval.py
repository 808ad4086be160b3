"""What BM25 takes of time and memory over many passages, the passages themselves included.

    python -m scripts.bench_retrieval                                     # a million passages of 100 words
    python -m scripts.bench_retrieval --passages 100000 --questions 50

The passages are drawn from a vocabulary by Zipf's law, the same ones every time; its most frequent words are stop
words, as in English. Each part runs in a process of its own, whose largest resident size is told: `documents` makes the
passages and nothing else; `index` builds the index and puts it into the cache; `search` reads it from there and ranks.
Times are the processor's, which what else runs on the machine does not change. A table, then one line of JSON.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from bm25s.stopwords import STOPWORDS_EN
from rich.console import Console
from rich.table import Table

from evals.records import Document
from evals.retrieval import open_retriever

PARTS = ("documents", "index", "search")
SHIFT = 2.7  # B. Mandelbrot's correction of the law for the first words
SYLLABLES = [consonant + vowel for consonant in "bcdfghjklmnprstvwz" for vowel in "aeiou"]
AT_ONCE = 10_000  # passages that are drawn together
WORDS_OF_QUESTION = 9
GIB = 1 << 30


def vocabulary(size: int) -> np.ndarray:
    """Words by rank, the first of them stop words."""
    return np.array([*STOPWORDS_EN, *(_word(number) for number in range(len(STOPWORDS_EN), size))][:size], object)


def _word(number: int) -> str:
    word = ""
    while number or len(word) < 4:
        number, syllable = divmod(number, len(SYLLABLES))
        word += SYLLABLES[syllable]
    return word


def drawn_texts(num_texts: int, num_words: int, size: int, seed: int) -> Iterator[str]:
    words, rng = vocabulary(size), np.random.default_rng(seed)
    shares = np.cumsum(1 / (np.arange(1, size + 1) + SHIFT))
    for start in range(0, num_texts, AT_ONCE):
        drawn = rng.random((min(AT_ONCE, num_texts - start), num_words)) * shares[-1]
        for row in words[np.searchsorted(shares, drawn)]:
            yield " ".join(row)


def passages(arguments: argparse.Namespace) -> tuple[Document, ...]:
    texts = drawn_texts(arguments.passages, arguments.words, arguments.vocabulary, seed=0)
    return tuple(Document(f"p{number}", text[:20], text) for number, text in enumerate(texts))


def measure(part: str, arguments: argparse.Namespace) -> dict[str, float]:
    documents = passages(arguments)
    found: dict[str, float] = {}
    if part != "documents":
        started_s = time.process_time()
        retriever = open_retriever("bm25", documents, cache=Path(arguments.cache))
        found["open_s"] = time.process_time() - started_s
        found["peak_open_gib"] = peak_gib()
        taken_s = []
        for question in drawn_texts(arguments.questions, WORDS_OF_QUESTION, arguments.vocabulary, seed=1):
            started_s = time.process_time()
            retriever.top(question, arguments.top)
            taken_s.append(time.process_time() - started_s)
        found["search_p50_ms"] = 1000 * statistics.median(taken_s)
        found["search_max_ms"] = 1000 * max(taken_s)
    found["peak_gib"] = peak_gib()
    return found


def peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB


def measure_apart(part: str, arguments: argparse.Namespace, cache: str) -> dict[str, float]:
    command = [sys.executable, "-m", "scripts.bench_retrieval", "--part", part, "--cache", cache]
    for name in ("passages", "words", "vocabulary", "questions", "top"):
        command += [f"--{name}", str(getattr(arguments, name))]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passages", type=int, default=1_000_000)
    parser.add_argument("--words", type=int, default=100)
    parser.add_argument("--vocabulary", type=int, default=1_000_000)
    parser.add_argument("--questions", type=int, default=100)
    parser.add_argument("--top", type=int, default=100)
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--cache", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        print(json.dumps(measure(arguments.part, arguments)))
        return
    table = Table(title=f"{arguments.passages:,} passages of {arguments.words} words", title_justify="left")
    for heading in ("part", "peak GiB", "open s", "search ms, median", "longest"):
        table.add_column(heading, justify="left" if heading == "part" else "right")
    measured = {}
    with tempfile.TemporaryDirectory() as cache:
        for part in PARTS:
            measured[part] = found = measure_apart(part, arguments, cache)
            cells = [found.get(name) for name in ("peak_gib", "open_s", "search_p50_ms", "search_max_ms")]
            table.add_row(part, *("" if cell is None else f"{cell:.2f}" for cell in cells))
    Console().print(table)
    print(json.dumps({"passages": arguments.passages, "words": arguments.words, "parts": measured}))


if __name__ == "__main__":
    main()
