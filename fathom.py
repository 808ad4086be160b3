"""The front door: mounts the rooms' sub-commands and nothing else."""

from importlib.metadata import version
from typing import Annotated

import typer

from evals.cli import app as eval_app
from evals.demo import demo
from loadtest.bench.cli import bench
from loadtest.cli import app as load_app
from server.cache_command import cache
from server.cli import doctor, serve

app = typer.Typer(name="fathom", no_args_is_help=True, pretty_exceptions_show_locals=False)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"fathom {version('fathom')}")
        raise typer.Exit


@app.callback()
def fathom(
    show_version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True),
    ] = False,
) -> None:
    """How hallucination, latency and memory change with context length: serve models, and measure any."""


app.command("serve")(serve)
app.command("demo")(demo)
app.command("doctor")(doctor)
app.command("cache")(cache)
app.command("bench")(bench)
app.add_typer(eval_app, name="eval")
app.add_typer(load_app, name="load")


def main() -> None:
    """What the console script `fathom` calls."""
    app()


if __name__ == "__main__":
    main()
