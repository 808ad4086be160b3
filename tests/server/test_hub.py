"""Models of the Hub, by its real client from a small Hub on this machine: every test has a cache of its own."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
import torch
from fakes_hub import TOKEN, FakeHub, FakeRepository
from safetensors.torch import load_file, save_file
from serving import ROOT, ServerProcess

from models.embedded import embedded_directory
from models.weight_files import weight_names
from server.checkpoints import CheckpointOptions, resolve_model, resolve_models
from server.config import ConfigError
from server.hub import HubModel

TRANSFORMER = embedded_directory("embedded:transformer")
SMALL = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "training.json"}
SHARDS = {f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)}
# What is never fetched: code, pickles, a second copy of the weights, other folders.
DECOYS = (
    "modeling.py", "pytorch_model.bin", "x.pt", "README.md", "consolidated.safetensors", "onnx/config.json",
    "original/model.safetensors",
)  # fmt: skip
# Serves nothing: goes through arguments as `fathom serve` would before it starts engines.
FETCH = """
import logging, sys
import server.hub
from server.checkpoints import CheckpointOptions, complete, open_checkpoint, resolve_model
from server.config import ConfigError
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
logging.getLogger("httpx2").setLevel(logging.WARNING)
server.hub.PROGRESS_EVERY_S = 0.05
for argument in sys.argv[1:]:
    try:
        name, place = resolve_model(argument)
        complete(open_checkpoint(argument, place, CheckpointOptions()))
    except ConfigError as error:
        print("error:", error)
