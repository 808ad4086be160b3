"""Recorded answers in a server's place: what somebody published, or an earlier run, is graded anew. No network.

A file of lines of JSON. Each has the `answer`, and `question_id` or `question` or both, by which it is found. The
others may be there: `model`, `dataset`, `condition`, `permission` and `budget` say to which samples it belongs, and
must where the run asks a question in several ways; `prompt_tokens` and `completion_tokens`, `cached_tokens`,
`finish_reason` and the model's `kind` are taken over. What else stands in a line is not looked at.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

from evals.client import Answer, Asking, ServedModel
from evals.config import ConfigError, RunConfig
from evals.records import SampleRow
from loadtest.wire import Usage

TYPES: Mapping[str, type] = {
    "answer": str,
    "question_id": str,
    "question": str,
    "model": str,
    "dataset": str,
    "condition": str,
    "permission": str,
    "budget": int,
    "prompt_tokens": int,
    "completion_tokens": int,
    "cached_tokens": int,
    "finish_reason": str,
    "kind": str,
}
WAYS = ("condition", "budget", "permission")

Line = dict[str, Any]  # of the fields above, those that are there; and its number in the file


class Recorded:
    """The answers of one model in a file.

    Raises:
        ConfigError: it cannot be read, a line lacks what it must have, or has no model while several are asked.
    """

    def __init__(self, config: RunConfig, file: Path, *, num_models: int) -> None:
        self._where = f"--endpoint {config.endpoint}"
        raw = self._read(file)
        self._digest = hashlib.sha256(raw).hexdigest()
        lines = list(self._lines(raw))
        self._models = sorted({line["model"] for line in lines if "model" in line})
        self._own = [line for line in lines if line.get("model", config.model) == config.model]
        if not self._own:
            there = f"answers of {', '.join(self._models)}" if self._models else "none at all"
            raise ConfigError(f"--model {config.model!r} has no answers in {file}; there are {there}")
        if num_models > 1 and any("model" not in line for line in self._own):
            raise ConfigError(f"{self._where}: there is a line without `model`, and answers of {num_models} are wanted")
        self._check_ways(config)
        self._by_id, self._by_text = defaultdict[str, list[Line]](list), defaultdict[str, list[Line]](list)
        for line in self._own:
            if "question_id" in line:
                self._by_id[line["question_id"]].append(line)
            if "question" in line:
                self._by_text[_plain(line["question"])].append(line)
        self._missing: Asking | None = None

    async def find_model(self) -> ServedModel:
        """The file stands for the weights: other answers are another model's."""
        kinds = {line.get("kind", "unknown") for line in self._own}
        return ServedModel(
            kind=kinds.pop() if len(kinds) == 1 else "unknown",
            max_context_tokens=None,
            weights_digest=f"recorded answers {self._digest[:16]}",
            computation=None,
        )

    async def ask(self, asking: Asking) -> Answer | None:
        """Raises:
        ConfigError: several lines answer it, and not alike.
        """
        lines = self._find(asking)
        if not lines:
            self._missing = asking
            return None
        line = lines[0]
        if any(other["answer"] != line["answer"] for other in lines):
            numbers = ", ".join(str(other["number"]) for other in lines)
            raise ConfigError(f"{self._where}: lines {numbers} answer one question ({asking.question_id}) otherwise")
        usage = None
        if "prompt_tokens" in line:
            usage = Usage(line["prompt_tokens"], line["completion_tokens"], line.get("cached_tokens"))
        return Answer(
            text=line["answer"],
            finish_reason=line.get("finish_reason"),
            error=None,
            usage=usage,
            times=None,
            attempts=0,
            refused_status=None,
        )

    def describe_missing(self) -> str:
        """What was looked for last and not found, beside what there is."""
        asking, line = self._missing, self._own[0]
        assert asking is not None
        has = {name: line[name] for name in TYPES if name in line and name != "answer"}
        wanted = {name: getattr(asking, name) for name in ("question_id", "question", "dataset", *WAYS)}
        return f"{self._where} has no answer to any question: a line of it has {has}, and one looked for {wanted}"

    def _find(self, asking: Asking) -> list[Line]:
        text = _plain(asking.question)
        named = [
            line
            for line in self._by_id.get(asking.question_id, [])
            # Of another dataset a question may have the same id.
            if "question" not in line or _plain(line["question"]) == text
        ]
        return [
            line
            for line in named or self._by_text.get(text, [])
            if all(line.get(name, getattr(asking, name)) == getattr(asking, name) for name in ("dataset", *WAYS))
        ]

    def _read(self, file: Path) -> bytes:
        try:
            return file.read_bytes()
        except OSError as error:
            raise ConfigError(f"{self._where} cannot be read: {error}") from error

    def _lines(self, raw: bytes) -> Iterator[Line]:
        for number, text in enumerate(raw.split(b"\n"), 1):
            if not text.strip():
                continue
            where = f"{self._where}, line {number}"
            try:
                content = json.loads(text)
            except ValueError as error:
                raise ConfigError(f"{where} is no JSON: {error}") from error
            if not isinstance(content, dict):
                raise ConfigError(f"{where} is no object")
            line = {name: content[name] for name in TYPES if content.get(name) is not None}
            _check(where, line)
            yield {**line, "number": number}

    def _check_ways(self, config: RunConfig) -> None:
        """Raises:
        ConfigError: a line could be the answer to a question asked in several ways.
        """
        ways = [
            dict(zip(WAYS, (condition, budget, permission), strict=True))
            for condition, permission in product(config.asked_conditions, config.permissions)
            for budget in config.budgets_of(condition)
        ]
        for line in self._own:
            fitting = [way for way in ways if all(line.get(name, way[name]) == way[name] for name in WAYS)]
            if len(fitting) > 1:
                lacking = [name for name in WAYS if name not in line and len({str(way[name]) for way in fitting}) > 1]
                raise ConfigError(
                    f"{self._where}, line {line['number']} has no {' and no '.join(lacking)}: it would be the answer "
                    f"to one question in {len(fitting)} ways. Ask in one, or write it into the lines"
                )


def _check(where: str, line: Line) -> None:
    for name, value in line.items():
        if not isinstance(value, TYPES[name]) or isinstance(value, bool):
            raise ConfigError(f"{where}: {name} must be {TYPES[name].__name__}, got {value!r}")
    if "answer" not in line or not ("question_id" in line or "question" in line):
        raise ConfigError(f"{where} needs `answer`, and `question_id` or `question`")
    if ("prompt_tokens" in line) != ("completion_tokens" in line):
        raise ConfigError(f"{where}: prompt_tokens and completion_tokens go together")


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()


def answer_lines(rows: Iterable[SampleRow]) -> Iterator[str]:
    """The samples of a store that were answered, in this file's format."""
    for row in rows:
        if row.error is None:
            kept = {name: getattr(row, name) for name in TYPES}
            yield json.dumps({name: value for name, value in kept.items() if value is not None}, ensure_ascii=False)
