"""What decides the samples of a run beside their keys: it says which runs may share a store."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

from evals.client import ServedModel
from evals.config import RunConfig
from evals.prompts import SYSTEM_PROMPTS, build_messages
from evals.records import Dataset, Document

COUNTING = "token counts"
# What held of every run before it could be told otherwise.
ONCE = {"--logprobs": "off"}
# Of the server that answers, which two models may differ in; where it gives no digest of its weights, its address
# stands for them.
ADDRESS = ("--endpoint", "max context")
OWN = frozenset({"kind", "weights digest", *ADDRESS, "computation", COUNTING})


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Settings by name, that of the option where there is one.

    shared: must agree among all runs on one dataset, whose figures are drawn as one comparison.
    own: must agree between two runs of the same model too.
    """

    shared: Mapping[str, str]
    own: Mapping[str, str]

    @property
    def whole(self) -> dict[str, str]:
        return {**self.shared, **self.own}


def take_fingerprint(
    config: RunConfig, dataset: Dataset, served: ServedModel, *, retriever: str, counting: str
) -> Fingerprint:
    return Fingerprint(
        shared={
            "--seed or --data": f"{dataset.source} (digest {dataset.digest[:16]})",
            "prompts": prompts_digest(),
            "retriever": retriever,
            "--max-tokens": str(config.max_tokens),
            "--unit": config.unit,
            "--order": config.order,
            "--depth": "spread" if config.depth is None else f"{config.depth:g}",
            "--cache": config.cache,
            # Told of each token they take time: on a processor, a quarter of what a token takes without.
            "--logprobs": "on" if config.logprobs else "off",
        },
        own={"kind": served.kind, **_identity(config, served), **_computation(served), COUNTING: counting},
    )


def _identity(config: RunConfig, served: ServedModel) -> dict[str, str]:
    """Which weights answer; without their digest, the server's address stands for them.

    With it neither address nor longest context matters: a server that was started anew has another port, and
    another limit where that follows from the memory that was free.
    """
    if served.weights_digest is not None:
        return {"weights digest": served.weights_digest}
    return {"--endpoint": config.root_url, "max context": str(served.max_context_tokens or "unknown")}


def _computation(served: ServedModel) -> dict[str, str]:
    """Another number format gives other answers, another device other latencies; both in one run are neither's."""
    return {} if served.computation is None else {"computation": served.computation}


def prompts_digest() -> str:
    """Changes whenever the words around a question do."""
    probe = build_messages("must_answer", [Document("id", "title", "text")] * 2, "question")
    return hashlib.sha256(json.dumps([SYSTEM_PROMPTS, probe]).encode()).hexdigest()[:16]
