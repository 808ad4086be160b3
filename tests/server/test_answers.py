"""What waits between an engine and who reads its answers, on either side of the processes' border."""

import asyncio

import numpy as np
import pytest
from fakes import make_request

from server.answers import Answers
from server.engine_errors import EngineDiedError
from server.holding import Holding
from server.request import EngineRequest, Logprobs, SamplingParams, SequenceUsage, TokenOutput

USAGE = SequenceUsage(3, 0, 2, 0.0, 0.0, 0.0, 0, 0, 0)


def logprobs_of(*token_ids: int) -> Logprobs:
    ids = np.array(token_ids, np.int32).tobytes()
    return Logprobs(0, ids, np.zeros(len(token_ids), np.float32).tobytes(), ids, b"", b"")


async def test_who_comes_late_finds_all_in_order_and_the_error_behind_it():
    answers = Answers(["a", "b"])
    taking = asyncio.create_task(answers.take())
    await asyncio.sleep(0)
    answers.put("b", TokenOutput((1,)))
    assert await taking == [(1, TokenOutput((1,)))]
    for token, request_id in enumerate("aab"):
        answers.put(request_id, TokenOutput((token,)))
    answers.fail(EngineDiedError("gone"))
    assert await answers.take() == [(0, TokenOutput((0,))), (0, TokenOutput((1,))), (1, TokenOutput((2,)))]
    for _ in range(2):
        with pytest.raises(EngineDiedError, match="gone"):
            await answers.take()


async def test_who_waits_and_leaves_disturbs_nobody():
    answers = Answers(["a"])
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(answers.take(), 0.01)
    answers.put("a", TokenOutput((1,)))
    assert await answers.take() == [(0, TokenOutput((1,)))]


def whole(request_id: str) -> EngineRequest:
    return EngineRequest(request_id, (1, 2, 3), SamplingParams(9), whole=True)


def test_who_wants_all_at_once_gets_it_at_the_end():
    holding = Holding()
    holding.add(whole("whole"))
    holding.add(make_request("streamed", [1], 9))
    both = [("whole", TokenOutput((1,))), ("streamed", TokenOutput((2,)))]
    assert holding.pass_on(both) == ([both[1]], ["whole"])
    assert holding.pass_on(both) == ([both[1]], [])  # it has begun once
    end = ("whole", TokenOutput((3, 4), "length", USAGE))
    assert holding.pass_on([end]) == ([("whole", TokenOutput((1, 1, 3, 4), "length", USAGE))], [])
    # Of the same id another may come.
    assert holding.pass_on(both[:1]) == (both[:1], [])


def test_what_is_told_of_tokens_is_held_with_them_and_a_prompts_is_not():
    holding = Holding()
    holding.add(whole("r"))
    prompt = ("r", TokenOutput((), prompt_logprobs=logprobs_of(7)))
    assert holding.pass_on([prompt, ("r", TokenOutput((1,), logprobs=logprobs_of(1)))]) == ([prompt], ["r"])
    # An aborted request ends without a token.
    assert holding.pass_on([("r", TokenOutput((), "abort", USAGE))]) == (
        [("r", TokenOutput((1,), "abort", USAGE, logprobs_of(1)))],
        [],
    )
