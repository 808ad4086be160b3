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

Told = tuple[RowLogprobs, slice, int]  # what some rows tell, which of them is meant, and of how many likeliest tokens


class Launched:
    """A step that is on its way. Its tokens lie on the device, where the next step may read them before they are known.

    tokens: (r,) int64, one for each part that samples. rows: of those, by request id. told: of generated tokens,
    scored: of prompts, what is to be told, by request id.
    """

    def __init__(self, sequences: ListOf[Sequence], tokens: Tensor) -> None:
        self.tokens = tokens
        self.rows = {sequence.request_id: row for row, sequence in enumerate(sequences)}
        self.told: dict[str, Told] = {}
        self.scored: dict[str, Told] = {}
        self._on_host, self._done = tokens, None
        if tokens.is_cuda:
            self._on_host = torch.empty(tokens.shape, dtype=tokens.dtype, pin_memory=True)
            self._on_host.copy_(tokens, non_blocking=True)
            self._done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._done.record()

    def result(self) -> StepResult:
        """What came of it. Waits for the device."""
        if self._done is not None:
            self._done.synchronize()
        tokens = self._on_host.tolist()
        return StepResult(
            {request_id: tokens[row] for request_id, row in self.rows.items()},
            {request_id: _packed(*told) for request_id, told in self.told.items()},
            {request_id: _packed(*told) for request_id, told in self.scored.items()},
        )


class Sampling:
    """Draws tokens; of the sequences that want their logits changed it remembers what it needs for that."""

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self._adjusting = Adjusting(vocab_size, device)

    def draw(self, batch: ScheduledBatch, logits: Tensor) -> Launched:
        """A token for each part that samples, in the order of the rows of logits (r, vocab)."""
        sequences = [part.sequence for part in batch.parts if part.samples]
        adjusted = self._adjusting.adjust(logits, sequences)
        launched = Launched(sequences, sample(adjusted, [_row(sequence) for sequence in sequences]))
        told = [row for row, sequence in enumerate(sequences) if sequence.request.params.logprobs is not None]
        if told:
            launched.told = _told(logits, launched.tokens, sequences, told)
        return launched


def scores(batch: ScheduledBatch) -> bool:
    """Whether a part of the batch scores tokens of its prompt, which wants more than the last row's logits."""
    return any(part.sequence.num_scored < part.sequence.num_to_score and part.scored for part in batch.parts)


def score(batch: ScheduledBatch, decoder: Decoder, hidden: Tensor) -> dict[str, Told]:
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
        step=sequence.num_generated + sequence.num_unknown,
    )


def _told(logits: Tensor, tokens: Tensor, sequences: ListOf[Sequence], rows: ListOf[int]) -> dict[str, Told]:
    """By request id, the log-probabilities of the tokens of some rows."""
    wanted = [sequences[row].request.params.logprobs or 0 for row in rows]
    places = torch.tensor(rows, device=logits.device)
    logprobs = row_logprobs(logits[places], tokens[places], max(wanted))
    return {
        sequences[row].request_id: (logprobs, slice(place, place + 1), num_top)
        for place, (row, num_top) in enumerate(zip(rows, wanted, strict=True))
    }


def _score(part: ScheduledSequence, decoder: Decoder, hidden: Tensor) -> Told:
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
    return logprobs, slice(None), num_top


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
