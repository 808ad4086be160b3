"""Asking an endpoint: what is asked again, what is not, and what is measured."""

import asyncio
import contextlib

import pytest
from fakes_endpoint import MODEL, Planted, serving

from evals import retry
from evals.client import ask, fetch_model, open_session
from evals.config import ConfigError, RunConfig
from evals.dialect import NO_STREAM_OPTIONS, NO_TEMPERATURE, OTHER_LIMIT, Dialect
from evals.records import ESTIMATED, SERVED, Document
from evals.tokens import TokenCounter

MESSAGES = [{"role": "user", "content": "Where?"}]


def config_for(url, tmp_path, **options):
    return RunConfig(endpoint=url, model=MODEL, out=tmp_path, **options)


async def ask_planted(planted, tmp_path, **options):
    async with serving(planted) as url:
        config = config_for(url, tmp_path, **options)
        async with open_session(config) as session:
            return await ask(session, config, Dialect(), MESSAGES)


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
            first = await ask(session, config, Dialect(), MESSAGES)
    # The clock of a sample begins with the request that was answered, not with the one that was refused.
    assert first.attempts == 2
    assert first.times.end_s - first.times.sent_s < 1


async def test_the_callers_fault_is_final(tmp_path):
    answer = await ask_planted(Planted(refusals=[400, 400]), tmp_path)
    assert answer.attempts == 1
    assert answer.error == "status 400: planted refusal"
    assert answer.refused_status == 400


@pytest.mark.parametrize("status", [400, 422])
@pytest.mark.parametrize(
    ("field", "message", "change", "instead"),
    [
        ("stream_options", "unknown field stream_options", NO_STREAM_OPTIONS, None),
        ("max_tokens", "Unsupported parameter: 'max_tokens'", OTHER_LIMIT, "max_completion_tokens"),
        ("temperature", "'temperature' is not supported", NO_TEMPERATURE, None),
    ],
)
async def test_a_field_that_is_refused_by_name_is_done_without_from_then_on(  # noqa: PLR0917
    tmp_path, status, field, message, change, instead
):
    planted, dialect = Planted(unknown_fields={field: (status, message)}), Dialect()
    async with serving(planted) as url:
        config = config_for(url, tmp_path, max_tokens=7)
        async with open_session(config) as session:
            first, second = [await ask(session, config, dialect, MESSAGES) for _ in range(2)]
    assert (first.error, first.attempts, second.error, second.attempts) == (None, 2, None, 1)
    assert first.text == second.text == "nothing of the kind"
    assert (first.usage is None) == (field == "stream_options")
    assert dialect.changes == [change]
    assert [field in body for body in planted.asked] == [True, False, False]
    assert planted.asked[0].keys() - planted.asked[-1].keys() == {field}
    assert planted.asked[-1].get(instead) == (7 if instead else None)


async def test_all_that_is_refused_is_learned_at_once_by_requests_under_way(tmp_path):
    fields = ("stream_options", "max_tokens", "temperature")
    planted = Planted(unknown_fields={field: (400, f"unsupported: {field}") for field in fields})
    dialect = Dialect()
    async with serving(planted) as url, open_session(config := config_for(url, tmp_path)) as session:
        answers = await asyncio.gather(*(ask(session, config, dialect, MESSAGES) for _ in range(4)))
    assert [answer.error for answer in answers] == [None] * 4
    assert sorted(dialect.changes) == sorted([NO_STREAM_OPTIONS, OTHER_LIMIT, NO_TEMPERATURE])


async def test_a_field_that_is_wrong_in_both_forms_is_an_error(tmp_path):
    fields = ("max_tokens", "max_completion_tokens")
    planted = Planted(unknown_fields={field: (400, f"unknown field {field}") for field in fields})
    answer = await ask_planted(planted, tmp_path)
    assert (answer.attempts, answer.error) == (2, "status 400: unknown field max_completion_tokens")


async def test_a_broken_stream_is_asked_again_and_then_an_error(tmp_path):
    assert (await ask_planted(Planted(broken=1), tmp_path)).error is None
    answer = await ask_planted(Planted(broken=2), tmp_path, max_attempts=2)
    assert (answer.error, answer.attempts) == ("planted break", 2)


async def test_nobody_there_is_an_error(tmp_path):
    config = config_for("http://127.0.0.1:9", tmp_path, max_attempts=2)
    async with open_session(config) as session:
        answer = await ask(session, config, Dialect(), MESSAGES)
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


