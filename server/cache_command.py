"""`fathom cache`: what a running server keeps for prompts that begin alike, asked over HTTP."""

import json
from collections.abc import Mapping
from typing import Annotated, Any

import httpx2
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

TIMEOUT_S = 60.0
EXIT_REFUSED = 2
MAX_LIMIT = 1000

Endpoint = Annotated[str, typer.Option(help="Address of the server, with or without /v1 at its end.")]
Model = Annotated[str | None, typer.Option(help="Which of its models; may be left out where it serves one.")]
Clear = Annotated[bool, typer.Option("--clear", help="Give up all that no running sequence uses.")]
Limit = Annotated[int, typer.Option(min=1, max=MAX_LIMIT, help="Entries to show, those used last.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the server's answer as JSON.")]
ApiKey = Annotated[str | None, typer.Option(envvar="FATHOM_API_KEY", help="The server's key, if it has one.")]


class RefusedError(Exception):
    """There is no answer to show; the message says why."""


def cache(
    *,
    endpoint: Endpoint = "http://127.0.0.1:8000",
    model: Model = None,
    clear: Clear = False,
    limit: Limit = 20,
    as_json: AsJson = False,
    api_key: ApiKey = None,
) -> None:
    """Show what a running server keeps for prompts that begin alike, or clear it."""
    parameters = {} if model is None else {"model": model}
    if not clear:
        parameters["limit"] = str(limit)
    try:
        body = ask("DELETE" if clear else "GET", endpoint, parameters, api_key)
    except RefusedError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(EXIT_REFUSED) from error
    if as_json:
        typer.echo(json.dumps(body, indent=1))
    elif clear:
        freed = body["freed"]
        typer.echo(
            f"{body['model']}: gave up {freed['num_blocks']:,} blocks ({size(freed['kv_bytes'])}) "
            f"and {freed['num_snapshots']:,} snapshots ({size(freed['state_bytes'])})"
        )
    else:
        show(Console(), body)


def ask(method: str, endpoint: str, parameters: Mapping[str, str], api_key: str | None) -> dict[str, Any]:
    """The server's answer.

    Raises:
        RefusedError: nobody answers there, or something else does, or it refuses.
    """
    url = f"{endpoint.rstrip('/').removesuffix('/v1')}/v1/fathom/cache"
    headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
    try:
        answer = httpx2.request(method, url, params=dict(parameters), headers=headers, timeout=TIMEOUT_S)
    except (httpx2.HTTPError, httpx2.InvalidURL, UnicodeError) as error:
        raise RefusedError(f"--endpoint {endpoint}: no answer: {error or type(error).__name__}") from error
    try:
        body = answer.json()
    except ValueError:
        body = None
    if answer.status_code == 200 and isinstance(body, dict) and str(body.get("object", "")).startswith("fathom.cache"):
        return body
    raise RefusedError(f"--endpoint {endpoint}: {_reason(answer.status_code, body)}")


def _reason(status: int, body: Any) -> str:
    if status == 401:
        return "the API key is missing or wrong; give it as --api-key or in FATHOM_API_KEY"
    told = body.get("error") if isinstance(body, dict) else None
    # Who does not know the path says so in the same shape, but names no field.
    if not isinstance(told, dict) or (status == 404 and not told.get("param")):
        return f"what answers there (with status {status}) has no /v1/fathom/cache"
    return f"{told.get('message')}"


def show(console: Console, body: Mapping[str, Any]) -> None:
    totals, entries = body["totals"], body["entries"]
    kept = "kept for prompts that begin alike"
    lines = (
        f"blocks: {totals['num_blocks']:,} ({size(totals['blocks_bytes'])}), of which {kept}: "
        f"{totals['num_cached_blocks']:,} ({size(totals['cached_blocks_bytes'])})",
        f"slots: {totals['num_slots']:,} ({size(totals['slots_bytes'])}), of which {kept}: "
        f"{totals['num_snapshots']:,} ({size(totals['snapshots_bytes'])})",
        *(
            f"{tier}: {totals[f'{tier}_pieces']:,} pieces ({size(totals[f'{tier}_bytes'])})"
            for tier in ("host", "disk")
            if totals[f"{tier}_pieces"]
        ),
    )
    for line in (body["model"], *lines):
        console.print(escape(line), highlight=False, soft_wrap=True)
    table = Table(title=f"{len(entries):,} of {body['num_entries']:,} entries, used last first", title_justify="left")
    for column in ("tokens", "KV", "state", "snapshots", "tier", "hits", "used"):
        table.add_column(column, justify="left" if column == "tier" else "right")
    for entry in entries:
        table.add_row(
            f"{entry['tokens']:,}",
            size(entry["kv_bytes"]),
            size(entry["state_bytes"]),
            f"{entry['num_snapshots']:,}",
            escape(entry["tier"]),
            f"{entry['hits']:,}",
            f"{entry['age_s']:,.0f} s ago",
        )
    console.print(table)


def size(num_bytes: float) -> str:
    """Bytes as a person reads them."""
    for unit in ("B", "KiB", "MiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.0f} B" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.1f} GiB"
