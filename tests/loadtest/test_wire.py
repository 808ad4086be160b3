import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.wire import (
    Delta,
    Done,
    Event,
    Ignored,
    StreamError,
    Usage,
    error_message,
    parse_sse_line,
    read_stream,
)


def chat(delta: dict[str, Any], finish_reason: str | None = None, **extra: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return b"data: " + json.dumps({"choices": [choice], **extra}).encode() + b"\n"


USAGE = {"prompt_tokens": 5, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 3}}


@pytest.mark.parametrize(
    ("line", "event"),
    [
        (b"\r\n", Ignored()),
        (b": ping\n", Ignored()),
        (b"event: message\n", Ignored()),
        (b"data:\n", Ignored()),
        (b"data: [DONE]\n", Done()),
        (b"data:[DONE]\r\n", Done()),
        (chat({"role": "assistant", "content": ""}), Delta("", None)),
        (chat({"role": "assistant", "content": None}), Delta("", None)),
        (chat({"content": "hi"}), Delta("hi", None)),
        (chat({}, "stop"), Delta("", "stop")),
        (chat({"reasoning_content": "hm"}), Delta("", None, reasoning="hm")),
        (
            chat({"tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}),
            Delta("", None, tool_text="f{}"),
        ),
        (b'data: {"choices":[{"text":"hi","finish_reason":"length"}]}', Delta("hi", "length")),
        (b'data: {"choices":[],"usage":' + json.dumps(USAGE).encode() + b"}", Usage(5, 2, 3)),
        (chat({"content": "x"}, usage=USAGE), Delta("x", None, usage=Usage(5, 2, 3))),
        (
            b'data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":2},"fathom":{"kv_bytes":9}}',
            Usage(5, 2, None, {"kv_bytes": 9}),
        ),
        (b'data: {"choices":[],"usage":null}', Ignored()),
        (b'data: {"error":{"message":"died","code":500}}', StreamError("died")),
        (b'data: {"error":"died"}', StreamError("died")),
        (b'data: {"object":"error","message":"died"}', StreamError("died")),
        (b'{"error":{"message":"no stream"}}', StreamError("not an event stream: no stream")),
        (b"data: {broken", StreamError("chunk is not JSON: {broken")),
        (b"data: 3", StreamError("chunk is not an object: 3")),
        (b"data: " + b"[" * 200_000, StreamError(f"chunk is nested too deeply: {'[' * 500}...")),
        (b'data: {"error":{"message":"half of a \\ud83d"}}', StreamError("half of a ?")),
    ],
)
def test_one_line(line: bytes, event: Event) -> None:
    assert parse_sse_line(line) == event


@given(st.binary(max_size=60))
def test_no_line_raises(noise: bytes) -> None:
    parse_sse_line(b"data: " + noise)
    parse_sse_line(noise)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    [
                        "choices",
                        "delta",
                        "content",
                        "usage",
                        "error",
                        "prompt_tokens",
                        "tool_calls",
                        "logprobs",
                        "logprob",
                    ]
                ),
                inner,
                max_size=4,
            )
        ),
        max_leaves=12,
    )
)
def test_no_json_raises(content: Any) -> None:
    parse_sse_line(b"data: " + json.dumps(content).encode())


@pytest.mark.parametrize("depth", range(200, 1100, 25))
def test_no_depth_raises(depth: int) -> None:
    for opening, closing in ((b"[", b"]"), (b'{"error":', b"}")):
        nested = opening * depth + b"1" + closing * depth
        parse_sse_line(b"data: " + nested)
        parse_sse_line(nested)
        error_message(nested)


def stamped(*lines: bytes) -> list[tuple[float, bytes]]:
    return [(float(position), line) for position, line in enumerate(lines)]


def test_a_whole_stream() -> None:
    stream = read_stream(
        stamped(
            chat({"role": "assistant", "content": ""}),
            b": ping\n",
            chat({"content": "a"}),
            b"\n",
            chat({"content": "b"}),
            chat({}, "stop"),
            b'data: {"choices":[],"usage":' + json.dumps(USAGE).encode() + b"}",
            b"data: [DONE]\n",
            chat({"content": "after the end"}),
        )
    )
    assert stream.text == "ab"
    assert stream.token_times_s == (2.0, 4.0)
    assert stream.finish_reason == "stop"
    assert stream.usage == Usage(5, 2, 3)
    assert stream.error is None
    assert stream.saw_done


