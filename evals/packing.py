"""Whole documents into a budget of tokens, so that each longer context begins with every shorter one."""

from collections.abc import Mapping, Sequence

from evals.records import Document


def pack(ranked: Sequence[Document], token_counts: Mapping[str, int], budget: int) -> tuple[Document, ...]:
    """The longest run of documents from the best one on that fits into `budget` tokens.

    It ends at the first document that does not fit, though a later one might: only so do contexts nest.

    Args:
        token_counts: document id -> tokens of its rendering; needed up to the first document that does not fit.
    """
    packed: list[Document] = []
    room = budget
    for document in ranked:
        if room == 0 or token_counts[document.id] > room:
            break
        room -= token_counts[document.id]
        packed.append(document)
    return tuple(packed)
