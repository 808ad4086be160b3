"""Synthetic tasks at any length: a needle among look-alikes, a chain of variables, a count over documents.

As in RULER, but a document that matters can stand anywhere: its place is the condition's, not the length's. Everything
is drawn from a seed; documents that do not matter are of the same form as those that do, or on nothing at all.
Source: arXiv:2404.06654 (RULER), for the kinds of tasks.
"""

import random
from collections.abc import Callable, Sequence
from itertools import pairwise

from evals.datasets.files import dataset
from evals.datasets.world_words import ADJECTIVES, INSTRUMENTS, NOUNS, PRODUCTS, PROFESSIONS, RIVERS
from evals.records import Dataset, Document, Question

NUM_QUESTIONS, NUM_FILLERS = 2000, 4000
HOPS = (2, 3, 4)
MOST_COUNTED = 6
_FILLERS = (
    "The {adjective} {noun} stood near the {river} for many years. Nobody asked the {profession} about it.",
    "A {profession} sold {product} by the {river} and spoke of the {adjective} {noun} every evening.",
    "There was {product} on the table, and a {instrument} beside it. The {profession} had gone for a walk.",
    "The {river} was high that spring. A {adjective} {noun} could be seen from the road, said the {profession}.",
)


def load_needle(seed: int) -> Dataset:
    """Questions of the three kinds by turns, over one pool of documents."""
    rng = random.Random(seed)
    documents: list[Document] = []
    drawers: Sequence[Callable[[random.Random, str], tuple[list[Document], Question]]] = (_needle, _chain, _count)
    questions = []
    for number in range(NUM_QUESTIONS):
        written, question = drawers[number % len(drawers)](rng, f"n{number}")
        documents += written
        questions.append(question)
    documents += [_filler(rng, number) for number in range(NUM_FILLERS)]
    rng.shuffle(documents)
    return dataset("needle", documents, questions, f"generated, seed {seed}")


def _name(rng: random.Random, key: str) -> str:
    """Two words that may stand in any other name, and the question's own number."""
    return f"{rng.choice(ADJECTIVES)} {rng.choice(NOUNS)} {key[1:]}"


def _needle(rng: random.Random, key: str) -> tuple[list[Document], Question]:
    name, code = _name(rng, key), str(rng.randrange(10_000, 100_000))
    document = Document(f"{key}/0", "Note", f"The code of the {name} is {code}.")
    text = f"What is the code of the {name}?"
    return [document], Question(key, text, (code,), (document.id,), "needle", key)


def _chain(rng: random.Random, key: str) -> tuple[list[Document], Question]:
    hops, value = rng.choice(HOPS), str(rng.randrange(10_000, 100_000))
    names = [f"{letter}{key[1:]}" for letter in rng.sample("ABCDEFGHKLMNPRSTUVWXYZ", hops)]
    texts = [f"Variable {names[0]} is set to {value}."]
    texts += [f"Variable {name} is set to the value of variable {before}." for before, name in pairwise(names)]
    documents = [Document(f"{key}/{i}", "Assignment", text) for i, text in enumerate(texts)]
    gold = tuple(document.id for document in documents)
    return documents, Question(key, f"What is the value of variable {names[-1]}?", (value,), gold, "chain", key)


def _count(rng: random.Random, key: str) -> tuple[list[Document], Question]:
    name, count = _name(rng, key), rng.randint(2, MOST_COUNTED)
    days = rng.sample(range(1, 366), count)
    documents = [
        Document(f"{key}/{i}", f"Log of day {day}", f"The {name} was seen today.") for i, day in enumerate(days)
    ]
    gold = tuple(document.id for document in documents)
    return documents, Question(key, f"On how many days was the {name} seen?", (str(count),), gold, "count", key)


def _filler(rng: random.Random, number: int) -> Document:
    text = rng.choice(_FILLERS).format(
        adjective=rng.choice(ADJECTIVES),
        noun=rng.choice(NOUNS),
        river=rng.choice(RIVERS),
        profession=rng.choice(PROFESSIONS),
        product=rng.choice(PRODUCTS),
        instrument=rng.choice(INSTRUMENTS),
    )
    return Document(f"filler{number}", "Note", text)
