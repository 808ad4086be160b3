"""The contender `generate`: the worker beside this file, run by whichever interpreter has transformers."""

import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loadtest.bench.child import Child, Limit
from loadtest.bench.exchange import Answer, ContenderError, CutError, Question
from loadtest.latency import StreamTimes, tpot_s

WORKER = Path(__file__).with_name("generate_worker.py")


class Generate:
    """Batches of prompts; which size is best for prompts of mixed lengths is found out before they are timed."""

    def __init__(
        self, python: str, checkpoint: Path, dtype: str, *, threads: int, log: Path, env: Mapping[str, str]
    ) -> None:
        self.child: Child | None = None
        self._command = [python, "-I", str(WORKER), str(checkpoint), dtype, str(threads)]
        self._log, self._env = log, env
        self._batches = dict[int, int]()

    def start(self) -> None:
        self.child = Child(self._command, env=self._env, log=self._log, pipes=True)
        self._read_line()

    def ask(self, questions: Sequence[Question], *, concurrency: int, limit_s: float) -> list[Answer]:
        return self._ask(questions, concurrency, self._batches.get(concurrency, concurrency), limit_s)

    def tune(self, questions: Sequence[Question], *, concurrency: int, limit_s: float) -> None:
        """Mixed lengths: all at once wastes padding, few at once waste the weights that are read for each step."""
        lengths = {len(question.tokens) for question in questions}
        sizes = {concurrency} if len(lengths) == 1 else {concurrency, math.ceil(concurrency / 4)}
        seconds = dict[int, float]()
        for size in sizes:
            self._ask(questions[:size], concurrency, size, limit_s)  # the first time pays for setting up
            seconds[size] = _expected_s(self._ask(questions, concurrency, size, limit_s), size)
        self._batches[concurrency] = min(seconds, key=lambda size: seconds[size])

    def _ask(self, questions: Sequence[Question], concurrency: int, size: int, limit_s: float) -> list[Answer]:
        assert self.child is not None
        [max_tokens] = {question.max_tokens for question in questions}
        request = {"prompts": [question.tokens for question in questions], "max_tokens": max_tokens, "batch": size}
        request |= {"in_turn": concurrency == 1}
        limit = Limit(self.child, limit_s)
        started_s = time.perf_counter()
        try:
            self.child.input.write(json.dumps(request).encode() + b"\n")
            self.child.input.flush()
            reply = self._read_line()
        except (ContenderError, BrokenPipeError) as error:
            if limit.reached:
                raise CutError(time.perf_counter() - started_s) from error
            raise ContenderError(str(error)) from error
        finally:
            limit.cancel()
        return [_answer(entry) for entry in reply["answers"]]

    def _read_line(self) -> dict[str, Any]:
        assert self.child is not None
        line = self.child.output.readline()
        if not line:
            raise ContenderError(f"died: {self.child.last_words()}")
        content: dict[str, Any] = json.loads(line)
        return content


def _answer(entry: dict[str, Any]) -> Answer:
    instants_s = tuple(entry["token_times_s"])
    times = StreamTimes(None, entry["sent_s"], instants_s, instants_s[-1])
    return Answer(times, len(entry["ids"]), tuple(entry["ids"]))


def _expected_s(answers: Sequence[Answer], size: int) -> float:
    """Seconds for the same prompts with answers sixteen times as long, from the times of short ones."""
    steps_s = sum(tpot_s(answer.times, answer.num_tokens) or 0.0 for answer in answers) / size
    span_s = max(answer.times.end_s for answer in answers) - min(answer.times.sent_s for answer in answers)
    return span_s + 15 * answers[0].num_tokens * steps_s