"""


def copy_of(directory: Path, target: Path) -> Path:
    shutil.copytree(directory, target)
    for name in DECOYS:
        (target / name).parent.mkdir(exist_ok=True)
        (target / name).write_bytes(b"x")
    return target


def shard(directory: Path) -> Path:
    """Spread a checkpoint's weights over three files."""
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    names = sorted(tensors)
    weight_map = {name: sorted(SHARDS)[number % 3] for number, name in enumerate(names)}
    for file in SHARDS:
        save_file({name: tensors[name] for name in names if weight_map[name] == file}, directory / file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return directory


@pytest.fixture(scope="module")
def repositories(tmp_path_factory):
    root = tmp_path_factory.mktemp("repositories")
    plain, sharded = copy_of(TRANSFORMER, root / "plain"), shard(copy_of(TRANSFORMER, root / "sharded"))
    mamba = copy_of(embedded_directory("embedded:mamba"), root / "mamba")
    large, pickles, other = (copy_of(TRANSFORMER, root / name) for name in ("large", "pickles", "other"))
    # Longer than what the client takes at once; what it holds does not matter to it.
    save_file({"x": torch.zeros(6_000_000)}, large / "model.safetensors")
    for file in pickles.rglob("*.safetensors"):
        file.unlink()
    (other / "config.json").write_text(json.dumps({"architectures": ["OtherForCausalLM"]}))
    return {
        "org/plain": FakeRepository({"main": plain, "v1": mamba}),
        "org/sharded": FakeRepository({"main": sharded}),
        "org/large": FakeRepository({"main": large}),
        "org/pickles": FakeRepository({"main": pickles}),
        "org/other": FakeRepository({"main": other}),
        "org/gated": FakeRepository({"main": plain}, gated=True),
        "org/private": FakeRepository({"main": plain}, private=True),
    }


@pytest.fixture
def hub(repositories):
    with FakeHub(repositories) as hub:
        yield hub


@pytest.fixture
def variables(hub, tmp_path):
    """The environment of a client that has never been here."""
    return {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_TELEMETRY": "1"}


def fetch(*arguments: str, **variables: str) -> list[str]:
    """What is said of each argument."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")} | variables
    done = subprocess.run(
        [sys.executable, "-c", FETCH, *arguments],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def complete_once(server: ServerProcess, model: str) -> str:
    body = {"model": model, "prompt": "Ana Torres was born in", "max_tokens": 6, "temperature": 0}
    return httpx.post(f"{server.url}/v1/completions", json=body, timeout=60).json()["choices"][0]["text"]


def test_models_of_the_hub_are_served_and_served_again_without_it(hub, variables, tmp_path):
    models = ("org/sharded", "old=org/plain@v1")
    with ServerProcess(*models, "--threads", "1", environment=variables) as server:
        server.wait_ready()
        entries = httpx.get(f"{server.url}/v1/models").json()["data"]
        assert {entry["id"]: entry["fathom"]["kind"] for entry in entries} == {
            "org/sharded": "transformer",
            "old": "mamba",
        }
        texts = [complete_once(server, "org/sharded"), complete_once(server, "old")]
    assert hub.fetched() == SMALL | SHARDS | {"model.safetensors.index.json", "model.safetensors"}
    [line] = [line for line in server.log if "org/sharded@main: downloading" in line]
    assert f"3 files of weights, 0.01 GB, from {hub.url} into {tmp_path / 'home' / 'hub'}" in line
    assert any("Fetching 3 files: 100%" in line for line in server.log)

    hub.requests.clear()
    with ServerProcess(*models, "--threads", "1", environment=variables | {"HF_HUB_OFFLINE": "1"}) as server:
        server.wait_ready()
        assert [complete_once(server, "org/sharded"), complete_once(server, "old")] == texts
    assert hub.requests == []

    empty = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "empty")}
    server = ServerProcess(*models, environment=variables | empty)
    assert server.process.wait(60) == 2
    server.stop()
    [line] = [line for line in server.log if line.startswith("error: ")]
    assert f"HF_HUB_OFFLINE is set, and org/sharded@main is not in the cache {tmp_path / 'empty' / 'hub'}" in line
    assert "Traceback" not in "".join(server.log)


def test_what_cannot_be_fetched_is_told(hub, variables):
    arguments = (
        "org/nothing",
        "org/plain@v2",
        "org/gated",
        "org/private",
        "org/pickles",
        "org/other",
        "a--b/c",
        "x/y@",
    )
    told = fetch(*arguments, **variables)
    expected = (
        f"there is no repository org/nothing at {hub.url}, or it is private (HF_TOKEN is not set) "
        f"(nor is there a directory {ROOT / 'org/nothing'})",
        f"org/plain at {hub.url} has no branch, tag or commit 'v2'",
        f"org/gated is gated: its terms must be accepted at {hub.url}/org/gated, and HF_TOKEN be",
        f"there is no repository org/private at {hub.url}, or it is private (HF_TOKEN is not set)",
        f"org/pickles@main at {hub.url} has no *.safetensors file; other formats are not read (pytorch_model.bin",
        "architecture 'OtherForCausalLM' is not supported",
        "no repository of the Hub can be named 'a--b/c'",
        "the revision after '@' is empty",
    )
    for argument, line, words in zip(arguments, told, expected, strict=True):
        assert line.startswith(f"error: MODEL {argument!r}: ")
        assert words in line
    # An architecture that is not there is told before the weights are fetched.
    assert not any(name.endswith(".safetensors") for name in hub.fetched())


def test_a_token_opens_what_is_closed(variables):
    told = fetch("org/gated", "org/private", **variables, HF_TOKEN=TOKEN)
    assert not any(line.startswith("error") for line in told)
    told = fetch("org/gated", "org/private", **variables | {"HF_HOME": variables["HF_HOME"] + "2"}, HF_TOKEN="hf_wrong")
    assert ["the token that is set does not open it" in line for line in told] == [True, True]


def test_without_network_the_cache_is_used(hub, variables):
    assert fetch("org/sharded", **variables)[-1].startswith("org/sharded@main: commit ")
    hub.down = True
    told = fetch("org/sharded", "org/plain", **variables)
    assert "org/sharded@main: the cache is used, for org/sharded@main cannot be fetched" in told[0]
    assert told[1].startswith("org/sharded@main: commit ")
    assert f"org/plain@main cannot be fetched from {hub.url} into the cache {variables['HF_HOME']}/hub: " in told[2]
    nobody = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": variables["HF_HOME"] + "2"}
    [line] = fetch("org/plain", **nobody)
    assert "org/plain@main cannot be fetched from http://127.0.0.1:9 into the cache" in line
    assert "Connection refused" in line


def test_a_hub_that_never_answers_is_not_waited_for(variables):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silence = {"HF_ENDPOINT": f"http://127.0.0.1:{silent.getsockname()[1]}", "HF_HUB_ETAG_TIMEOUT": "1"}
        [line] = fetch("org/plain", **variables | silence)
    assert "ReadTimeout: " in line


def test_a_cache_that_cannot_be_written_is_told(hub, variables, tmp_path):
    (tmp_path / "file").touch()
    for variable, cache in (("HF_HUB_CACHE", tmp_path / "file"), ("HF_HOME", tmp_path / "file" / "hub")):
        *_, line = fetch("org/plain", **variables | {variable: str(tmp_path / "file")})
        assert f"org/plain@main cannot be fetched from {hub.url} into the cache {cache}: NotADirectoryError: " in line


def test_a_commit_is_a_revision_and_a_cache_with_half_a_model_is_none(variables, repositories):
    commit = repositories["org/sharded"].commit("main")
    assert fetch(f"org/sharded@{commit}", **variables)[-1] == f"org/sharded@{commit}: commit {commit}"
    snapshot = Path(variables["HF_HOME"]) / "hub" / "models--org--sharded" / "snapshots" / commit
    (snapshot / min(SHARDS)).unlink()
    [line] = fetch(f"org/sharded@{commit}", **variables, HF_HUB_OFFLINE="1")
    assert "the Hub is not reached, and" in line
    assert f"is only in part in the cache {variables['HF_HOME']}/hub: {min(SHARDS)} (1 in all) is missing" in line


def test_a_connection_that_breaks_goes_on_where_it_broke(hub, variables):
    hub.cut = {"model.safetensors": 1}
    fetch("org/large", **variables)
    ranges = [place for method, path, place in hub.requests if method == "GET" and path.endswith("/model.safetensors")]
    assert len(ranges) == 2
    assert ranges[0] is None
    assert int(ranges[1].removeprefix("bytes=").removesuffix("-")) >= 10 * 2**20


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_download_at_once_and_what_is_whole_is_kept(hub, variables, number):
    hub.held = {max(SHARDS)}
    blobs = Path(variables["HF_HOME"]) / "hub" / "models--org--sharded" / "blobs"
    server = ServerProcess("org/sharded", environment=variables)
    deadline = time.monotonic() + 60
    while not (hub.fetched() >= SHARDS and len(list(blobs.glob("*.incomplete"))) == 1):
        assert time.monotonic() < deadline, server.log
        time.sleep(0.02)
    server.process.send_signal(number)
    assert server.process.wait(5) == 128 + number
    server.stop()
    assert list(blobs.glob("*.incomplete")) == []
    hub.held = set()
    hub.requests.clear()
    assert fetch("org/sharded", **variables)[-1].startswith("org/sharded@main: commit ")
    assert hub.fetched() == {max(SHARDS)}


def test_where_no_terminal_is_the_log_tells_how_far_it_is(hub, variables):
    hub.held = {"model.safetensors"}
    process = subprocess.Popen(
        [sys.executable, "-uc", FETCH, "org/plain"],
        env=os.environ | variables,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with process:
        for line in process.stdout:
            if line == "org/plain@main: 0.00 of 0.01 GB\n":
                break
        hub.held = set()
        assert process.stdout.readlines()[-1].startswith("org/plain@main: commit ")


@pytest.mark.parametrize(
    ("argument", "name", "place"),
    [
        ("org/name", "org/name", HubModel("org/name", "main")),
        ("org/name@v1", "org/name", HubModel("org/name", "v1")),
        ("org/name@refs/pr/3", "org/name", HubModel("org/name", "refs/pr/3")),
        ("mine=Org/Name-7B_v0.1@a=b", "mine", HubModel("Org/Name-7B_v0.1", "a=b")),
        ("a/b=org/name", "a/b", HubModel("org/name", "main")),
    ],
)
def test_forms_of_a_model(argument, name, place):
    assert resolve_model(argument) == (name, place)


def test_a_directory_of_that_name_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    directory = tmp_path / "org" / "name"
    directory.mkdir(parents=True)
    (tmp_path / "org" / "file").touch()
    assert resolve_model("org/name") == ("name", directory)
    assert resolve_model("mine=org/name") == ("mine", directory)
    assert resolve_model("org/name@main") == ("org/name", HubModel("org/name", "main"))
    with pytest.raises(ConfigError, match="org/file is a file; give embedded:NAME, a directory, ORG/NAME"):
        resolve_model("org/file")


@pytest.mark.parametrize("argument", ["gpt2", "a/b/c", "./org/name", "~/name", "-a/b", ".a/b", "mine=gpt2"])
def test_what_is_no_repository_is_taken_for_a_directory(argument):
    with pytest.raises(ConfigError, match="there is no directory"):
        resolve_model(argument)


@pytest.mark.parametrize(("argument", "words"), [("=org/name", "name before '='"), ("mine=", "place after '='")])
def test_a_name_and_a_place_belong_together(argument, words):
    with pytest.raises(ConfigError, match=f"the {words} is empty"):
        resolve_model(argument)


def test_one_revision_for_the_models_that_name_none():
    places = resolve_models(["org/a", "b=org/b@v2", "embedded:mamba"], CheckpointOptions(revision="v1"))
    assert [getattr(place, "revision", None) for _, place in places.values()] == ["v1", "v2", None]
    with pytest.raises(ConfigError, match="--revision v1: no MODEL is taken from the Hub at it"):
        resolve_models(["org/b@v2", "embedded:mamba"], CheckpointOptions(revision="v1"))
    with pytest.raises(ConfigError, match="'org/a' is served already; tell them apart with NAME="):
        resolve_models(["org/a", "org/a@v2"], CheckpointOptions())


def test_weights_are_what_the_index_names(tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": "b.safetensors", "y": "a.safetensors", "z": "b.safetensors"}}))
    assert tuple(weight_names(tmp_path, [index.name, "model.safetensors"])) == ("a.safetensors", "b.safetensors")
    assert tuple(weight_names(tmp_path, ["model.safetensors", "consolidated.safetensors"])) == ("model.safetensors",)
    assert tuple(weight_names(tmp_path, ["b.safetensors", "a.safetensors", "x.json"])) == (
        "a.safetensors",
        "b.safetensors",
    )