async def test_a_digest_of_the_weights_comes_from_the_list_of_models(tmp_path):
    async with serving(Planted(weights_digest="abc")) as url, serving(Planted()) as plain:
        for endpoint, digest in ((url, "abc"), (plain, None)):
            config = config_for(endpoint, tmp_path)
            async with open_session(config) as session:
                assert (await fetch_model(session, config)).weights_digest == digest


async def test_the_list_of_models_may_be_bare_or_missing(tmp_path):
    async with serving(Planted(bare_list=True, max_context=77)) as url, serving(Planted(models_status=404)) as none:
        for endpoint, kind, limit in ((url, "mamba", 77), (none, "unknown", None)):
            config = config_for(endpoint, tmp_path)
            async with open_session(config) as session:
                served = await fetch_model(session, config)
            assert (served.kind, served.max_context_tokens) == (kind, limit)
    async with serving(Planted(models_status=403)) as url:
        config = config_for(url, tmp_path)
        async with open_session(config) as session:
            with pytest.raises(ConfigError, match=r"--endpoint: .* answers 403: planted refusal"):
                await fetch_model(session, config)


async def test_a_list_of_models_that_is_busy_is_asked_for_again(tmp_path):
    planted = Planted(models_refusals=[503, 429])
    async with serving(planted) as url, open_session(config := config_for(url, tmp_path)) as session:
        assert (await fetch_model(session, config)).kind == "mamba"
    planted = Planted(models_status=503)
    async with serving(planted) as url:
        config = config_for(url, tmp_path, max_attempts=2)
        async with open_session(config) as session:
            with pytest.raises(ConfigError, match=r"--endpoint: .* answers 503: planted refusal"):
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


@pytest.fixture
def started(monkeypatch):
    """A counter of a planted endpoint, started; it does not wait long."""
    monkeypatch.setattr(retry, "FIRST_BACKOFF_S", 0.01)
    stack = contextlib.AsyncExitStack()

    async def start(planted, tmp_path, **options):
        url = await stack.enter_async_context(serving(planted))
        config = config_for(url, tmp_path, **options)
        counter = TokenCounter(await stack.enter_async_context(open_session(config)), config)
        await counter.start()
        return counter

    start.stack = stack
    return start


DOCUMENT = Document("d", "Title", "three more words.")


@pytest.mark.parametrize("status", [0, 408, 429, 502, 503, 504])
async def test_a_count_is_asked_for_again(tmp_path, started, status):
    async with started.stack:
        planted = Planted(tokenize_refusals=[status, status, 200, status, 200, status])
        counter = await started(planted, tmp_path)
        assert (counter.source, await counter.count(DOCUMENT)) == (SERVED, 8)
        assert await counter.count_chat(MESSAGES) > 0
        assert planted.tokenize_refusals == []


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 422, 501])
async def test_a_refusal_to_count_means_an_estimate_at_the_start_alone(tmp_path, started, status):
    async with started.stack:
        assert (await started(Planted(tokenize_refusals=[status]), tmp_path)).source == ESTIMATED
        counter = await started(Planted(tokenize_refusals=[200, status]), tmp_path)
        with pytest.raises(ConfigError, match=r"--endpoint http.*/tokenize counts no longer"):
            await counter.count(DOCUMENT)


@pytest.mark.parametrize(("status", "words"), [(503, "answers 503: planted refusal"), (0, "ServerDisconnectedError")])
async def test_an_endpoint_that_never_counts_is_an_error_in_the_end(tmp_path, started, status, words):
    async with started.stack:
        counter = await started(Planted(tokenize_refusals=[200, status, status]), tmp_path, max_attempts=2)
        with pytest.raises(ConfigError, match=f"/tokenize {words}"):
            await counter.count(DOCUMENT)


@pytest.mark.parametrize(
    ("planted", "expected"),
    [
        # Three words; two tokens that begin any text, and three of template.
        (Planted(), 3 + 2 + 3),
        (Planted(tokenizes_chats=False), 3),
        (Planted(tokenize_refusals=[200, 200, 500]), 3),
        (Planted(tokenizes=False), 5),
    ],
)
async def test_a_chat_is_counted_with_its_template_where_that_is_known(tmp_path, started, planted, expected):
    async with started.stack:
        counter = await started(planted, tmp_path)
        assert await counter.count_chat([{"role": "user", "content": "Where is Ana?"}]) == expected
