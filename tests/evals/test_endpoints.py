"""Endpoints by name and by address: where they are asked, with which key, and in which words."""

import pytest
from aiohttp import web
from fakes_endpoint import MODEL, Planted, serving
from typer.testing import CliRunner

from evals.config import ConfigError, RunConfig
from evals.endpoints import NO_TEMPERATURE, OTHER_LIMIT, PRESETS, parse_endpoint
from evals.endpoints_cli import find_key
from evals.records import ESTIMATED, SERVED
from evals.runner import run_eval
from evals.store import Store
from fathom import app

# Where each is asked, written out: presets that are put together wrongly must not agree with themselves.
CHATS = {
    "openai": "https://api.openai.com/v1/chat/completions",
    "anthropic": "https://api.anthropic.com/v1/chat/completions",
    "google": "https://generativelanguage.googleapis.com/v1beta/openai/chat/completions",
    "cerebras": "https://api.cerebras.ai/v1/chat/completions",
    "together": "https://api.together.xyz/v1/chat/completions",
    "groq": "https://api.groq.com/openai/v1/chat/completions",
    "mistral": "https://api.mistral.ai/v1/chat/completions",
    "deepseek": "https://api.deepseek.com/v1/chat/completions",
    "openrouter": "https://openrouter.ai/api/v1/chat/completions",
    "fireworks": "https://api.fireworks.ai/inference/v1/chat/completions",
    "xai": "https://api.x.ai/v1/chat/completions",
    "nvidia": "https://integrate.api.nvidia.com/v1/chat/completions",
    "ollama": "http://127.0.0.1:11434/v1/chat/completions",
    "vllm": "http://127.0.0.1:8000/v1/chat/completions",
    "sglang": "http://127.0.0.1:30000/v1/chat/completions",
    "llamacpp": "http://127.0.0.1:8080/v1/chat/completions",
    "lmstudio": "http://127.0.0.1:1234/v1/chat/completions",
}
WITHOUT_LIST = {"anthropic", "fireworks"}
COUNTING = {"vllm", "sglang"}
LOCAL = {"ollama", "vllm", "sglang", "llamacpp", "lmstudio"}


def test_every_name_is_known_here():
    assert CHATS.keys() == PRESETS.keys()


@pytest.mark.parametrize("name", CHATS)
def test_a_name_stands_for_its_urls(name):
    endpoint = parse_endpoint(name)
    base = CHATS[name].removesuffix("/chat/completions")
    assert endpoint.chat_url == CHATS[name]
    assert endpoint.models_url == (None if name in WITHOUT_LIST else f"{base}/models")
    assert endpoint.tokenize_url == (f"{base.removesuffix('/v1')}/tokenize" if name in COUNTING else None)
    assert bool(endpoint.keys) == (name not in LOCAL)
    moved = parse_endpoint(f"{name}=http://here:1/v1")
    assert moved.chat_url == "http://here:1/v1/chat/completions"
    assert (moved.keys, moved.changes, moved.name) == (endpoint.keys, endpoint.changes, name)


@pytest.mark.parametrize(
    ("text", "base", "root"),
    [
        ("http://h:8000", "http://h:8000/v1", "http://h:8000"),
        ("http://h:8000/", "http://h:8000/v1", "http://h:8000"),
        ("http://h:8000/v1/", "http://h:8000/v1", "http://h:8000"),
        ("https://h/api/v1", "https://h/api/v1", "https://h/api"),
        ("https://h/v1beta/openai/", "https://h/v1beta/openai", "https://h/v1beta/openai"),
        ("https://h/v1/chat/completions", "https://h/v1", "https://h"),
        ("https://h/openai/chat/completions/", "https://h/openai", "https://h/openai"),
    ],
)
def test_an_address_is_the_base_unless_it_has_no_path(text, base, root):
    endpoint = parse_endpoint(text)
    assert endpoint.chat_url == f"{base}/chat/completions"
    assert endpoint.models_url == f"{base}/models"
    assert (endpoint.root_url, endpoint.tokenize_url) == (root, f"{root}/tokenize")
    assert (endpoint.keys, endpoint.changes, endpoint.replayed) == ((), (), None)


@pytest.mark.parametrize(
    "text", ["", "opnai", "h:8000", "ftp://h", "http://", "openai=", "openai=h", "http://h/v1?a=b", "replay:"]
)
def test_what_is_neither_is_refused_with_the_names(tmp_path, text):
    with pytest.raises(ConfigError, match=r"--endpoint (must be .*openai, anthropic|replay: needs)"):
        RunConfig(endpoint=text, model="m", out=tmp_path)


