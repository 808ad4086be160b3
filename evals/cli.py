"""`fathom eval`: options in, progress and a table out."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from rich.console import Console

from evals.calibrate_cli import calibrate
from evals.compare_cli import compare
from evals.concurrency import MOST
from evals.config import (
    DEFAULT_BUDGETS,
    DEFAULT_TEMPERATURE,
    NO_RERANKER,
    RERANK_DEPTH,
    ConfigError,
    RerankSettings,
    RunConfig,
)
from evals.console import refused, run_and_show, show, tell_failures
from evals.datasets import FROM_FILES, NAMES
from evals.datasets.world_dials import DIALS, describe
from evals.endpoints_cli import answers, endpoints, find_key
from evals.exits import EXIT_INTERRUPTED
from evals.judge_cli import judge
from evals.lm.cli import lm, show_tasks_directory
from evals.manifest import Origin
from evals.options import cost_options, document_options, doubt_options, parse_concurrency, question_options
from evals.output import read_load, write_for_paper
from evals.plan_cli import plan
from evals.recall_cli import RerankDepth, RerankerKey, RerankerModel, RerankerOption, RetrieverModel, recall
from evals.records import CONDITIONS, PERMISSIONS, CacheState, Energy, Order, Unit
from evals.retrieval import METHODS
from evals.retrieval.dense import DEFAULT_MODEL
from evals.scoring.graders import qualities
from evals.stores_cli import export, merge, rerun

Name = TypeVar("Name", bound=str)

app = typer.Typer(no_args_is_help=True, help="How hallucination changes with context length, at any endpoint.")

Endpoint = Annotated[
    str,
    typer.Option(help="URL of an OpenAI-compatible server, a name of `fathom eval endpoints`, or replay:FILE."),
]
Models = Annotated[list[str], typer.Option("--model", help="Model to ask; may be given several times.")]
Out = Annotated[Path, typer.Option(help="Directory for the store, summary.json and report.html.")]
DatasetName = Annotated[
    str,
    typer.Option("--dataset", help=f"One of {', '.join(NAMES)}; those from {next(iter(FROM_FILES))} on need --data."),
]
Data = Annotated[Path | None, typer.Option(help="Directory of the dataset's files.")]
World = Annotated[
    str | None,
    typer.Option(help=f"Dials of the dataset world, as namesakes=0.5,hops=0.3: {', '.join(map(describe, DIALS))}."),
]
DEFAULT_BUDGETS_TEXT = ",".join(map(str, DEFAULT_BUDGETS))
Budgets = Annotated[str, typer.Option(help="Most tokens of documents, ascending; 0 asks without documents.")]
UnitOption = Annotated[Unit, typer.Option(help="What budgets count.")]
Conditions = Annotated[
    list[str] | None,
    typer.Option("--condition", help=f"{', '.join(CONDITIONS)}; may be given several times. Default: natural."),
]
OrderOption = Annotated[Order, typer.Option(help="In which order of rank documents stand.")]
Depth = Annotated[
    float | None,
    typer.Option(help="Where gold documents stand, 0 first to 1 last. Default: elsewhere for each question, evenly."),
]
RetrieverOption = Annotated[str, typer.Option("--retriever", help=f"One of {', '.join(METHODS)}.")]
CacheOption = Annotated[CacheState, typer.Option(help="cold: have the server recompute every prompt, by a cache_salt.")]
Permissions = Annotated[
    list[str] | None,
    typer.Option("--permission", help=f"{', '.join(PERMISSIONS)}; may be given twice. Default: {PERMISSIONS[0]}."),
]
Count = Annotated[int, typer.Option("--n", help="Questions per budget.")]
Seed = Annotated[int, typer.Option(help="Draws the world, or the order of the questions.")]
Concurrency = Annotated[
    str, typer.Option(help=f"Questions asked at once; auto: as many as the endpoint takes, {MOST} at most.")
]
Shard = Annotated[str, typer.Option(help="Part i of n of the questions, as 1/4; see `fathom eval merge`.")]
MaxTokens = Annotated[int, typer.Option(help="Longest answer.")]
ScrapeInterval = Annotated[float, typer.Option(help="Seconds between two looks at the server's /metrics; 0 for none.")]
EnergyOption = Annotated[
    Energy, typer.Option(help="local: this machine's GPUs answer; auto: if the endpoint is local.")
]
Timeout = Annotated[float, typer.Option(help="Seconds that one request may take.")]
Logprobs = Annotated[bool, typer.Option("--logprobs", help="Ask for log probabilities: doubt of each answer.")]
DrawsOption = Annotated[
    int, typer.Option("--draws", help="Further answers to each prompt, drawn: doubt without logprobs.")
]
Temperature = Annotated[
    float | None, typer.Option(help=f"Of --draws; the answers themselves are greedy. Default: {DEFAULT_TEMPERATURE:g}.")
]
ApiKey = Annotated[
    str | None,
    typer.Option(envvar="FATHOM_API_KEY", help="Bearer token, before the endpoint's own variable; never stored."),
]


@app.callback()
def evaluate() -> None:
    """How hallucination changes with context length, at any OpenAI-compatible endpoint."""


@app.command()
def run(
    *,
    endpoint: Endpoint,
    models: Models,
    out: Out,
    dataset: DatasetName = "world",
    data: Data = None,
    world: World = None,
    budgets: Budgets = DEFAULT_BUDGETS_TEXT,
    unit: UnitOption = "tokens",
    conditions: Conditions = None,
    order: OrderOption = "rank",
    depth: Depth = None,
    retriever: RetrieverOption = "bm25",
    retriever_model: RetrieverModel = DEFAULT_MODEL,
    reranker: RerankerOption = NO_RERANKER,
    rerank_depth: RerankDepth = RERANK_DEPTH,
    reranker_model: RerankerModel = None,
    reranker_key: RerankerKey = None,
    cache: CacheOption = "warm",
    permissions: Permissions = None,
    n: Count = 200,
    seed: Seed = 0,
    concurrency: Concurrency = "4",
    shard: Shard = "1/1",
    max_tokens: MaxTokens = 32,
    timeout: Timeout = 300.0,
    scrape_interval: ScrapeInterval = 1.0,
    energy: EnergyOption = "auto",
    logprobs: Logprobs = False,
    draws: DrawsOption = 0,
    temperature: Temperature = None,
    api_key: ApiKey = None,
) -> None:
    """Ask every question at every budget, grade the answers, and report.

    A run that was stopped goes on with the same command; what was answered is not asked again.
    Exit codes: 0 = all answered; 2 = wrong options; 3 = some requests failed, or the endpoint went away: the same
    command asks them again.
    """
    console = Console()
    with telling_why_not(console):
        settings = {
            **question_options(budgets, conditions, permissions, n=n, seed=seed, shard=shard),
            **document_options(unit, order, depth, retriever, retriever_model, cache=cache),
            "rerank": RerankSettings(reranker, rerank_depth, reranker_model, reranker_key),
            **cost_options(scrape_interval, energy),
            **doubt_options(logprobs, draws, temperature),
            **parse_concurrency(concurrency),
            "max_tokens": max_tokens,
            "timeout_s": timeout,
            "api_key": find_key(endpoint, api_key),
        }
        configs = [RunConfig(endpoint=endpoint, model=model, out=out, **settings) for model in models]
        results = run_and_show(console, configs, Origin(dataset, data, world))
    tell_failures(console, [result for result in results if result.failed or result.failed_draws])


@app.command()
def report(
    directory: Annotated[Path, typer.Argument(help="The --out of earlier runs.")],
    load: Annotated[list[Path] | None, typer.Option(help="summary.json of a load test, to go into the report.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the tables into this file as Markdown, too.")] = None,
    png: Annotated[Path | None, typer.Option(help="Write the charts into this directory as pictures, too.")] = None,
    grader_quality: Annotated[
        list[Path] | None,
        typer.Option(
            help="--out of `fathom eval calibrate`: corrects that grader's rates, in place of what is shipped."
        ),
    ] = None,
) -> None:
    """Write summary.json and report.html anew from the stored samples; asks nothing."""
    console = Console()
    try:
        loads = [read_load(file) for file in load or []]
        summary = show(console, directory, loads, quality=qualities(grader_quality or []))
        for text in write_for_paper(summary, markdown, png):
            console.print(text, highlight=False)
    except ConfigError as error:
        raise refused(console, error) from error


app.command("plan")(plan)
app.command("calibrate")(calibrate)
app.command("endpoints")(endpoints)
app.command("answers")(answers)
app.command("lm")(lm)
app.command("lm-tasks")(show_tasks_directory)
app.command("recall")(recall)
app.command("judge")(judge)
app.command("rerun")(rerun)
app.command("merge")(merge)
app.command("compare")(compare)
app.command("export")(export)


@contextlib.contextmanager
def telling_why_not(console: Console) -> Iterator[None]:
    """Ends the command where an option cannot be, or somebody stops it."""
    try:
        yield
    except ConfigError as error:
        raise refused(console, error) from error
    except KeyboardInterrupt:
        console.print("stopped; the same command goes on where this one stood")
        raise typer.Exit(EXIT_INTERRUPTED) from None
