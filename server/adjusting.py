"""What requests want changed of the logits that they are sampled from, row by row. Of the torch half."""

from collections.abc import Mapping
from collections.abc import Sequence as ListOf
from dataclasses import dataclass

import torch
from torch import Tensor

from models.penalties import Penalties, TokenCounts, penalize
from server.request import SamplingParams
from server.sequence import Sequence


@dataclass(slots=True)
class _Kept:
    """What is remembered of a sequence from step to step: its counts, how many tokens they hold, and its biases."""

    slot: int | None
    num_counted: int
    bias_ids: Tensor
    biases: Tensor


class Adjusting:
    """Remembers what each sequence that asks needs, for as long as it is in every step; one that was away is counted
    anew. Rows of those who do not ask are left as they are, and cost nothing.
    """

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self._vocab_size, self._device = vocab_size, device
        self._counts = TokenCounts(vocab_size, device)
        self._kept: dict[Sequence, _Kept] = {}

    def adjust(self, logits: Tensor, sequences: ListOf[Sequence]) -> Tensor:
        """The logits that the sequences, one for each row, are sampled from.

        Args:
            logits: (r, vocab) float32, left as they are.
        """
        rows = [row for row, sequence in enumerate(sequences) if sequence.request.params.adjusts]
        asking = [sequences[row] for row in rows]
        if asking or self._kept:
            self._remember(asking)
        if not asking:
            return logits
        places = torch.tensor(rows, device=logits.device)
        return logits.index_copy(0, places, self._adjusted(logits[places], asking))

    def _remember(self, asking: ListOf[Sequence]) -> None:
        """Take up newcomers, count what came since the last step, and forget who is gone."""
        for sequence in self._kept.keys() - set(asking):
            slot = self._kept.pop(sequence).slot
            if slot is not None:
                self._counts.end(slot)
        slots: list[int] = []
        tokens: list[int] = []
        for sequence in asking:
            kept = self._kept.get(sequence)
            if kept is None:
                self._kept[sequence] = self._begin(sequence)
            elif kept.slot is not None and kept.num_counted < len(sequence.token_ids):
                new = sequence.token_ids[kept.num_counted :]
                kept.num_counted += len(new)
                slots += [kept.slot] * len(new)
                tokens += new
        if tokens:
            self._counts.add(slots, tokens)

    def _begin(self, sequence: Sequence) -> _Kept:
        params = sequence.request.params
        slot = None
        if params.penalizes:
            prompt, generated = sequence.request.token_ids, sequence.token_ids[sequence.num_prompt :]
            slot = self._counts.begin(prompt, generated)
        bias_ids = torch.tensor([token for token, _ in params.logit_bias], dtype=torch.int64, device=self._device)
        biases = torch.tensor([bias for _, bias in params.logit_bias], dtype=torch.float32, device=self._device)
        return _Kept(slot, len(sequence.token_ids), bias_ids, biases)

    def _adjusted(self, logits: Tensor, asking: ListOf[Sequence]) -> Tensor:
        """(r, vocab), of those who ask alone."""
        kept = [self._kept[sequence] for sequence in asking]
        for row, sequence in enumerate(asking):
            if barred := self._barred(sequence):
                logits[row, torch.tensor(barred, device=logits.device)] = -torch.inf
        biased = torch.tensor([len(each.biases) for each in kept], device=logits.device)
        rows = torch.arange(len(kept), device=logits.device).repeat_interleave(biased)
        places = rows, torch.cat([each.bias_ids for each in kept])
        logits.index_put_(places, torch.cat([each.biases for each in kept]), accumulate=True)
        slots = {row: each.slot for row, each in enumerate(kept) if each.slot is not None}
        return self._penalized(logits, asking, slots) if slots else logits

    def _penalized(self, logits: Tensor, asking: ListOf[Sequence], slots: Mapping[int, int]) -> Tensor:
        places = torch.tensor(list(slots), device=logits.device)
        penalties = [_penalties(asking[row].request.params) for row in slots]
        counts = self._counts.of(list(slots.values()))
        return logits.index_copy(0, places, penalize(logits[places], penalties, *counts))

    def _barred(self, sequence: Sequence) -> list[int]:
        """What would end a completion that is still too short."""
        if sequence.num_generated >= sequence.request.params.min_tokens:
            return []
        return [token for token in sequence.ends if token < self._vocab_size]


def _penalties(params: SamplingParams) -> Penalties:
    return Penalties(params.frequency_penalty, params.presence_penalty, params.repetition_penalty)
