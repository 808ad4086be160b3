import json
from collections.abc import Callable
from pathlib import Path

import pytest

from loadtest.client import Exchange, Failure
from loadtest.records import (
    Dispatch,
    PlannedRequest,
    RequestRecord,
    broken_record,
    finished_record,
    lost_record,
    read_plan,
    read_records,
    to_line,
    unfinished_record,
)

DISPATCH = Dispatch(PlannedRequest(7, 2.0, 50, "{}"), worker=1, origin_s=100.0, dispatched_s=102.001)
TOKEN = b'data: {"choices":[{"delta":{"content":"a"},"finish_reason":null}]}\n'
LAST = b'data: {"choices":[{"delta":{},"finish_reason":"length"}]}\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":51,"completion_tokens":2}}\n'


def test_a_finished_request_is_told_from_the_start_of_the_run() -> None:
    lines = [(103.0, TOKEN), (103.5, TOKEN), (103.5, LAST), (103.6, USAGE), (103.6, b"data: [DONE]\n")]
    record = finished_record(DISPATCH, Exchange(102.25, 102.5, 102.75, 200, lines, 103.625), lines)
    assert (record.index, record.worker, record.outcome, record.error_kind) == (7, 1, "completed", None)
    assert (record.scheduled_s, record.dispatched_s) == (2.0, pytest.approx(2.001))
    assert (record.connect_s, record.sent_s, record.headers_s, record.end_s) == (2.25, 2.5, 2.75, 3.625)
    assert record.token_times_s == (3.0, 3.5)
    assert (record.planned_prompt_tokens, record.prompt_tokens, record.completion_tokens) == (50, 51, 2)


@pytest.mark.parametrize(
    ("lines", "failure", "kind"),
    [
        ([(103.0, TOKEN), (103.1, b'data: {"error":"died"}\n')], None, "stream_error"),
        ([(103.0, TOKEN)], None, "cut_off"),
        ([(103.0, TOKEN)], Failure("disconnected", "IncompleteRead"), "disconnected"),
        ([], Failure("http_429", "full"), "http_429"),
        ([], Failure("connect", "refused"), "connect"),
    ],
)
def test_failures(lines: list[tuple[float, bytes]], failure: Failure | None, kind: str) -> None:
    record = finished_record(DISPATCH, Exchange(102.5, 102.5, None, 200, lines, 104.0, failure), lines)
    assert (record.outcome, record.error_kind) == ("failed", kind)
    assert record.error
    assert len(record.token_times_s) == min(1, len(lines))


def test_a_connection_lost_after_the_finish_reason_lost_nothing() -> None:
    lines = [(103.0, TOKEN), (103.1, LAST)]
    failure = Failure("disconnected", "IncompleteRead")
    record = finished_record(DISPATCH, Exchange(102.5, 102.5, None, 200, lines, 104.0, failure), lines)
    assert (record.outcome, record.saw_done) == ("completed", False)


def test_an_unfinished_request_is_kept_with_its_age() -> None:
    record = unfinished_record(DISPATCH, Exchange(102.5, 102.5, 102.6, 200, [(103.0, TOKEN)]), now_s=112.0)
    assert (record.outcome, record.end_s, record.token_times_s) == ("unfinished", 12.0, (3.0,))
    assert record.error == "unfinished 10.000 s after its scheduled time"
    never_sent = unfinished_record(DISPATCH, Exchange(), now_s=112.0)
    assert never_sent.times is None


def test_files(tmp_path: Path, make_record: Callable[..., RequestRecord]) -> None:
    records = [make_record(index=0), make_record(index=1, token_times_s=(), fathom={"queue_s": 0.5})]
    path = tmp_path / "records.jsonl"
    path.write_text("".join(map(to_line, records)), encoding="utf-8")
    assert list(read_records(path)) == records
    plan = tmp_path / "plan.jsonl"
    plan.write_text(to_line(DISPATCH.planned), encoding="utf-8")
    assert list(read_plan(plan)) == [DISPATCH.planned]


def test_text_that_utf8_cannot_hold_can_be_written(tmp_path: Path, make_record: Callable[..., RequestRecord]) -> None:
    record = make_record(finish_reason="half of a \ud83d", fathom={"\ud83d": 1})
    path = tmp_path / "records.jsonl"
    path.write_text(to_line(record), encoding="utf-8")
    assert list(read_records(path)) == [record]


def test_requests_that_the_client_broke_or_lost() -> None:
    exchange = Exchange(102.5, 102.5, None, None, [(103.0, TOKEN)])
    broken = broken_record(DISPATCH, exchange, ValueError("\ud83d"), now_s=104.0)
    assert (broken.outcome, broken.error_kind, broken.error) == ("failed", "client_error", "ValueError: ?")
    assert (broken.sent_s, broken.end_s) == (2.5, 4.0)
    lost = lost_record(DISPATCH.planned, worker=1)
    assert (lost.outcome, lost.error_kind, lost.index, lost.worker) == ("failed", "lost", 7, 1)
    assert (lost.scheduled_s, lost.dispatched_s, lost.times) == (2.0, None, None)


def test_a_line_that_a_kill_cut_off_is_left_out(tmp_path: Path, make_record: Callable[..., RequestRecord]) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text(to_line(make_record()) + to_line(make_record(index=1))[:-9], encoding="utf-8")
    assert [record.index for record in read_records(path)] == [0]


def test_another_kind_of_line_is_refused(tmp_path: Path, make_record: Callable[..., RequestRecord]) -> None:
    content = json.loads(to_line(make_record()))
    del content["status"]
    path = tmp_path / "records.jsonl"
    path.write_text(json.dumps(content) + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match="status"):
        list(read_records(path))
