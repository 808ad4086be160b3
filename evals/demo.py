"""`fathom demo`: the whole of Fathom on the embedded models, with the very commands that a user would type."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Annotated, Self

import typer
from rich.console import Console
from rich.markup import escape

from evals.config import ConfigError, RunConfig
from evals.console import ask_all, refused, show
from evals.datasets import load_dataset
from evals.exits import EXIT_FAILED_SAMPLES, EXIT_INTERRUPTED
from evals.output import SUMMARY_FILE, read_load
from evals.records import PERMISSIONS

MODELS = ("embedded:transformer", "embedded:mamba")
STATE_FILE, LOG_FILE = "demo.json", "server.log"
START_TIMEOUT_S, STOP_TIMEOUT_S = 180.0, 30.0
SEED = 11
# -P: a folder named like one of ours where the user stands must not be taken for it.
FATHOM = (sys.executable, "-P", "-m", "fathom")


class DemoError(Exception):
    """The demo cannot go on; the message says where to look."""


@dataclass(frozen=True, slots=True)
class DemoPlan:
    """How much is asked. The load test's rate is per second, its lengths in tokens and seconds."""

    budgets: tuple[int, ...]
    num_questions: int
    load_rate: float
    load_context: int
    load_output: int
    load_duration_s: float


FULL = DemoPlan((0, 128, 256, 512, 1024, 2048, 4096), 80, 4.0, 512, 16, 10.0)
QUICK = DemoPlan((0, 128, 512), 8, 4.0, 128, 4, 2.0)


def child_environment() -> dict[str, str]:
    """Ours, without the key that the user keeps for other servers: this one is closed to the world anyway."""
    return {name: value for name, value in os.environ.items() if name != "FATHOM_API_KEY"}


