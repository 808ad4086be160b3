"""`fathom eval lm`: lm-eval's own tasks, into the same store and report."""

from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from evals.config import ConfigError, RunConfig
from evals.exits import EXIT_CONFIG, EXIT_INTERRUPTED
from evals.lm.config import TRUNCATE, LmConfig, Truncate, parse_metadata
from evals.lm.results import LmResult
from evals.lm.run import run_lm, tasks_directory
from evals.output import SUMMARY_FILE, write_outputs
from evals.store import FILE_NAME

Tasks = Annotated[str, typer.Option(help="Names of tasks or groups, with commas between them; ours are known too.")]
Endpoint = Annotated[str, typer.Option(help="Base URL of an OpenAI-compatible server, as http://127.0.0.1:8000")]
Model = Annotated[str, typer.Option(help="Model to ask.")]
Out = Annotated[Path, typer.Option(help="Directory for the store, summary.json and report.html.")]
Chat = Annotated[bool, typer.Option("--chat/--completions", help="What is asked for. Chats give no log-likelihoods.")]
Limit = Annotated[int | None, typer.Option(help="Documents of each task. Default: all.")]
FewShot = Annotated[int | None, typer.Option(help="Examples before each question. Default: the task's.")]
IncludePaths = Annotated[list[Path] | None, typer.Option("--include-path", help="Directory of more tasks.")]
Metadata = Annotated[str | None, typer.Option(help="JSON that tasks are told, as lm-eval's --metadata.")]
Batch = Annotated[int, typer.Option(help="Prompts in one request.")]
Concurrency = Annotated[int, typer.Option(help="Requests at once.")]
MaxLength = Annotated[int | None, typer.Option(help="Tokens of prompt and answer. Default: what the endpoint says.")]
TokenizerOption = Annotated[
    str | None, typer.Option("--tokenizer", help="tokenizer.json, or its directory. Default: the endpoint's /tokenize.")
]
TruncateOption = Annotated[
    Truncate, typer.Option(help=f"A prompt that is too long: {', '.join(TRUNCATE)}. What was cut is counted.")
]
PrefixToken = Annotated[int | None, typer.Option(help="Id of the token before a text that begins a context.")]
Timeout = Annotated[float, typer.Option(help="Seconds that one request may take.")]
ApiKey = Annotated[str | None, typer.Option(envvar="FATHOM_API_KEY", help="Bearer token; never stored.")]


def lm(
    *,
    tasks: Tasks,
    endpoint: Endpoint,
    model: Model,
    out: Out,
    chat: Chat = False,
    limit: Limit = None,
    num_fewshot: FewShot = None,
    include_paths: IncludePaths = None,
    metadata: Metadata = None,
    batch: Batch = 1,
    concurrency: Concurrency = 4,
    max_length: MaxLength = None,
    tokenizer: TokenizerOption = None,
    truncate: TruncateOption = "refuse",
    prefix_token: PrefixToken = None,
    timeout: Timeout = 300.0,
    api_key: ApiKey = None,
) -> None:
    """Run tasks of lm-eval, none of whose prompts is cut unless that is allowed, and report them.

    A run that was stopped goes on with the same command.
    Exit codes: 0 = all answered; 2 = wrong options, a prompt that is too long, or an endpoint that fails.
    """
    console = Console()
    try:
        config = LmConfig(
            server=RunConfig(
                endpoint=endpoint, model=model, out=out, concurrency=concurrency, timeout_s=timeout, api_key=api_key
            ),
            tasks=tuple(name.strip() for name in tasks.split(",")),
            chat=chat,
            limit=limit,
            num_fewshot=num_fewshot,
            include_paths=tuple(include_paths or ()),
            metadata=parse_metadata(metadata),
            batch_size=batch,
            max_length=max_length,
            tokenizer=tokenizer,
            truncate=truncate,
            prefix_token=prefix_token,
        )
        results = run_lm(config)
        _, html = write_outputs(out)
    except ConfigError as error:
        console.print(f"[bold red]error[/bold red]: {escape(str(error))}", soft_wrap=True)
        raise typer.Exit(EXIT_CONFIG) from error
    except KeyboardInterrupt:
        console.print("stopped; the same command goes on where this one stood")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    console.print(_table(results))
    console.print(f"report   {html}\nsummary  {out / SUMMARY_FILE}\nresults  {out / FILE_NAME}", highlight=False)


def show_tasks_directory() -> None:
    """Print the directory of our conditions as lm-eval's tasks, for its --include_path."""
    typer.echo(tasks_directory())


def _table(results: list[LmResult]) -> Table:
    table = Table(title=escape(results[0].model) if results else None, title_justify="left", box=box.SIMPLE_HEAD)
    for heading in ("task", "metric", "value", "±", "n", "cut"):
        table.add_column(heading, justify="left" if heading in ("task", "metric") else "right")
    for one in results:
        metric = one.metric if one.filter == "none" else f"{one.metric}, {one.filter}"
        cut = "unknown" if one.num_truncated is None else str(one.num_truncated)
        table.add_row(escape(one.task), escape(metric), _shown(one.value), _shown(one.stderr), str(one.n), cut)
    return table


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
