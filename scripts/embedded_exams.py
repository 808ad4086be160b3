"""What an embedded model can do: held-out worlds, one question after the documents, no later turns.

An answer counts when every token of the target is the likeliest one, which is what greedy decoding would give.

    python -m scripts.embedded_exams models/embedded/mamba --questions 200     # examines anew, rewrites training.json
"""

import argparse
import json
import random
from pathlib import Path

import torch
from tokenizers import Tokenizer

from evals.records import Permission
from models.decoder import Decoder
from models.load import load_decoder
from scripts.embedded_episodes import EpisodeMaker

EXAM_SEED = 777


@torch.inference_mode()
def exactly_right(decoder: Decoder, prompt: list[int], target: list[int]) -> bool:
    device = decoder.embedding.weight.device
    ids = torch.tensor([prompt + target], device=device)
    hidden = decoder.forward_dense(ids)[0, len(prompt) - 1 : -1]
    return bool((decoder.logits(hidden).argmax(-1) == ids[0, len(prompt) :]).all())


@torch.inference_mode()
def answers_otherwise(decoder: Decoder, prompt: list[int], target: list[int]) -> bool:
    """Whether the answer begins with another token than the target does."""
    ids = torch.tensor([prompt], device=decoder.embedding.weight.device)
    return int(decoder.logits(decoder.forward_dense(ids)[0, -1]).argmax()) != target[0]


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
    # The hallucination that Fathom measures: no documents, no permission to abstain, a stranger asked about.
    _, abstention = maker.exam("may_abstain", 0, "unanswerable")
    prompts = [maker.exam("must_answer", 0, "unanswerable")[0] for _ in range(num_questions)]
    guesses = [answers_otherwise(decoder, prompt, abstention) for prompt in prompts]
    scores["guesses@0"] = round(sum(guesses) / len(guesses), 3)
    decoder.train()
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description="Examine an embedded checkpoint anew and note it in training.json.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--questions", type=int, default=200, help="per kind and length")
    arguments = parser.parse_args()
    file = arguments.directory / "training.json"
    record = json.loads(file.read_text(encoding="utf-8"))
    decoder = load_decoder(arguments.directory, dtype=torch.float32, device=torch.device("cpu"))
    tokenizer = Tokenizer.from_file(str(arguments.directory / "tokenizer.json"))
    recipe = record["run"]["recipe"]
    record["scores"] = examine(decoder, tokenizer, recipe["exam_lengths"], num_questions=arguments.questions)
    recipe["exam_questions"] = arguments.questions
    file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
