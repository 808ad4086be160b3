"""The project as a whole: its walls, its commands, its pins, its size, and what its files must not say."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import distribution
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("models", "server", "evals", "loadtest", "scripts")
# Packages that need a GPU: they may be imported where they are used.
OPTIONAL = frozenset({"flash_attn", "mamba_ssm", "causal_conv1d", "pynvml"})
# The process whose own bugs must reach every client, a library that raises nothing narrower, and the load whose own
# bugs must leave a record of the request.
BROAD_EXCEPTS = frozenset({
    "server/engine_process.py", "server/vocabulary/fast.py", "evals/tokenizer_file.py", "loadtest/locustfile.py",
})  # fmt: skip
TOP_LEVEL = frozenset({
    ".ci", ".dockerignore", ".gitignore", "CONTRIBUTING.md", "Dockerfile", "LICENSE", "Makefile", "README.md",
    "constraints.txt", "docs", "evals", "fathom.py", "loadtest", "models", "pyproject.toml", "scripts", "server",
    "tests",
})  # fmt: skip
MAX_FILE_BYTES = 8 << 20
MAX_FUNCTION_LINES = 60


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def tracked() -> list[Path]:
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git checkout, or no git")
    return [ROOT / name for name in git("ls-files", "-z").split("\0") if name and (ROOT / name).is_file()]


def product_files() -> list[Path]:
    return [ROOT / "fathom.py", *(file for room in ROOMS for file in sorted((ROOT / room).rglob("*.py")))]


def inner_imports(source: str) -> list[str]:
    """Modules that a function imports, optional ones aside."""
    found = []
    for function in ast.walk(ast.parse(source)):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        for node in ast.walk(function):
            if isinstance(node, ast.Import):
                found += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                found.append(node.module or ".")
    return [name for name in found if name.partition(".")[0] not in OPTIONAL]


def broad_excepts(source: str) -> list[int]:
    """Lines that catch everything and do not raise it again."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or (isinstance(node.type, ast.Name) and node.type.id in ("Exception", "BaseException")))
        and not (isinstance(node.body[-1], ast.Raise) and node.body[-1].exc is None)
    ]


def long_functions(source: str) -> list[str]:
    return [
        node.name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno >= MAX_FUNCTION_LINES
    ]


def foreign_words(text: str) -> list[str]:
    """Paths of somebody's machine, and hosts of package indexes."""
    machine = r"(?<![\w.~])/(?:home|root|work|Users)/\w+"
    index = (
        r"(?:--index-url|--extra-index-url)[ =]https?:|https?://[\w.-]*(?:pypi|pythonhosted|artifactory|nexus)[\w.-]*"
    )
    allowed = ("/home/fathom",)
    return [hit for hit in re.findall(f"{machine}|{index}", text) if hit not in allowed]


def test_the_checks_see_what_they_look_for():
    assert inner_imports("def f():\n    import json\n    from os import path\n    import flash_attn") == ["json", "os"]
    assert broad_excepts("try:\n    x\nexcept Exception:\n    y\ntry:\n    x\nexcept ValueError:\n    y") == [3]
    assert long_functions("def f():\n" + "    x\n" * MAX_FUNCTION_LINES) == ["f"]
    assert long_functions("def f():\n" + "    x\n" * (MAX_FUNCTION_LINES - 1)) == []
    assert foreign_words("see " + "/ho" + "me/me/x and --index-url " + "https://a") != []
    assert foreign_words("/v1/models and ~/work/x, https://example.org") == []


@pytest.mark.parametrize("file", product_files(), ids=lambda file: str(file.relative_to(ROOT)))
def test_shape_of_the_code(file):
    source = file.read_text(encoding="utf-8")
    name = str(file.relative_to(ROOT))
    assert inner_imports(source) == []
    assert "TYPE_CHECKING" not in source
    assert name in BROAD_EXCEPTS or broad_excepts(source) == []
    assert long_functions(source) == []
    assert len(source.splitlines()) <= 400


def test_walls_between_the_rooms():
    done = subprocess.run([Path(sys.executable).parent / "lint-imports"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "0 broken" in done.stdout


def test_the_command_line_starts_without_torch():
    code = "import sys, fathom; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_top_level_holds_nothing_else(tracked):
    assert {file.relative_to(ROOT).parts[0] for file in tracked} <= TOP_LEVEL


def test_files_are_small(tracked):
    assert [str(file) for file in tracked if file.stat().st_size > MAX_FILE_BYTES] == []


def test_files_name_no_machine_and_no_index(tracked):
    hits = {}
    for file in tracked:
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        if found := foreign_words(text):
            hits[file.name] = found
    assert hits == {}


def test_every_direct_dependency_is_pinned_to_what_is_tested():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.lower().replace("_", "-").split("==") for line in lines if line and not line.startswith("#"))
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    names = [re.split(r"[<>=\[;]", requirement)[0].strip().lower() for requirement in wanted]
    assert [name for name in names if name not in pins] == []
    assert pins["torch"] == "2.13.0"
    for name in names:
        assert distribution(name).version.partition("+")[0] == pins[name], name


def test_make_lists_its_commands():
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    listed = re.findall(r"^  make ([a-z-]+)", done.stdout, re.MULTILINE)
    assert {"demo", "test", "serve", "lint", "types", "layers", "unit", "clean"} <= set(listed)


def test_an_install_happens_only_when_something_changed(tmp_path):
    plan = subprocess.run(
        ["make", "-n", "demo", f"VENV={tmp_path}"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert "pip install" in plan
    assert "fathom demo" in plan
    [stamp] = set(re.findall(r"touch (\S+)", plan))
    Path(stamp).touch()
    plan = subprocess.run(
        ["make", "-n", "demo", f"VENV={tmp_path}"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert "pip install" not in plan


def test_without_a_python_the_message_says_so(tmp_path):
    command = ["make", "install", "PYTHON=", f"VENV={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "Python 3.11 or newer is needed" in done.stdout
    assert "python3-venv" not in done.stdout


def test_kernels_are_compiled_for_the_cuda_of_torch():
    """The pinned torch is built for CUDA 13, as the requirements in its metadata say."""
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert re.search(r"^torch==2\.13\.", pins, re.MULTILINE), "another torch: does its wheel want another CUDA?"
    images = re.findall(r"^FROM nvidia/cuda:(\d+)\.", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    assert images == ["13", "13"]


def test_images_run_as_a_user_and_tell_their_health():
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    for target in ("cpu", "gpu"):
        stage = re.search(rf"^FROM \S+ AS {target}\n(.*?)(?=^FROM |\Z)", text, re.MULTILINE | re.DOTALL)
        assert stage is not None, target
        assert "USER fathom" in stage[1]
        assert "HEALTHCHECK" in stage[1]
        assert 'ENTRYPOINT ["fathom"]' in stage[1]
    assert "'.[gpu]'" in text


def test_the_licence_is_apache():
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")[:300]


def test_the_readme_has_both_commands_and_its_picture():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "make demo" in text
    assert "make test" in text
    assert "embedded:transformer, must_answer, dataset world" in text
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text)
    assert pictures
    assert all((ROOT / picture).is_file() for picture in pictures)
