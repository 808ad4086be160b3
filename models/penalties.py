"""What changes logits before they are sampled: tokens that may not come, biases, and penalties for what was there.

In vLLM's order: barred tokens, biases, the repetition penalty, the frequency penalty, the presence penalty. It is done
for some rows at once, and for each row by itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


class TokenCounts:
    """How often each token was generated, and which are in the prompt, in slots of one tensor that grows.

    Args:
        vocab_size: tokens that there are.
    """

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self._generated = torch.zeros(0, vocab_size, dtype=torch.int32, device=device)
        self._in_prompt = torch.zeros(0, vocab_size, dtype=torch.bool, device=device)
        self._free: list[int] = []

    def begin(self, prompt: Sequence[int], generated: Sequence[int]) -> int:
        """A slot with the counts of a text."""
        if not self._free:
            size = len(self._generated)
            self._free = list(range(size, max(1, 2 * size)))
            self._generated, self._in_prompt = _longer(self._generated), _longer(self._in_prompt)
        slot = self._free.pop()
        self._generated[slot] = 0
        self._in_prompt[slot] = False
        self._in_prompt[slot, self._indices(prompt)] = True
        self.add([slot] * len(generated), generated)
        return slot

    def add(self, slots: Sequence[int], tokens: Sequence[int]) -> None:
        """Count tokens, each in its slot."""
        places = self._indices(slots), self._indices(tokens)
        one = torch.ones((), dtype=torch.int32, device=self._generated.device)
        self._generated.index_put_(places, one, accumulate=True)

    def end(self, slot: int) -> None:
        """The slot may be another's."""
        self._free.append(slot)

    def of(self, slots: Sequence[int]) -> tuple[Tensor, Tensor]:
        """(r, vocab) int32, how often each was generated, and (r, vocab) bool, whether it is in the prompt."""
        rows = self._indices(slots)
        return self._generated[rows], self._in_prompt[rows]

    def _indices(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self._generated.device)


def _longer(tensor: Tensor) -> Tensor:
    return torch.cat((tensor, tensor.new_zeros(max(1, len(tensor)), tensor.shape[1])))


@dataclass(frozen=True, slots=True)
class Penalties:
    """Of one row, as in OpenAI's API and in transformers; 0, 0 and 1 are off.

    frequency: taken from a token's logit for each time that it was generated. presence: taken once, if it was.
    repetition: what the logit of a token in prompt or answer is divided by, or multiplied with where it is negative.
    """

    frequency: float = 0.0
    presence: float = 0.0
    repetition: float = 1.0


def penalize(logits: Tensor, penalties: Sequence[Penalties], generated: Tensor, in_prompt: Tensor) -> Tensor:
    """Logits after the penalties of each row.

    Args:
        logits: (r, vocab) float32. penalties: r of them. generated: (r, vocab) int32. in_prompt: (r, vocab) bool.
    """

    def column(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=logits.dtype, device=logits.device).unsqueeze(-1)

    came = generated > 0
    repetition = torch.where(came | in_prompt, column([each.repetition for each in penalties]), 1.0)
    logits = torch.where(logits > 0, logits / repetition, logits * repetition)
    return (
        logits
        - column([each.frequency for each in penalties]) * generated
        - column([each.presence for each in penalties]) * came
    )
