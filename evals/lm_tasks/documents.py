"""The samples of one task as lm-eval's documents: contexts, prompts and verdicts are those of `fathom eval run`."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from evals.client import open_session
from evals.conditions import corpus_of
from evals.config import ConfigError
from evals.contexts import Asked, Context, ContextBuilder
from evals.datasets import load_dataset
from evals.lm_tasks.settings import TaskSettings
from evals.prompts import build_messages
from evals.records import ESTIMATED, SERVED, Dataset, Document, Question
from evals.retrieval import open_retriever
from evals.runner import plan
from evals.scoring.grade import Grade, grade
from evals.tokenizer_file import open_tokenizer
from evals.tokens import DocumentCounter, TextCounter, TokenCounter, estimate

logger = logging.getLogger(__name__)


def build_documents(settings: TaskSettings) -> list[dict[str, Any]]:
    """A document for each question and budget, in the order in which `fathom eval run` asks them.

    Raises:
        ConfigError: a setting does not fit the dataset, or nothing can be asked.
    """
    dataset = load_dataset(settings.dataset, path=settings.data, seed=settings.config.seed)
    documents = asyncio.run(_build(settings, dataset))
    if not documents:
        raise ConfigError(
            f"--metadata: no question of {settings.dataset} has a context of {settings.condition} "
            f"within {settings.budgets[-1]} {settings.config.unit}"
        )
    return documents


async def _build(settings: TaskSettings, dataset: Dataset) -> list[dict[str, Any]]:
    config = settings.config
    retriever = None
    if dataset.documents:
        retriever = open_retriever(
            config.retriever,
            dataset.documents,
            model=config.retriever_model,
            seed=config.seed,
            cache=config.index_cache,
        )
    documents, num_left_out = [], 0
    async with open_session(config) as session:
        served = TokenCounter(session, config)
        counter, source = await _counter(settings, served)
        builder = ContextBuilder(config, counter, retriever, corpus_of(dataset, config.seed))
        for asked in plan(config, dataset):
            if asked.condition != settings.condition:
                continue
            contexts = await builder.build(asked, asked.budgets)
            for budget, context in zip(asked.budgets, contexts, strict=True):
                if context is None:
                    num_left_out += 1
                else:
                    documents.append(_document(asked, budget, context, source))
    if num_left_out:
        logger.warning("%d samples are left out: no such context, or none that small", num_left_out)
    return documents


async def _counter(settings: TaskSettings, served: TokenCounter) -> tuple[DocumentCounter, str]:
    """What counts a document's tokens, and its name: the tokenizer at hand, else the endpoint, else an estimate."""
    if settings.tokenizer is not None:
        tokenizer = open_tokenizer("--metadata tokenizer", settings.tokenizer)
        counter = TextCounter.of_tokenizer(lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids))
        return counter, f"tokenizer {settings.tokenizer}"
    if settings.has_endpoint:
        await served.start()
        if served.source == SERVED:
            return served, SERVED
    logger.warning("documents are counted by an %s", ESTIMATED)
    return TextCounter(estimate), ESTIMATED


def _document(asked: Asked, budget: int, context: Context, counting: str) -> dict[str, Any]:
    return {
        "condition": asked.condition,
        "permission": asked.permission,
        "budget": budget,
        "question": asdict(asked.question),
        "documents": [asdict(document) for document in context.documents],
        "document_tokens": context.tokens,
        "depth": context.depth,
        "planted": context.planted,
        "counting": counting,
    }


def messages_of(document: Mapping[str, Any]) -> list[dict[str, str]]:
    return build_messages(document["permission"], documents_of(document), document["question"]["text"])


def grade_of(document: Mapping[str, Any], answer: str) -> Grade:
    return grade(
        question_of(document),
        answer,
        documents_of(document),
        permission=document["permission"],
        planted=document["planted"],
    )


def question_of(document: Mapping[str, Any]) -> Question:
    fields = dict(document["question"])
    for name in ("answers", "gold_ids", "topic_ids"):
        fields[name] = tuple(fields[name])
    return Question(**fields)


def documents_of(document: Mapping[str, Any]) -> Sequence[Document]:
    return [Document(**part) for part in document["documents"]]
