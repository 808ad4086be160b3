"""What an endpoint's refusals are taken to mean, in the words of real servers."""

import json

import pytest

from evals.config import RunConfig
from evals.dialect import (
    NO_DRAW_TEMPERATURE,
    NO_LOGPROBS,
    NO_SEED,
    NO_STREAM_OPTIONS,
    NO_TEMPERATURE,
    OTHER_LIMIT,
    Dialect,
    Wanted,
)

EXTRA = {"type": "extra_forbidden", "loc": ["body", "stream_options"], "msg": "Extra inputs are not permitted"}
# FastAPI repeats the whole request where something is missing from it.
MISSING = {
    "type": "missing",
    "loc": ["body", "messages", 0, "name"],
    "msg": "Field required",
    "input": {"stream_options": {}, "max_tokens": 8, "temperature": 0, "why": "unsupported"},
}
PYDANTIC = "1 validation error for ChatRequest\nstream_options\n  Extra inputs are not permitted"
OTHER_NAME = (
    "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
)
ONLY_ONE = "Unsupported value: 'temperature' does not support 0 with this model. Only the default (1) is supported."
TOO_LARGE = (
    "'max_tokens' or 'max_completion_tokens' is too large: 9000. This model's maximum context length is 4096 tokens."
)


def openai(message, param=None):
    return {"error": {"message": message, "type": "invalid_request_error", "param": param, "code": None}}


@pytest.mark.parametrize(
    ("refusal", "changes"),
    [
        (openai("Unrecognized request argument supplied: stream_options"), [NO_STREAM_OPTIONS]),
        (openai("Unknown parameter.", "stream_options"), [NO_STREAM_OPTIONS]),
        ({"detail": [EXTRA]}, [NO_STREAM_OPTIONS]),
        ({"object": "error", "message": PYDANTIC}, [NO_STREAM_OPTIONS]),
        (openai(OTHER_NAME, "max_tokens"), [OTHER_LIMIT]),
        ({"error": "unknown field: max_tokens"}, [OTHER_LIMIT]),
        (openai(ONLY_ONE, "temperature"), [NO_TEMPERATURE]),
        ({"detail": "temperature isn't supported"}, [NO_TEMPERATURE]),
        (openai("You are not allowed to request logprobs from this model"), [NO_LOGPROBS]),
        (openai("top_logprobs is not supported"), []),
        (openai("seed is not supported"), []),
        (openai(TOO_LARGE, "max_tokens"), []),
        (openai("max_tokens must be at most 16, more is not supported"), []),
        (openai("temperature must be above 0"), []),
        (openai("This model is not supported. temperature was 0"), []),
        (openai("unknown field: max_tokens_total"), []),
        ({"detail": [MISSING]}, []),
        ({"detail": [MISSING, EXTRA]}, [NO_STREAM_OPTIONS]),
        ([1, None], []),
    ],
)
def test_what_is_refused_by_name_is_left_out(refusal, changes):
    dialect = Dialect()
    dialect.learn(json.dumps(refusal).encode())
    assert dialect.changes == changes


def test_a_refusal_that_is_no_json_is_read_too(tmp_path):
    dialect = Dialect()
    config = RunConfig(endpoint="http://x", model="m", out=tmp_path, max_tokens=7)
    whole = dialect.body(config, [])
    dialect.learn(b"stream_options: what is that?\xff")
    dialect.learn(b"Use max_completion_tokens instead of max_tokens")
    dialect.learn(b"temperature is deprecated")
    dialect.learn(b"temperature is deprecated")
    assert dialect.changes == [NO_STREAM_OPTIONS, OTHER_LIMIT, NO_TEMPERATURE]
    assert dialect.body(config, []) == {"model": "m", "messages": [], "max_completion_tokens": 7, "stream": True}
    assert set(whole) == {"model", "messages", "max_tokens", "stream", "temperature", "stream_options"}


def test_of_draws_other_things_are_learned_than_of_greedy_answers(tmp_path):
    dialect, drawn = Dialect(), Wanted(seed=5)
    config = RunConfig(endpoint="http://x", model="m", out=tmp_path, draws=2, temperature=0.4, logprobs=True)
    dialect.learn(b"temperature is not supported: 0")
    assert dialect.changes == [NO_TEMPERATURE]
    asked = dialect.body(config, [], drawn)
    assert (asked["temperature"], asked["seed"], asked["logprobs"]) == (0.4, 5, True)
    dialect.learn(b"temperature is not supported. Unknown field: seed. logprobs: extra field", drawn)
    assert dialect.changes[1:] == [NO_DRAW_TEMPERATURE, NO_SEED, NO_LOGPROBS]
    assert set(dialect.body(config, [], drawn)) == {"model", "messages", "max_tokens", "stream", "stream_options"}
