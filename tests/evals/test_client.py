"""Asking an endpoint: what is asked again, what is not, and what is measured."""

import pytest
from fakes_endpoint import MODEL, Planted, serving

from evals.client import ask, fetch_model, open_session
from evals.config import ConfigError, RunConfig
from evals.records import Document
from evals.tokens import ESTIMATED, SERVED, TokenCounter

MESSAGES = [{"role": "user", "content": "Where?"}]


def config_for(url, tmp_path, **options):
    return RunConfig(endpoint=url, model=MODEL, out=tmp_path, **options)


async def ask_planted(planted, tmp_path, **options):
    async with serving(planted) as url:
        config = config_for(url, tmp_path, **options)
        async with open_session(config) as session:
            return await ask(session, config, MESSAGES)


async def test_text_usage_and_times(tmp_path):
    answer = await ask_planted(Planted(answer=lambda _: "in the town", delay_s=0.05), tmp_path)
    assert (answer.text, answer.finish_reason, answer.error, answer.attempts) == ("in the town", "stop", None, 1)
    assert answer.usage.completion_tokens == 3
    assert answer.usage.fathom == {"kv_bytes": 0, "state_bytes": 64, "peak_bytes": 64}
    assert len(answer.times.token_times_s) == 3
    assert answer.times.sent_s + 0.05 <= answer.times.token_times_s[0] <= answer.times.end_s


async def test_the_request_asks_for_a_greedy_stream_with_usage(tmp_path):
    planted = Planted()
    await ask_planted(planted, tmp_path, max_tokens=7)
    [body] = planted.asked
    assert body["temperature"] == 0
    assert body["max_tokens"] == 7
    assert body["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize("status", [429, 503])
async def test_a_busy_server_is_asked_again(tmp_path, status):
    planted = Planted(refusals=[status, status], retry_after="0.01")
    answer = await ask_planted(planted, tmp_path)
    assert (answer.error, answer.attempts) == (None, 3)


async def test_retry_after_is_waited_for(tmp_path):
    planted = Planted(refusals=[429], retry_after="1")
    async with serving(planted) as url:
        config = config_for(url, tmp_path)
        async with open_session(config) as session:
            first = await ask(session, config, MESSAGES)
    # The clock of a sample begins with the request that was answered, not with the one that was refused.
    assert first.attempts == 2
    assert first.times.end_s - first.times.sent_s < 1


async def test_the_callers_fault_is_final(tmp_path):
    answer = await ask_planted(Planted(refusals=[400, 400]), tmp_path)
    assert answer.attempts == 1
    assert answer.error == "status 400: planted refusal"


async def test_a_broken_stream_is_asked_again_and_then_an_error(tmp_path):
    assert (await ask_planted(Planted(broken=1), tmp_path)).error is None
    answer = await ask_planted(Planted(broken=2), tmp_path, max_attempts=2)
    assert (answer.error, answer.attempts) == ("planted break", 2)


async def test_nobody_there_is_an_error(tmp_path):
    config = config_for("http://127.0.0.1:9", tmp_path, max_attempts=2)
    async with open_session(config) as session:
        answer = await ask(session, config, MESSAGES)
        assert "ClientConnectorError" in answer.error
        with pytest.raises(ConfigError, match="gives no list of models"):
            await fetch_model(session, config)


async def test_kinds_and_limits_come_from_the_list_of_models(tmp_path):
    async with serving(Planted(max_context=77)) as url, serving(Planted(reports_memory=False)) as plain:
        for endpoint, kind, limit in ((url, "mamba", 77), (plain, "unknown", None)):
            config = config_for(endpoint + "/v1/", tmp_path)
            async with open_session(config) as session:
                served = await fetch_model(session, config)
            assert (served.kind, served.max_context_tokens) == (kind, limit)
        config = RunConfig(endpoint=url, model="other", out=tmp_path)
        async with open_session(config) as session:
            with pytest.raises(ConfigError, match="'other' is not served there; there are: planted"):
                await fetch_model(session, config)


async def test_a_model_that_still_loads_is_waited_for(tmp_path):
    planted = Planted(states=["starting", "restarting", "ready"])
    async with serving(planted) as url, open_session(config := config_for(url, tmp_path)) as session:
        assert (await fetch_model(session, config)).kind == "mamba"
        assert planted.states == ["ready"]


@pytest.mark.parametrize(
    ("state", "words"), [("failed", "'planted' is failed"), ("starting", "still starting after --timeout 1")]
)
async def test_a_model_that_never_gets_ready_is_an_error(tmp_path, state, words):
    async with serving(Planted(states=[state])) as url:
        config = config_for(url, tmp_path, timeout_s=1)
        async with open_session(config) as session:
            with pytest.raises(ConfigError, match=words):
                await fetch_model(session, config)


@pytest.mark.parametrize(("tokenizes", "source", "expected"), [(True, SERVED, 8), (False, ESTIMATED, 13)])
async def test_documents_are_counted_as_they_stand_in_a_prompt(tmp_path, tokenizes, source, expected):
    """Six words and two line ends; the two tokens that begin any text are not counted for each document."""
    document = Document("d", "Title", "three more words.")
    async with serving(Planted(tokenizes=tokenizes)) as url:
        config = config_for(url, tmp_path)
        async with open_session(config) as session:
            counter = TokenCounter(session, config)
            await counter.start()
            assert counter.source == source
            assert await counter.count(document) == expected
