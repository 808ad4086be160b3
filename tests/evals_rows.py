"""Sample rows for tests: one at will, or whole sweeps whose true rates are known."""

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from evals.records import Draw, SampleRow

BASE = SampleRow(
    model="m",
    kind="transformer",
    dataset="world",
    permission="must_answer",
    budget=0,
    question_id="q0",
    question_kind="fact",
    cluster="c0",
    question="When was Ana born?",
    answers=("1985",),
    gold_ids=("d1",),
    doc_ids=(),
    gold_in_context=False,
    answer="1985",
    finish_reason="stop",
    error=None,
    verdict="correct",
    first_line_verdict="correct",
    hallucination_kind=None,
    matched="1985",
    prompt_tokens=100,
    document_tokens=60,
    cached_tokens=0,
    completion_tokens=3,
    sent_s=10.0,
    token_times_s=(10.5, 10.6, 10.7),
    end_s=10.8,
    ttft_s=0.5,
    tpot_s=0.1,
    e2e_s=0.8,
    kv_bytes=1000,
    state_bytes=0,
    peak_bytes=1500,
)

UNSCORED: dict[str, Any] = {
    "answer": "",
    "verdict": "unscored",
    "first_line_verdict": "unscored",
    "hallucination_kind": None,
    "matched": None,
    "lost": "empty",
}


def sample(**fields: Any) -> SampleRow:
    return replace(BASE, **fields)


def hallucinated(**fields: Any) -> SampleRow:
    wrong: dict[str, Any] = {
        "answer": "1976",
        "verdict": "hallucinated",
        "first_line_verdict": "hallucinated",
        "hallucination_kind": "fabricated",
        "matched": None,
    }
    return replace(BASE, **(wrong | fields))


def abstained(**fields: Any) -> SampleRow:
    silent: dict[str, Any] = {
        "answer": "I don't know.",
        "verdict": "abstained",
        "first_line_verdict": "abstained",
        "matched": None,
    }
    return replace(BASE, **(silent | fields))


def failed(**fields: Any) -> SampleRow:
    lost: dict[str, Any] = {
        **UNSCORED,
        "error": "HTTP 503",
        "lost": "failed",
        "finish_reason": None,
        "prompt_tokens": None,
        "completion_tokens": None,
        "cached_tokens": None,
        "token_times_s": (),
        "ttft_s": None,
        "tpot_s": None,
        "e2e_s": 60.0,
        "kv_bytes": None,
        "state_bytes": None,
        "peak_bytes": None,
    }
    return replace(BASE, **(lost | fields))


def drawn(answer: str, **fields: Any) -> Draw:
    """A draw to the prompt of BASE."""
    draw = Draw(
        model=BASE.model,
        dataset=BASE.dataset,
        condition=BASE.condition,
        permission=BASE.permission,
        budget=BASE.budget,
        question_id=BASE.question_id,
        draw=1,
        temperature=0.7,
        answer=answer,
        finish_reason="stop",
        error=None,
        verdict="unscored",
        completion_tokens=3,
        logprob=None,
        logprob_tokens=None,
    )
    return replace(draw, **fields)


def sweep(num_questions: int = 40, budgets: tuple[int, ...] = (0, 256, 1024, 4096)) -> list[SampleRow]:
    """Two models under both permissions, of a shape like real ones: context helps, the state forgets."""
    return list(_sweep(random.Random(5), num_questions, budgets))


def _sweep(rng: random.Random, num_questions: int, budgets: tuple[int, ...]) -> Iterator[SampleRow]:
    for model, kind in (("embedded:transformer", "transformer"), ("embedded:mamba", "mamba")):
        for permission in ("must_answer", "may_abstain"):
            for budget in budgets:
                for number in range(num_questions):
                    yield _asked(rng, model=model, kind=kind, permission=permission, budget=budget, number=number)


def _asked(rng: random.Random, *, model: str, kind: str, permission: str, budget: int, number: int) -> SampleRow:
    answerable = number % 6 != 0
    found = answerable and budget > 0 and rng.random() < min(0.97, 0.5 + budget / 6000)
    tokens = 60 + budget
    seconds = 0.02 + tokens * 3e-5 if kind == "mamba" else 0.02 + tokens * 2e-5 + tokens**2 * 4e-9
    fields: dict[str, Any] = {
        "model": model,
        "kind": kind,
        "permission": permission,
        "budget": budget,
        "question_id": f"q{number}",
        "question_kind": "fact" if answerable else "unanswerable",
        "cluster": f"e{number // 2}",
        "question": f"In which year was Person {number} of the guild born?",
        "answers": ("1985",) if answerable else (),
        "gold_ids": (f"d{number}",) if answerable else (),
        "doc_ids": tuple(f"d{number + step}" for step in range(budget // 64)),
        "gold_in_context": found,
        "prompt_tokens": tokens,
        "document_tokens": budget,
        "ttft_s": seconds,
        "tpot_s": 0.004,
        "e2e_s": seconds + 0.02,
        "kv_bytes": 0 if kind == "mamba" else tokens * 3072,
        "state_bytes": 264_192 if kind == "mamba" else 0,
        "peak_bytes": 264_192 if kind == "mamba" else tokens * 3072,
    }
    keeps = 0.96 if kind == "transformer" else 0.95 / (1 + budget / 3000)
    if found and rng.random() < keeps:
        return sample(**fields)
    if permission == "may_abstain" and rng.random() < 0.8:
        return abstained(**fields)
    origin = "distractor" if budget and rng.random() < 0.7 else "fabricated"
    return hallucinated(**fields, hallucination_kind=origin)


# What a clock decides of a summary, or who measured when.
_OF_CLOCKS = frozenset({"ttft_s", "tpot_s", "e2e_s", "ttft_p95_s", "ttft", "scraped", "preemptions", "pareto", "runs"})


def without_times(value: Any) -> Any:
    """A summary, or a part of one, without what differs between two runs that gave the same answers."""
    if isinstance(value, dict):
        return {name: without_times(part) for name, part in value.items() if name not in _OF_CLOCKS}
    return [without_times(part) for part in value] if isinstance(value, list) else value