def test_reasoning_is_output_but_not_answer() -> None:
    stream = read_stream(stamped(chat({"reasoning_content": "hm"}), chat({"content": "a"}, "stop")))
    assert (stream.text, stream.reasoning, stream.token_times_s) == ("a", "hm", (0.0, 1.0))


def test_a_missing_done_is_no_error_after_a_finish_reason() -> None:
    stream = read_stream(stamped(chat({"content": "a"}), chat({}, "length")))
    assert stream.error is None
    assert not stream.saw_done
    assert not stream.cut_off


def test_a_stream_that_just_ends_is_cut_off() -> None:
    stream = read_stream(stamped(chat({"content": "a"})))
    assert stream.cut_off
    assert stream.error == "the stream ended after 1 output chunks without a finish_reason"


def test_an_error_inside_the_stream_is_the_outcome_even_when_done_follows() -> None:
    stream = read_stream(stamped(chat({"content": "a"}), b'data: {"error":{"message":"died"}}', b"data: [DONE]\n"))
    assert stream.error == "died"
    assert not stream.cut_off
    assert stream.token_times_s == (0.0,)


def test_empty_answers() -> None:
    assert read_stream([]).cut_off
    assert read_stream(stamped(b"data: [DONE]")).cut_off
    assert read_stream(stamped(chat({}, "stop"), b"data: [DONE]")).error is None
    assert read_stream(stamped(chat({}, "error"), b"data: [DONE]")).error is not None


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"error":{"message":"too long","param":"messages"}}', "too long"),
        (b'{"detail":"Not Found"}', "Not Found"),
        (b'{"detail":[{"msg":"bad"}]}', '[{"msg": "bad"}]'),
        (b"<html>gateway</html>", "<html>gateway</html>"),
        (b"", ""),
        (b"x" * 600, "x" * 500 + "..."),
        (b"[" * 200_000, "[" * 500 + "..."),
        (b'{"error":"half of a \\ud83d"}', "half of a ?"),
        (b'{"error":"' + b"x" * 600 + b'"}', "x" * 500 + "..."),
    ],
)
def test_error_bodies(body: bytes, message: str) -> None:
    assert error_message(body) == message


def told(text: str, *logprobs: Any) -> bytes:
    choice = {"delta": {"content": text}, "logprobs": {"content": [{"logprob": value} for value in logprobs]}}
    return b"data: " + json.dumps({"choices": [choice]}).encode()


def test_log_probabilities_are_added_up() -> None:
    """Also those of a token without text, which is no output."""
    stream = read_stream(stamped(told("a", -0.5), told("", -1), told("bc", -0.25, 0), chat({}, "stop")))
    assert (stream.logprob, stream.logprob_tokens, stream.token_times_s) == (-1.75, 4, (0.0, 2.0))


@pytest.mark.parametrize("unreadable", [None, True, "x", float("-inf"), float("nan"), -(10**400)])
def test_a_log_probability_that_is_no_number_makes_the_sum_unknown(unreadable: Any) -> None:
    stream = read_stream(stamped(told("a", -0.5), told("b", unreadable), chat({}, "stop")))
    assert (stream.text, stream.error) == ("ab", None)
    assert (stream.logprob, stream.logprob_tokens) == (None, None)


@pytest.mark.parametrize("nothing", [None, [], {}, {"content": None}, {"content": 3}, {"tokens": ["a"]}])
def test_no_log_probabilities(nothing: Any) -> None:
    choice = {"delta": {"content": "a"}, "logprobs": nothing, "finish_reason": "stop"}
    stream = read_stream(stamped(b"data: " + json.dumps({"choices": [choice]}).encode()))
    assert (stream.text, stream.logprob, stream.logprob_tokens) == ("a", None, None)
