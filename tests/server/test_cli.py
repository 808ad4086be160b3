"""`fathom serve`: its options reach the engines, and every flag that a message names is there."""

import pytest
from typer.main import get_command
from typer.testing import CliRunner

import server.cli
from fathom import app
from server.config import LEAST, ConfigError, EngineConfig


@pytest.fixture
def engine_config(monkeypatch: pytest.MonkeyPatch):
    """Runs `fathom serve` with some arguments up to where the models are looked for; returns the engines' options."""

    def run(*arguments: str) -> EngineConfig:
        seen: list[EngineConfig] = []

        def host_models(_: list[str], config: EngineConfig, *__: object, **___: object) -> None:
            seen.append(config)
            raise ConfigError("no further")

        monkeypatch.setattr(server.cli, "host_models", host_models)
        result = CliRunner().invoke(app, ["serve", "--port", "0", *arguments])
        assert result.exit_code == server.cli.EXIT_CONFIG
        assert seen, result.output
        return seen[0]

    return run


@pytest.mark.parametrize(("models", "share"), [(["a"], 1.0), (["a", "b", "c", "d"], 0.25)])
def test_models_share_the_memory_that_is_free(engine_config, models, share):
    assert engine_config(*models).memory_share == share


def test_timeouts_reach_the_engines(engine_config):
    config = engine_config("a", "--start-timeout-s", "50", "--stall-timeout-s", "900")
    assert (config.start_timeout_s, config.stall_timeout_s) == (50, 900)
    default = engine_config("a")
    assert (default.start_timeout_s, default.stall_timeout_s) == (
        EngineConfig().start_timeout_s,
        EngineConfig().stall_timeout_s,
    )


def test_a_cache_directory_is_made_and_reaches_the_engines(engine_config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = engine_config("a", "--cache-dir", "new/one", "--cache-dir-gib", "0.5")
    assert (config.cache_dir, config.cache_dir_bytes) == (str(tmp_path / "new" / "one"), 1 << 29)
    assert (tmp_path / "new" / "one").is_dir()
    assert engine_config("a").cache_dir is None
    assert engine_config("a").host_cache_bytes is None
    assert engine_config("a", "--host-cache-gib", "0.5").host_cache_bytes == 1 << 29


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--cache-dir", "file/below"], "--cache-dir"),
        (["--cache-dir", "x", "--no-prefix-cache"], "--no-prefix-cache turns off"),
        (["--cache-dir", "x", "--cache-dir-gib", "0"], "--cache-dir-gib must be more than 0"),
        (["--host-cache-gib", "1", "--no-prefix-cache"], "--no-prefix-cache turns off"),
        (["--host-cache-gib", "-1"], "--host-cache-gib must be at least 0"),
    ],
)
def test_a_cache_directory_that_cannot_be(tmp_path, monkeypatch, options, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("in the way")
    done = CliRunner().invoke(app, ["serve", "--port", "0", "embedded:mamba", *options])
    assert (done.exit_code, type(done.exception)) == (server.cli.EXIT_CONFIG, SystemExit)
    assert words in done.stderr


def test_every_flag_that_a_message_names_is_an_option():
    options = {flag for parameter in get_command(app).commands["serve"].params for flag in parameter.opts}
    assert {f"--{name.replace('_', '-')}" for name in LEAST} <= options
