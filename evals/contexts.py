"""The contexts of one question, for each budget: the documents of its condition, as many as fit, in their order."""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from evals.conditions import Choice, Corpus, arrange, choose, depth_in, depth_of, is_leak
from evals.config import RunConfig
from evals.packing import pack
from evals.records import Condition, Document, Permission, Question
from evals.retrieval.ranking import Retriever
from evals.scoring.grade import spoken_passages
from evals.tokens import DocumentCounter

TAKEN_AT_ONCE = 64  # documents of a ranking, looked through while other requests are timed


@dataclass(frozen=True, slots=True)
class Asked:
    """One question under one permission and condition, at ascending budgets. number: of the question in its dataset."""

    question: Question
    number: int
    permission: Permission
    condition: Condition
    budgets: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Context:
    """What one prompt has of documents. tokens: of all of them together, as they were counted."""

    documents: tuple[Document, ...]
    tokens: int
    depth: float | None
    num_leaks: int
    num_duplicates: int
    planted: str | None


class ContextBuilder:
    """Builds contexts for one run. retriever: None for a dataset without documents."""

    def __init__(
        self, config: RunConfig, counter: DocumentCounter, retriever: Retriever | None, corpus: Corpus
    ) -> None:
        self._config, self._counter, self._retriever, self._corpus = config, counter, retriever, corpus

    async def build(self, asked: Asked, budgets: Sequence[int]) -> list[Context | None]:
        """A context for each budget; None where the question has none: no gold to give, or none that fits."""
        if not budgets:
            return []
        choice = await asyncio.to_thread(self._choose, asked)
        if choice is None:
            return [None] * len(budgets)
        fixed = sum([await self._size(document) for document in choice.fixed])
        filled, sizes = await self._fill(choice, budgets[-1] - fixed)
        contexts: list[Context | None] = []
        leaks: dict[str, bool] = {}
        for budget in budgets:
            # Without a length, what is fixed is all there is.
            if budget and fixed > budget:
                contexts.append(None)
                continue
            packed = pack(filled, sizes, max(0, budget - fixed))
            contexts.append(await self._context(asked, choice, packed, leaks))
        return contexts

    def _choose(self, asked: Asked) -> Choice | None:
        ranking: Iterator[Document] = iter(())
        if self._retriever is not None:
            ranking = self._retriever.ranking(asked.question.text)
        return choose(asked.condition, asked.question, ranking, self._corpus)

    async def _size(self, document: Document) -> int:
        return 1 if self._config.unit == "documents" else await self._counter.count(document)

    async def _fill(self, choice: Choice, room: int) -> tuple[list[Document], dict[str, int]]:
        """As many documents as the largest budget can hold, and no more counted than those."""
        filled: list[Document] = []
        sizes: dict[str, int] = {}
        rest = iter(choice.fill)
        while room > 0 and (taken := await asyncio.to_thread(lambda: list(islice(rest, TAKEN_AT_ONCE)))):
            for document in taken:
                if room <= 0:
                    break
                sizes[document.id] = await self._size(document)
                filled.append(document)
                room -= sizes[document.id]
        return filled, sizes

    async def _context(
        self, asked: Asked, choice: Choice, packed: Sequence[Document], leaks: dict[str, bool]
    ) -> Context:
        """leaks: of the question's documents those that were looked at, by their ids; whatever is new enters."""
        question, depth = asked.question, self._config.depth
        documents = arrange(
            choice.fixed,
            packed,
            order=self._config.order,
            depth=depth_of(asked.number) if depth is None else depth,
            key=f"{self._corpus.seed} {question.id}",
        )
        leaks.update({each.id: is_leak(each, question) for each in documents if each.id not in leaks})
        return Context(
            documents=documents,
            tokens=await self._counter.count_all(documents),
            depth=depth_in(documents, question.gold_ids),
            num_leaks=sum(leaks[document.id] for document in documents),
            num_duplicates=len(documents) - len({spoken_passages(document)[1] for document in documents}),
            planted=choice.planted,
        )
