"""`fathom eval recall`: how often retrievers find what supports the answers, before anything is asked."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from evals.config import NO_RERANKER, RERANK_DEPTH, ConfigError, RerankSettings
from evals.datasets import NAMES, load_dataset
from evals.exits import EXIT_CONFIG
from evals.retrieval import METHODS, open_retriever
from evals.retrieval.dense import DEFAULT_MODEL
from evals.retrieval.index_files import default_cache
from evals.retrieval.recall import DEFAULT_KS, RecallCurve, recall_curve
from evals.retrieval.recall_file import write_curves
from evals.stats.rates import Rate

DEFAULT_KS_TEXT = ",".join(map(str, DEFAULT_KS))
DatasetName = Annotated[str, typer.Option("--dataset", help=f"One of {', '.join(NAMES)}; the latter need --data.")]
Data = Annotated[Path | None, typer.Option(help="Directory of the dataset's files.")]
Retrievers = Annotated[
    list[str] | None,
    typer.Option("--retriever", help=f"{', '.join(METHODS)}; may be given several times. Default: {METHODS[0]}."),
]
RetrieverModel = Annotated[str, typer.Option(help="Of dense: a directory, or a name on the Hub. Default: MiniLM.")]
RerankerOption = Annotated[
    str, typer.Option("--reranker", help=f"{NO_RERANKER}, a cross-encoder's directory or name on the Hub, or a URL.")
]
RerankDepth = Annotated[int, typer.Option(help="How many of the first documents the reranker puts in order.")]
RerankerModel = Annotated[str | None, typer.Option(help="The model's name at the reranker's URL.")]
RerankerKey = Annotated[
    str | None, typer.Option(envvar="FATHOM_RERANKER_KEY", help="Bearer token of the reranker's URL; never stored.")
]
Ks = Annotated[str, typer.Option("--k", help="How many documents are taken, ascending.")]
Count = Annotated[int, typer.Option("--n", help="Questions, from the dataset's first.")]
Seed = Annotated[int, typer.Option(help="Draws the world, or the order of the questions.")]
Out = Annotated[Path | None, typer.Option(help="File for the same as JSON.")]


def recall(
    *,
    dataset: DatasetName,
    data: Data = None,
    retrievers: Retrievers = None,
    retriever_model: RetrieverModel = DEFAULT_MODEL,
    reranker: RerankerOption = NO_RERANKER,
    rerank_depth: RerankDepth = RERANK_DEPTH,
    reranker_model: RerankerModel = None,
    reranker_key: RerankerKey = None,
    k: Ks = DEFAULT_KS_TEXT,
    n: Count = 200,
    seed: Seed = 0,
    out: Out = None,
) -> None:
    """How often the supporting documents are among the first k, by retriever. Needs no endpoint."""
    console = Console()
    try:
        ks = parse_ks(k)
        rerank = RerankSettings(reranker, rerank_depth, reranker_model, reranker_key)
        loaded = load_dataset(dataset, path=data, seed=seed)
        if not 0 < n <= len(loaded.questions):
            raise ConfigError(f"--n must be from 1 to the {len(loaded.questions)} questions of {dataset}, got {n}")
        if not loaded.documents:
            raise ConfigError(f"--dataset {dataset} has questions without documents: nothing can be retrieved")
        curves = []
        for method in retrievers or METHODS[:1]:
            retriever = open_retriever(
                method, loaded.documents, model=retriever_model, seed=seed, cache=default_cache(), rerank=rerank
            )
            curves.append(recall_curve(loaded, retriever, ks, n))
        if out is not None:
            write_curves(out, [curve.as_json() for curve in curves])
    except ConfigError as error:
        console.print(f"[bold red]error[/bold red]: {escape(str(error))}", soft_wrap=True)
        raise typer.Exit(EXIT_CONFIG) from error
    for table in recall_tables(curves):
        console.print(table)
    console.print("Shares in % of the questions that have supporting documents, in brackets 95 % intervals.")
    console.print("Leaked: another document among the first k has an answer in its words. MRR: to the largest k.")


def parse_ks(text: str) -> tuple[int, ...]:
    """Raises:
    ConfigError: not whole numbers from 1, ascending.
    """
    parts = text.split(",")
    ks = tuple(int(part) for part in parts if part.strip().isdecimal())
    if len(ks) < len(parts) or min(ks) < 1 or list(ks) != sorted(set(ks)):
        raise ConfigError(f"--k must be ascending whole numbers from 1 with commas between them, got {text!r}")
    return ks


def recall_tables(curves: Sequence[RecallCurve]) -> list[Table]:
    return [_table(curve) for curve in curves]


def _table(curve: RecallCurve) -> Table:
    asked = f"{curve.questions - curve.without_gold:,} questions in {curve.clusters:,} clusters"
    title = f"{escape(curve.dataset)}, {escape(curve.retriever)}\n{asked}, {curve.documents:,} documents"
    table = Table(title=f"{title}; MRR {_interval(curve.mrr, 1, 3)}", title_justify="left", box=box.SIMPLE_HEAD)
    for heading in ("k", "recall", "leaked", "leaks"):
        table.add_column(heading, justify="right")
    for point in curve.points:
        leaks = "-" if point.leaks_mean is None else f"{point.leaks_mean:.2f}"
        table.add_row(str(point.k), _interval(point.recall), _interval(point.leaked), leaks)
    return table


def _interval(share: Rate, scale: int = 100, digits: int = 1) -> str:
    figures = [share["rate"], share["low"], share["high"]]
    if None in figures:
        return "-"
    rate, low, high = (f"{scale * value:.{digits}f}" for value in figures if value is not None)
    return f"{rate} \\[{low}-{high}]"
