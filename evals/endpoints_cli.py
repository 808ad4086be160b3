"""`fathom eval endpoints` and `answers`: which endpoints have a name, and the answers of a run as a file to replay."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from evals.config import ConfigError
from evals.endpoints import PRESETS, parse_endpoint
from evals.exits import EXIT_CONFIG
from evals.replay import answer_lines
from evals.store import FILE_NAME, Store


def find_key(endpoint: str, given: str | None, environment: Mapping[str, str] = os.environ) -> str | None:
    """The key of an endpoint: what is given, else what its own variable holds.

    Raises:
        ConfigError: there is no such endpoint, or it takes a key and there is none.
    """
    try:
        return parse_endpoint(endpoint).find_key(given, environment)
    except ValueError as error:
        raise ConfigError(f"--endpoint {error}") from error


def endpoints() -> None:
    """The endpoints that have a name, where they are, and whether the environment has their key."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("--endpoint", "address", "key", "sent otherwise, or to know"):
        table.add_column(heading, overflow="fold")
    for name, preset in PRESETS.items():
        found = any(os.environ.get(key) for key in preset.keys)
        key = f"{' or '.join(preset.keys)} ({'set' if found else 'not set'})" if preset.keys else "none"
        table.add_row(name, preset.base_url, key, "; ".join(filter(None, (*preset.changes, preset.note))))
    console = Console()
    console.print(table)
    console.print(
        "Also: any URL, NAME=URL for one of these at another address, and replay:FILE for recorded answers.",
        highlight=False,
    )


def answers(directory: Annotated[Path, typer.Argument(help="The --out of earlier runs.")]) -> None:
    """Write the stored answers as lines of JSON, which --endpoint replay:FILE reads."""
    try:
        if not (directory / FILE_NAME).is_file():
            raise ConfigError(f"{directory} has no {FILE_NAME}; it is not the --out of a run")
        with Store(directory) as store:
            for line in answer_lines(store.rows()):
                typer.echo(line)
    except ConfigError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(EXIT_CONFIG) from error
