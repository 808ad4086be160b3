"""Requests that must be refused in time and by name, and answers that come back as the next request."""

import json
import shutil
import socket
from types import SimpleNamespace

import httpx
import pytest
from pydantic import ValidationError
from server_checks import refusal
from serving import ServerProcess
from typer.testing import CliRunner, Result

from fathom import app
from models.embedded import embedded_directory
from models.families import read_config
from server.api.generation import Job, fit_max_tokens
from server.api.schemas import ChatRequest, CompletionRequest, DetokenizeRequest
from server.checkpoints import resolve_model
from server.config import ConfigError
from server.errors import ApiError, from_engine_error
from server.metrics import Metrics
from server.process import QueueFullError

MODEL = "embedded:transformer"
HELLO = {"role": "user", "content": "Hello"}
CONTEXT = 64
VOCAB_SIZE = read_config(embedded_directory(MODEL)).vocab_size


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A server with a key, a short context and a short queue; its tokenizer knows a token more than its model."""
    directory = tmp_path_factory.mktemp("runs") / "lr=0.1"
    shutil.copytree(embedded_directory(MODEL), directory)
    content = json.loads((directory / "tokenizer.json").read_text())
    extra = content["added_tokens"][-1] | {"id": VOCAB_SIZE, "content": "<|extra|>"}
    content["added_tokens"].append(extra)
    (directory / "tokenizer.json").write_text(json.dumps(content))
    options = ("--threads", "1", "--max-context", str(CONTEXT), "--api-key", "secret", "--api-key", "other")
    options += ("--max-running", "8", "--max-queue", "2")
    with ServerProcess(str(directory), *options) as server:
        yield server.wait_ready()


@pytest.fixture
def keyed(small):
    with httpx.Client(base_url=small.url, timeout=60, headers={"Authorization": "Bearer secret"}) as http:
        yield http


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("completions", {"prompt": "Ana <|extra|>"}, "prompt"),
        ("completions", {"prompt": [5, VOCAB_SIZE]}, "prompt"),
        ("chat/completions", {"messages": [{"role": "user", "content": "Ana <|extra|>"}]}, "messages"),
    ],
)
def test_tokens_that_the_model_does_not_know_never_reach_the_engine(keyed, path, body, param):
    answer = keyed.post(f"/v1/{path}", json={"model": "lr=0.1", "max_tokens": 2} | body)
    assert (answer.status_code, refusal(answer)["param"]) == (400, param)
    assert (
        f"token id {VOCAB_SIZE} is outside the model's vocabulary of {VOCAB_SIZE} tokens" in refusal(answer)["message"]
    )
    assert keyed.get("/health").json()["models"]["lr=0.1"]["restarts"] == 0


def test_every_key_opens_and_no_other(small):
    body = {"model": "lr=0.1", "prompt": [5], "max_tokens": 1}
    for key, status in (("secret", 200), ("other", 200), ("secre", 401), ("secrets", 401)):
        answer = httpx.post(f"{small.url}/v1/completions", json=body, headers={"Authorization": f"Bearer {key}"})
        assert answer.status_code == status


def test_what_would_come_too_late_is_not_served(keyed):
    """The deadline is over before the prompt is read, or long before the answer ends."""
    body = {"model": "lr=0.1", "prompt": [5, 6], "max_tokens": CONTEXT - 2, "ignore_eos": True}
    for timeout_s in (1e-9, 0.001):
        answer = keyed.post("/v1/completions", json=body | {"timeout_s": timeout_s})
        assert answer.status_code == 504
        assert (refusal(answer)["param"], refusal(answer)["code"]) == ("timeout_s", "deadline_exceeded")
        assert f"not complete after {timeout_s:g} s" in refusal(answer)["message"]
    assert keyed.post("/v1/completions", json=body | {"timeout_s": 60, "priority": -3}).status_code == 200


def test_completions_without_max_tokens_take_what_the_context_leaves(keyed):
    body = {"model": "lr=0.1", "ignore_eos": True}
    for num_prompt, num_generated in ((CONTEXT - 3, 3), (CONTEXT - 40, 16)):
        answer = keyed.post("/v1/completions", json=body | {"prompt": [5] * num_prompt})
        assert answer.json()["usage"]["completion_tokens"] == num_generated
    full = keyed.post("/v1/completions", json=body | {"prompt": [5] * CONTEXT})
    assert refusal(full)["code"] == "context_length_exceeded"


def test_more_choices_than_may_ever_be_open_are_refused(keyed):
    body = {"model": "lr=0.1", "prompt": [5], "max_tokens": 1}
    answer = keyed.post("/v1/completions", json=body | {"n": 11})
    assert (answer.status_code, refusal(answer)["param"]) == (400, "n")
    assert "n: 11 are more than may ever be open at once, which is 10" in refusal(answer)["message"]
    assert len(keyed.post("/v1/completions", json=body | {"n": 10}).json()["choices"]) == 10
    full = from_engine_error(QueueFullError(10, 1.0, num_open=8, num_asked=3))
    assert (full.status, full.param, full.headers["Retry-After"]) == (429, "n", "1")


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"])
def test_strangers_are_refused_before_their_body_is_read(small, path):
    assert httpx.post(f"{small.url}{path}", content=b"{bad").status_code == 401
    url = httpx.URL(small.url)
    with socket.create_connection((url.host, url.port), timeout=10) as connection:
        # The body that is announced never comes.
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 60000000\r\n\r\n"
        connection.sendall(head.encode())
        assert connection.recv(4096).startswith(b"HTTP/1.1 401 ")


def test_the_cache_is_shown_to_who_has_the_key(small):
    def ask(*key: str) -> Result:
        return CliRunner().invoke(app, ["cache", "--endpoint", small.url, *key], env={"FATHOM_API_KEY": None})

    for key in ((), ("--api-key", "wrong")):
        assert ask(*key).exit_code == 2
        assert "the API key is missing or wrong; give it as --api-key or in FATHOM_API_KEY" in ask(*key).stderr
    assert ask("--api-key", "secret").exit_code == 0
    assert httpx.delete(f"{small.url}/v1/fathom/cache").status_code == 401


@pytest.mark.parametrize("path", ["/health", "/metrics", "/version"])
def test_no_key_is_needed_to_see_how_it_goes(small, path):
    assert httpx.get(f"{small.url}{path}").status_code == 200


def test_refused_requests_are_counted_too(small, keyed):
    def counted(path, status):
        return small.metrics().get(f'fathom_http_responses_total{{route="{path}",status="{status}"}}', 0.0)

    wanted = [("/v1/completions", 400), ("/v1/completions", 401), ("/v1/completions", 404), ("other", 404)]
    wanted.append(("/v1/completions", 200))
    before = [counted(*one) for one in wanted]
    body = {"model": "lr=0.1", "prompt": [5], "max_tokens": 1}
    assert keyed.post("/v1/completions", json=body | {"top_p": 7}).status_code == 400
    assert httpx.post(f"{small.url}/v1/completions", json=body).status_code == 401
    assert keyed.post("/v1/completions", json=body | {"model": "none"}).status_code == 404
    assert keyed.get("/made-up").status_code == 404
    assert keyed.post("/v1/completions", json=body).status_code == 200
    assert [counted(*one) - was for one, was in zip(wanted, before, strict=True)] == [1.0] * 5
    assert "made-up" not in httpx.get(f"{small.url}/metrics").text


def test_an_answer_can_be_sent_back(client):
    messages = [HELLO]
    for _ in range(2):
        message = client.chat.completions.create(model=MODEL, messages=messages, max_tokens=4).choices[0].message
        messages += [message, HELLO]
    everything = {"name": None, "refusal": None, "tool_calls": [], "function_call": None, "audio": None}
    old = {"role": "assistant", "content": "Hi", "annotations": []} | everything
    assert client.chat.completions.create(model=MODEL, messages=[HELLO, old, HELLO], max_tokens=1).usage


@pytest.mark.parametrize(
    ("field", "value"),
    [("refusal", "no"), ("tool_calls", [{"id": "x"}]), ("function_call", {}), ("audio", {"id": "x"}), ("name", "Ana")],
)
def test_what_a_message_cannot_hold_is_refused(http, field, value):
    messages = [HELLO, {"role": "assistant", "content": "Hi", field: value}, HELLO]
    answer = http.post("/v1/chat/completions", json={"model": MODEL, "messages": messages})
    assert (answer.status_code, refusal(answer)["param"]) == (400, f"messages.1.{field}")
    assert "leave it out or send null" in refusal(answer)["message"]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/completions", r'{"prompt": "\ud800"}', "prompt"),
        ("/v1/completions", r'{"prompt": ["\ud800"]}', "prompt.0"),
        ("/v1/completions", r'{"prompt": "x", "stop": "\udc00x"}', "stop.0"),
        ("/v1/completions", r'{"prompt": "x", "a\ud800": 1}', None),
        ("/v1/chat/completions", r'{"messages": [{"role": "user", "content": "\ud800"}]}', "messages.0.content"),
        (
            "/v1/chat/completions",
            r'{"messages": [{"role": "user", "content": [{"type": "text", "text": "\ud800"}]}]}',
            "messages.0.content.0.text",
        ),
        ("/tokenize", r'{"prompt": "\ud800"}', "prompt"),
        ("/v1/completions", f'{{"prompt": "x", "top_k": {2**70}}}', "top_k"),
        ("/v1/completions", f'{{"prompt": "x", "stop_token_ids": [{2**64}]}}', "stop_token_ids.0"),
        ("/v1/completions", f'{{"prompt": "x", "temperature": {10**400}}}', "temperature"),
        ("/v1/completions", '{"prompt": "x", "n": true}', "n"),
        ("/v1/completions", '{"prompt": "x", "priority": 1001}', "priority"),
        ("/v1/completions", '{"prompt": "x", "timeout_s": 0}', "timeout_s"),
        ("/v1/completions", '{"prompt": "x", "list": 1}', "list"),
        ("/v1/completions", '{"prompt": "x", "not-a-word": 1}', "not-a-word"),
        ("/v1/chat/completions", '{"messages": [{"role": "user", "content": "x", "str": 1}]}', "messages.0.str"),
    ],
)
def test_the_callers_faults_are_told_as_such(http, path, body, param):
    content = body.replace("{", f'{{"model": "{MODEL}", ', 1)
    answer = http.post(path, content=content, headers={"Content-Type": "application/json"})
    error = refusal(answer)
    assert (answer.status_code, error["param"]) == (400, param)
    assert param is None or error["message"].startswith(f"{param}: ")


def test_values_of_another_type_that_change_nothing_are_accepted(client):
    options = {"frequency_penalty": 0.0, "presence_penalty": 0, "logit_bias": {}, "n": 1}
    assert client.completions.create(model=MODEL, prompt="x", max_tokens=1, **options).usage


@pytest.mark.parametrize(
    ("schema", "body"),
    [
        (CompletionRequest, {"prompt": [-1] * 99}),
        (CompletionRequest, {"prompt": [5] + ["x"] * 99}),
        (CompletionRequest, {"prompt": ["x"] + [5] * 99}),
        (CompletionRequest, {"prompt": [[-1] * 99] * 99}),
        (CompletionRequest, {"prompt": [{}] * 99}),
        (CompletionRequest, {"prompt": "x", "stop_token_ids": [-1] * 99}),
        (CompletionRequest, {"prompt": "x", "stop": [1] * 99}),
        (CompletionRequest, {"prompt": "x"} | {f"x{number}": 1 for number in range(99)}),
        (ChatRequest, {"messages": [{"role": "user"}] * 99}),
        (ChatRequest, {"messages": [{"role": "user", "content": [{"type": "text"}] * 99}]}),
        (DetokenizeRequest, {"tokens": [-1] * 99}),
    ],
)
def test_one_fault_is_enough(schema, body):
    """To describe each of a million wrong elements would stop the server for a minute."""
    with pytest.raises(ValidationError) as raised:
        schema.model_validate({"model": MODEL} | body)
    assert raised.value.error_count() == 1


def test_nobody_guesses_the_context_of_an_engine_that_never_was_ready():
    engine = SimpleNamespace(info=None, state="starting", last_error=None)
    with pytest.raises(ApiError) as raised:
        fit_max_tokens(SimpleNamespace(engine=engine), 3, None, param="messages")
    assert (raised.value.status, raised.value.code) == (503, "engine_unavailable")
    assert "Retry-After" in raised.value.headers


async def test_what_goes_wrong_here_is_not_counted_as_the_clients_leaving():
    async def generate(*_, **__):
        raise OverflowError("too large")
        yield

    metrics = Metrics({})
    job = Job(SimpleNamespace(name="m", generate=generate), [], [], metrics)
    with pytest.raises(OverflowError):
        await anext(job.run())
    assert b'fathom_requests_total{model="m",outcome="error"} 1.0' in metrics.render()


def test_a_directory_may_have_an_equals_sign_in_its_path(tmp_path):
    directory = tmp_path / "lr=0.1"
    directory.mkdir()
    assert resolve_model(str(directory)) == ("lr=0.1", directory)
    assert resolve_model(f"mine={directory}") == ("mine", directory)
    with pytest.raises(ConfigError, match="there is no directory"):
        resolve_model(f"{directory}/nothing")
