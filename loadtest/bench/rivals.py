"""Who can be raced on this machine, how each is found, and how each is started at its best.

Every one gets the same number of threads and the same bytes for its cache. A rival that is not there, or lacks
something it needs, is absent for a stated reason.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from loadtest.bench.exchange import Contender, ContenderError
from loadtest.bench.generate import Generate
from loadtest.bench.http import Dialect, Server
from loadtest.bench.vocabulary import Words

OURS = "fathom"
GGUF_WRITER = Path(__file__).with_name("gguf_file.py")
MODEL = "bench"
GIB = 1 << 30
VERSIONS = """
import json, sys
from importlib import metadata
found = {}
for name in sys.argv[1:]:
    try: found[name] = metadata.version(name)
    except metadata.PackageNotFoundError: found[name] = None
print(json.dumps(found))
"""


class AbsentError(Exception):
    """A rival cannot be raced here; the message says why."""


@dataclass(frozen=True, slots=True)
class Places:
    """Where rivals are looked for: programs by name or path, and an interpreter that has transformers and gguf."""

    llama_server: str = "llama-server"
    vllm: str = "vllm"
    python: str = sys.executable


@dataclass(frozen=True, slots=True)
class Race:
    """What all contenders of one race share.

    Attributes:
        family: the model_type of the checkpoint.
        long: one long context at a time, with a prefix cache; else many short ones at once.
        contexts: most tokens of a prompt and its answer: where many are asked at once, and at all.
        streams: most requests at once.
        directory: takes logs and files that a rival needs.
    """

    checkpoint: Path
    family: str
    dtype: str
    words: Words
    contexts: tuple[int, int]
    streams: int
    threads: int
    cache_gib: int
    start_s: float
    directory: Path
    serve_options: tuple[str, ...] = ()
    long: bool = False

    @property
    def context(self) -> int:
        return self.contexts[1]

    def env(self) -> dict[str, str]:
        """Threads, for whoever goes by the environment; and nobody looks for the weights anywhere else."""
        threads = {name: str(self.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")}
        return {**threads, "HF_HUB_OFFLINE": "1"}

    def log(self, name: str) -> Path:
        return self.directory / f"{self.checkpoint.name}-{self.dtype}-{name.replace(' ', '-')}.log"

    def server(self, name: str, command: Callable[[int], list[str]], dialect: Dialect, **env: str) -> Server:
        every = {**self.env(), **env}
        return Server(command, dialect, self.words, log=self.log(name), env=every, start_s=self.start_s)


Make = Callable[[Race], Contender]


@dataclass(frozen=True, slots=True)
class Rival:
    """One who takes part.

    Attributes:
        enter: makes it ready for a race, but does not start it.
        minds_length: it is set up in one way for many short prompts at once, in another for one long one.
    """

    name: str
    version: str
    enter: Make
    minds_length: bool = False


def find(places: Places) -> tuple[list[Rival], dict[str, str]]:
    """Ourselves and the rivals that are here, in the order of racing; and why the others are not."""
    finders: dict[str, Callable[[Places], Rival]] = {
        OURS: _ours,
        "llama.cpp": _llama_cpp,
        "vllm": _vllm,
        "generate": _generate,
        "transformers serve": _transformers_serve,
    }
    present, absent = list[Rival](), dict[str, str]()
    for name, finder in finders.items():
        try:
            present.append(finder(places))
        except AbsentError as reason:
            absent[name] = str(reason)
    return present, absent


def _ours(places: Places) -> Rival:  # noqa: ARG001
    found = _versions(sys.executable, "fathom", "torch", "numba")

    def enter(race: Race) -> Contender:
        options = ["--dtype", race.dtype, "--threads", str(race.threads), "--cache-gib", str(race.cache_gib)]
        # The thread that otherwise asks for memory ahead stands still too while others are timed.
        options += ["--populate-cache"]
        # While others are timed its processes stand still, and must not be taken for hanging.
        options += ["--no-access-log", "--stall-timeout-s", "86400", "--max-context", str(race.context)]
        command = [sys.executable, "-m", "fathom", "serve", f"{MODEL}={race.checkpoint}", *options, *race.serve_options]
        dialect = Dialect(MODEL, fields={"ignore_eos": True, "stream_options": {"include_usage": True}})
        return race.server(OURS, lambda port: [*command, "--port", str(port)], dialect)

    return Rival(OURS, _tell(found), enter)


def _llama_cpp(places: Places) -> Rival:
    program = _program(places.llama_server, "--llama-server")
    if _versions(places.python, "gguf", "numpy")["gguf"] is None:
        raise AbsentError(f"{places.python} has no package gguf to write its weights with")
    done = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    told = [line for line in (done.stderr + done.stdout).splitlines() if line.startswith("version")]

    def enter(race: Race) -> Contender:
        weights = _write_gguf(places.python, race)
        streams, context = (1, race.contexts[1]) if race.long else (race.streams, race.contexts[0])
        # Each slot takes an equal part of the context. The cache in the number format of the weights, as with all.
        options = ["-c", str(streams * -(-context // 256) * 256), "-np", str(streams), "--no-webui"]
        options += ["-t", str(race.threads), "-tb", str(race.threads)]
        options += ["-ctk", "f32", "-ctv", "f32"] if race.dtype == "float32" else []
        dialect = Dialect(MODEL, fields={"ignore_eos": True, "stream_options": {"include_usage": True}})
        command = [program, "-m", str(weights), "--host", "127.0.0.1", *options]
        return race.server("llama.cpp", lambda port: [*command, "--port", str(port)], dialect)

    return Rival("llama.cpp", told[0].removeprefix("version: ") if told else "", enter, minds_length=True)


def _vllm(places: Places) -> Rival:
    program = _program(places.vllm, "--vllm")
    found = _versions(str(Path(program).resolve().parent / "python"), "vllm", "torch")

    def enter(race: Race) -> Contender:
        options = ["--dtype", race.dtype, "--served-model-name", MODEL, "--max-model-len", str(race.context)]
        options += ["--host", "127.0.0.1", "--max-num-seqs", str(race.streams), "--disable-log-stats"]
        # With its prefix cache the CPU engine of 0.32 dies of the first prompt that is longer than one block.
        options += [] if race.family == "llama" else ["--no-enable-prefix-caching"]
        cpu = {"VLLM_CPU_KVCACHE_SPACE": str(race.cache_gib), "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        # The OpenMP that it asks for, where `intel-openmp` is installed beside it.
        openmp = Path(program).resolve().parents[1] / "lib" / "libiomp5.so"
        cpu |= {"LD_PRELOAD": str(openmp)} if openmp.is_file() else {}
        dialect = Dialect(MODEL, fields={"ignore_eos": True, "stream_options": {"include_usage": True}})
        command = [program, "serve", str(race.checkpoint), *options]
        # What it compiles for a model is kept, or deleted, with that model's weights.
        quiet = {"VLLM_NO_USAGE_STATS": "1", "VLLM_CACHE_ROOT": str(race.checkpoint.parent / "vllm-cache")}
        return race.server("vllm", lambda port: [*command, "--port", str(port)], dialect, **cpu, **quiet)

    return Rival("vllm", _tell(found), enter)


def _generate(places: Places) -> Rival:
    found = _transformers(places)

    def enter(race: Race) -> Contender:
        log, env = race.log("generate"), race.env()
        return Generate(places.python, race.checkpoint, race.dtype, threads=race.threads, log=log, env=env)

    return Rival("generate", _tell(found), enter)


def _transformers_serve(places: Places) -> Rival:
    found = _transformers(places)
    if lacking := [name for name, version in _versions(places.python, "fastapi", "openai").items() if version is None]:
        raise AbsentError(f"{places.python} has no {' and no '.join(lacking)}: transformers[serving] is not installed")
    program = Path(places.python).parent / "transformers"

    def enter(race: Race) -> Contender:
        if race.family != "llama":
            raise ContenderError(f"its continuous batching has no cache for {race.family}")
        config = json.loads((race.checkpoint / "config.json").read_text(encoding="utf-8"))
        width = 4 if race.dtype == "float32" else 2
        entry = 2 * width * config["num_hidden_layers"] * config["num_key_value_heads"] * config["head_dim"]
        # By itself it takes most of the memory. More tokens in a batch than these make its masks slower.
        blocks = max(race.cache_gib * GIB // (256 * entry), 1)
        options = ["--continuous-batching", "--device", "cpu", "--dtype", race.dtype, "--host", "127.0.0.1"]
        options += ["--cb-num-blocks", str(blocks), "--cb-max-batch-tokens", "1024"]
        command = [str(program), "serve", str(race.checkpoint), *options]
        dialect = Dialect(str(race.checkpoint), as_text=True)
        return race.server("transformers serve", lambda port: [*command, "--port", str(port)], dialect)

    return Rival("transformers serve", _tell(found), enter)


def _transformers(places: Places) -> Mapping[str, str | None]:
    found = _versions(places.python, "transformers", "torch")
    if lacking := [name for name, version in found.items() if version is None]:
        raise AbsentError(f"{places.python} has no {' and no '.join(lacking)}")
    return found


def _program(name: str, option: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise AbsentError(f"no program {name}; say where with {option}")
    return found


def _versions(python: str, *packages: str) -> dict[str, str | None]:
    """Versions of packages that an interpreter has; None = it has not."""
    try:
        command = [python, "-I", "-c", VERSIONS, *packages]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise AbsentError(f"{python} is no interpreter that runs: {error}") from error
    found: dict[str, str | None] = json.loads(done.stdout)
    return found


def _tell(versions: Mapping[str, str | None]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items() if version is not None)


def _write_gguf(python: str, race: Race) -> Path:
    """The checkpoint as a GGUF file, written once."""
    out = race.checkpoint.parent / f"{race.checkpoint.name}-{race.dtype}.gguf"
    if not out.is_file():
        unfinished = out.with_suffix(".unfinished")
        command = [python, "-I", str(GGUF_WRITER), str(race.checkpoint), str(unfinished), race.dtype]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **race.env()})
        if done.returncode:
            raise ContenderError(f"its weights cannot be written: {done.stderr.strip().splitlines()[-1]}")
        unfinished.rename(out)
    return out
