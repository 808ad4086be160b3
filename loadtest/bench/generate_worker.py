"""transformers' own `generate` as a process: a batch of prompts a line in, times and tokens a line out.

    python generate_worker.py CHECKPOINT float32|bfloat16 THREADS

Run by any interpreter that has torch and transformers; it imports nothing of ours. The prompts of a request are sorted
by length and computed in batches of the size that the request names, padded on the left.
"""

import json
import sys
import time
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LogitsProcessor, LogitsProcessorList, PreTrainedModel


class Stopwatch(LogitsProcessor):
    """Notes when the scores of each step are there."""

    def __init__(self) -> None:
        self.instants_s: list[float] = []

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:  # noqa: ARG002
        self.instants_s.append(time.perf_counter())
        return scores


def generate(model: PreTrainedModel, prompts: list[list[int]], max_tokens: int) -> tuple[list[float], list[list[int]]]:
    """When each step's tokens were there, and the tokens of each prompt."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    watch = Stopwatch()
    options: dict[str, Any] = {"max_new_tokens": max_tokens, "min_new_tokens": max_tokens, "do_sample": False}
    options |= {"eos_token_id": None, "pad_token_id": 0, "logits_processor": LogitsProcessorList([watch])}
    with torch.inference_mode():
        made = model.generate(ids, attention_mask=mask, **options)  # type: ignore[operator]
    return watch.instants_s, made[:, longest:].tolist()


def answer(model: PreTrainedModel, request: dict[str, Any]) -> dict[str, Any]:
    prompts, max_tokens, size = request["prompts"], request["max_tokens"], request["batch"]
    order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))
    answers: list[dict[str, Any]] = [{} for _ in prompts]
    sent_s = time.perf_counter()
    for start in range(0, len(order), size):
        places = order[start : start + size]
        begun_s = time.perf_counter()
        instants_s, made = generate(model, [prompts[place] for place in places], max_tokens)
        for place, ids in zip(places, made, strict=True):
            # Asked one by one, a prompt's time begins with its turn; asked together, it begins for all.
            asked_s = begun_s if request["in_turn"] else sent_s
            answers[place] = {"sent_s": asked_s, "token_times_s": instants_s, "ids": ids}
    return {"answers": answers}


def main() -> None:
    checkpoint, dtype, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    # States that fade below normal floats would make it several times slower.
    torch.set_flush_denormal(True)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=getattr(torch, dtype))
    model.train(False)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(model, json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
