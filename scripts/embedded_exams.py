"""What a model in training can do: held-out worlds, one question after the documents, no later turns.

An answer counts when every token of the target is the likeliest one, which is what greedy decoding would give.
"""

import random

import torch
from tokenizers import Tokenizer

from evals.records import Permission
from models.decoder import Decoder
from scripts.embedded_episodes import EpisodeMaker

EXAM_SEED = 777


@torch.inference_mode()
def exactly_right(decoder: Decoder, prompt: list[int], target: list[int]) -> bool:
    device = decoder.embedding.weight.device
    ids = torch.tensor([prompt + target], device=device)
    hidden = decoder.forward_dense(ids)[0, len(prompt) - 1 : -1]
    return bool((decoder.logits(hidden).argmax(-1) == ids[0, len(prompt) :]).all())


def examine(
    decoder: Decoder, tokenizer: Tokenizer, lengths: tuple[int, ...], *, num_questions: int
) -> dict[str, float]:
    """Share of exact answers by question kind and tokens of documents, e.g. {"fact@1000": 0.96}."""
    decoder.eval()
    maker = EpisodeMaker(random.Random(EXAM_SEED), tokenizer)
    permissions: dict[str, Permission] = {
        "fact": "must_answer",
        "namesake": "must_answer",
        "two_hop": "must_answer",
        "abstains": "may_abstain",
        "fact_may": "may_abstain",
    }
    scores: dict[str, float] = {}
    for length in lengths:
        for kind, permission in permissions.items():
            rights = [exactly_right(decoder, *maker.exam(permission, length, kind)) for _ in range(num_questions)]
            scores[f"{kind}@{length}"] = round(sum(rights) / len(rights), 3)
    decoder.train()
    return scores