class ServerProcess:
    """Owns `fathom serve` on a free port; its output goes to a log file. Leaving the context stops it."""

    def __init__(self, models: tuple[str, ...], log: Path) -> None:
        # One model is asked at a time: it may have every core.
        threads = ("--threads", str(os.cpu_count() or 1))
        self._log = log
        self._ready = threading.Event()
        self.url = ""
        self._process = subprocess.Popen(
            # Without what is remembered of shorter contexts: the time to a first token is that of the whole prompt.
            [*FATHOM, "serve", *models, "--port", "0", "--no-prefix-cache", *threads],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=child_environment() | {"PYTHONUNBUFFERED": "1"},
            # Its own group: Ctrl-C reaches the demo, which then stops the server in order.
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._log.open("a", encoding="utf-8") as log, self._process.stdout as lines:
            for line in lines:
                log.write(line)
                log.flush()
                if line.startswith("ready: "):
                    self.url = line.split()[1]
                    self._ready.set()
        self._ready.set()

    def wait_ready(self) -> str:
        """The server's URL.

        Raises:
            DemoError: it ended, or is not ready in time.
        """
        self._ready.wait(START_TIMEOUT_S)
        if not self.url:
            raise DemoError(f"the server did not start; see {self._log}")
        return self.url

    def stop(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._reader.join(STOP_TIMEOUT_S)


def demo(
    *,
    quick: Annotated[bool, typer.Option("--quick", help="A few questions only, to see that all works.")] = False,
    out: Annotated[Path | None, typer.Option(help="Default: runs/demo, with --quick runs/demo-quick.")] = None,
) -> None:
    """Serve the embedded models, sweep context lengths under both instructions, load-test, and report.

    A demo that was stopped goes on with the same command; a finished one is replaced.
    """
    console = Console()
    plan = QUICK if quick else FULL
    directory = out or Path("runs") / ("demo-quick" if quick else "demo")
    # What ends a demo from outside (timeout, docker stop, a closed terminal) must stop its server too.
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, _interrupt)
    try:
        failed = run_demo(console, plan, directory)
    except ConfigError as error:
        raise refused(console, error) from error
    except DemoError as error:
        console.print(f"[bold red]error[/bold red]: {escape(str(error))}", soft_wrap=True)
        raise typer.Exit(1) from error
    except KeyboardInterrupt:
        console.print("stopped; the same command goes on where this one stood")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    if failed:
        console.print(f"[bold red]{failed} samples failed[/bold red]; the same command asks them again")
        raise typer.Exit(EXIT_FAILED_SAMPLES)


def _interrupt(_: int, frame: FrameType | None) -> None:
    """Do what Ctrl-C would do now. Inside of asyncio that cancels the main task in order: an exception out of whatever
    callback the signal happens to meet could leave others waiting for ever.
    """
    handler = signal.getsignal(signal.SIGINT)
    if not callable(handler):  # as in a shell's background job, where Ctrl-C is ignored
        raise KeyboardInterrupt
    handler(signal.SIGINT, frame)


def run_demo(console: Console, plan: DemoPlan, directory: Path) -> int:
    """Returns how many samples failed."""
    prepare(console, directory)
    dataset = load_dataset("world", path=None, seed=SEED)
    console.print(
        f"{len(dataset.documents):,} documents of a fictional encyclopedia; {plan.num_questions} questions at "
        f"{len(plan.budgets)} context lengths under {len(PERMISSIONS)} instructions, of {len(MODELS)} models"
    )
    with ServerProcess(MODELS, directory / LOG_FILE) as server:
        with console.status("loading the models"):
            url = server.wait_ready()
        console.print(f"serving {' and '.join(MODELS)} at {url}", highlight=False)
        configs = [
            RunConfig(
                endpoint=url,
                model=model,
                out=directory,
                budgets=plan.budgets,
                permissions=PERMISSIONS,
                num_questions=plan.num_questions,
                # One question at a time: latency then tells of the context's length, not of a queue.
                concurrency=1,
            )
            for model in MODELS
        ]
        results = ask_all(console, configs, dataset)
        loads = [load_test(console, plan, url, model, directory) for model in MODELS]
    show(console, directory, [read_load(file) for file in loads])
    failed = sum(result.failed for result in results)
    if not failed:
        (directory / STATE_FILE).write_text(json.dumps({"finished": True}) + "\n", encoding="utf-8")
    return failed


def prepare(console: Console, directory: Path) -> None:
    """Make room: a finished demo is replaced, an unfinished one goes on, anything else is left alone.

    Raises:
        ConfigError: the directory holds something that is not a demo's, or cannot be written.
    """
    state = directory / STATE_FILE
    try:
        _make_room(console, directory, state)
    except OSError as error:
        raise ConfigError(f"--out {directory} cannot be written: {error}") from error


def _make_room(console: Console, directory: Path, state: Path) -> None:
    if state.is_file() and json.loads(state.read_text(encoding="utf-8"))["finished"]:
        console.print(f"replacing the finished demo in {escape(str(directory))}")
        shutil.rmtree(directory)
    elif directory.exists() and any(directory.iterdir()) and not state.is_file():
        raise ConfigError(f"--out {directory} is not empty and not a demo's; choose another directory")
    directory.mkdir(parents=True, exist_ok=True)
    state.write_text(json.dumps({"finished": False}) + "\n", encoding="utf-8")


def load_test(console: Console, plan: DemoPlan, url: str, model: str, directory: Path) -> Path:
    """A short open-loop load on one model; returns its summary's file.

    Raises:
        DemoError: the load test could not run.
    """
    out = directory / f"load-{model.rpartition(':')[2]}"
    summary = out / SUMMARY_FILE
    if summary.is_file():
        return summary
    shutil.rmtree(out, ignore_errors=True)
    options = {
        "--endpoint": url,
        "--model": model,
        "--rate": str(plan.load_rate),
        "--context": str(plan.load_context),
        "--output": str(plan.load_output),
        "--duration": str(plan.load_duration_s),
        "--out": str(out),
    }
    words = ["load", "run", *(part for pair in options.items() for part in pair)]
    console.print(f"\nfathom {' '.join(words)}", style="dim", highlight=False, soft_wrap=True)
    subprocess.run([*FATHOM, *words], check=False, env=child_environment())
    if not summary.is_file():
        raise DemoError(f"the load test of {model} left no summary in {out}")
    return summary