def test_a_key_is_the_given_one_or_that_of_the_endpoints_own_variable():
    environment = {"OPENAI_API_KEY": "own", "GOOGLE_API_KEY": "second", "GEMINI_API_KEY": ""}
    assert find_key("openai", None, environment) == "own"
    assert find_key("openai", "given", environment) == "given"
    assert find_key("openai=http://127.0.0.1:1/v1", None, environment) == "own"
    assert find_key("google", None, environment) == "second"
    assert find_key("http://127.0.0.1:1", None, environment) is None
    assert find_key("ollama", None, environment) is None
    with pytest.raises(ConfigError, match="--endpoint groq takes a key: set GROQ_API_KEY, or give --api-key"):
        find_key("groq", None, environment)


class Guarded(Planted):
    """Asks for a key, and remembers the paths."""

    def __init__(self, prefix, key, **options):
        super().__init__(**options)
        self.prefix, self.key, self.paths = prefix, key, []

    @property
    def application(self):
        @web.middleware
        async def guard(request, handler):
            self.paths.append(request.path)
            if request.headers.get("Authorization") != (f"Bearer {self.key}" if self.key else None):
                return web.json_response({"error": {"message": "wrong key"}}, status=401)
            return await handler(request)

        application = web.Application(middlewares=[guard])
        application.router.add_get(f"{self.prefix}/models", self._models)
        application.router.add_post(f"{self.prefix}/chat/completions", self._chat)
        application.router.add_post("/tokenize", self._tokenize)
        return application


@pytest.mark.parametrize(
    ("name", "prefix", "listed", "variable"),
    [
        ("openai", "/v1", (MODEL,), "OPENAI_API_KEY"),
        ("anthropic", "/v1", (), "ANTHROPIC_API_KEY"),
        ("google", "/v1beta/openai", (f"models/{MODEL}",), "GEMINI_API_KEY"),
        ("openrouter", "/api/v1", (MODEL,), "OPENROUTER_API_KEY"),
        ("groq", "/openai/v1", (MODEL,), "GROQ_API_KEY"),
        ("vllm", "/v1", (MODEL,), None),
        ("llamacpp", "/v1", (MODEL,), None),
    ],
)
async def test_a_named_endpoint_at_another_address_answers(dataset, tmp_path, name, prefix, listed, variable):  # noqa: PLR0917
    planted = Guarded(prefix, "secret" if variable else None, models=listed, reports_memory=False)
    async with serving(planted) as url:
        endpoint = f"{name}={url}{prefix}"
        key = find_key(endpoint, None, {variable: "secret"} if variable else {})
        config = RunConfig(endpoint=endpoint, model=MODEL, out=tmp_path, budgets=(0, 60), num_questions=3, api_key=key)
        result = await run_eval(config, dataset)
    assert (result.asked, result.failed) == (6, 0)
    assert result.counting == (SERVED if name in COUNTING else ESTIMATED)
    assert ("/tokenize" in planted.paths) == (name in COUNTING)
    assert (f"{prefix}/models" in planted.paths) == (name not in WITHOUT_LIST)
    limit = "max_completion_tokens" if name == "openai" else "max_tokens"
    assert all(body[limit] == config.max_tokens for body in planted.asked)
    with Store(tmp_path) as store:
        [note] = store.run_notes().values()
    assert note.request_changes == ((OTHER_LIMIT,) if name == "openai" else ())


async def test_what_a_named_endpoint_refuses_is_learned_as_of_any(dataset, tmp_path):
    planted = Planted(unknown_fields={"temperature": (400, "temperature is not supported with this model")})
    async with serving(planted) as url:
        config = RunConfig(endpoint=f"openai={url}", model=MODEL, out=tmp_path, budgets=(0,), num_questions=3)
        assert (await run_eval(config, dataset)).failed == 0
    with Store(tmp_path) as store:
        [note] = store.run_notes().values()
    assert note.request_changes == (OTHER_LIMIT, NO_TEMPERATURE)


def test_the_command_line_names_the_missing_key_and_lists_the_endpoints(tmp_path):
    empty = {name: "" for preset in PRESETS.values() for name in preset.keys} | {"COLUMNS": "200", "FATHOM_API_KEY": ""}
    run = ["eval", "run", "--endpoint", "cerebras", "--model", "m", "--out", str(tmp_path)]
    done = CliRunner().invoke(app, run, env=empty)
    assert (done.exit_code, "set CEREBRAS_API_KEY, or give --api-key" in done.output) == (2, True)
    listed = CliRunner().invoke(app, ["eval", "endpoints"], env=empty | {"XAI_API_KEY": "sesame"})
    assert listed.exit_code == 0
    assert all(name in listed.output for name in PRESETS)
    assert "XAI_API_KEY (set)" in listed.output
    assert "GROQ_API_KEY (not set)" in listed.output
    assert "sesame" not in listed.output
