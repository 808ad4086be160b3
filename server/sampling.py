"""From a step's logits to its tokens, and to the log-probabilities of those who want them. Of the torch half."""

from collections.abc import Sequence as ListOf

import torch
from torch import Tensor

from models.decoder import Decoder
from models.logprobs import RowLogprobs, row_logprobs, score_rows, slice_rows
from models.sampler import SamplingRow, sample
from server.adjusting import Adjusting
from server.request import Logprobs
from server.sequence import ScheduledBatch, ScheduledSequence, Sequence, StepResult


class Sampling:
    """Draws tokens; of the sequences that want their logits changed it remembers what it needs for that."""

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self._adjusting = Adjusting(vocab_size, device)

    def draw(self, batch: ScheduledBatch, logits: Tensor) -> StepResult:
        """A token for each part that samples, in the order of the rows of logits (r, vocab)."""
        sequences = [part.sequence for part in batch.parts if part.samples]
        adjusted = self._adjusting.adjust(logits, sequences)
        tokens = sample(adjusted, [_row(sequence) for sequence in sequences])
        told = [row for row, sequence in enumerate(sequences) if sequence.request.params.logprobs is not None]
        return StepResult(
            {sequence.request_id: token for sequence, token in zip(sequences, tokens, strict=True)},
            _told(logits, tokens, sequences, told) if told else {},
        )


def scores(batch: ScheduledBatch) -> bool:
    """Whether a part of the batch scores tokens of its prompt, which wants more than the last row's logits."""
    return any(part.sequence.num_scored < part.sequence.num_to_score and part.scored for part in batch.parts)


def score(batch: ScheduledBatch, decoder: Decoder, hidden: Tensor) -> dict[str, Logprobs]:
    """By request id, what the batch's hidden states (t, hidden) say of the tokens that follow in the prompts."""
    found, first_row = {}, 0
    for part in batch.parts:
        if part.sequence.num_scored < part.sequence.num_to_score and part.scored:
            found[part.sequence.request_id] = _score(part, decoder, hidden[first_row : first_row + part.num_tokens])
        first_row += part.num_tokens
    return found


def _row(sequence: Sequence) -> SamplingRow:
    params = sequence.request.params
    return SamplingRow(
        temperature=params.temperature,
        top_p=params.top_p,
        top_k=params.top_k,
        min_p=params.min_p,
        seed=sequence.seed,
        step=sequence.num_generated,
    )


def _told(logits: Tensor, tokens: ListOf[int], sequences: ListOf[Sequence], rows: ListOf[int]) -> dict[str, Logprobs]:
    """By request id, the log-probabilities of the tokens of some rows."""
    wanted = [sequences[row].request.params.logprobs or 0 for row in rows]
    drawn = torch.tensor([tokens[row] for row in rows], device=logits.device)
    logprobs = row_logprobs(logits[list(rows)], drawn, max(wanted))
    return {
        sequences[row].request_id: _packed(logprobs, slice(place, place + 1), num_top)
        for place, (row, num_top) in enumerate(zip(rows, wanted, strict=True))
    }


def _score(part: ScheduledSequence, decoder: Decoder, hidden: Tensor) -> Logprobs:
    sequence, positions = part.sequence, part.scored
    follow = sequence.token_ids[positions.start + 1 : positions.stop + 1]
    num_top = sequence.request.params.prompt_logprobs or 0
    logprobs = score_rows(
        decoder.logits,
        hidden[positions.start - sequence.num_computed :][: len(positions)],
        torch.tensor(follow, device=hidden.device),
        first=positions.start,
        num_top=num_top,
        size=slice_rows(decoder.config.vocab_size),
    )
    return _packed(logprobs, slice(None), num_top)


def _packed(logprobs: RowLogprobs, rows: slice, num_top: int) -> Logprobs:
    def content(values: Tensor, dtype: torch.dtype) -> bytes:
        return values[rows].to("cpu", dtype).contiguous().numpy().tobytes()

    num_top = min(num_top, logprobs.top_ids.shape[1])
    return Logprobs(
        num_top,
        content(logprobs.tokens, torch.int32),
        content(logprobs.values, torch.float32),
        content(logprobs.ranks, torch.int32),
        content(logprobs.top_ids[:, :num_top], torch.int32),
        content(logprobs.top_values[:, :num_top], torch.float32),
    )
