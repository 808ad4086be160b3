"""Decides what each step computes: admission, chunked prefill, decode, preemption. Plain integers, no torch."""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

from server.cache.blocks import BlockAllocator
from server.cache.planner import CachePlan
from server.request import FinishReason, SequenceUsage, TokenOutput
from server.sequence import ScheduledBatch, ScheduledSequence, Sequence


@dataclass(frozen=True, slots=True)
class SchedulerLimits:
    """max_context: prompt and completion together. The others as in EngineConfig."""

    max_running: int
    step_tokens: int
    prefill_chunk: int
    max_context: int


@dataclass(slots=True)
class Counters:
    preemptions: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    finished: int = 0
    aborted: int = 0


class Scheduler:
    """Owns the waiting and the running sequences and the blocks and state slots that they hold.

    A sequence is admitted when all blocks of its tokens so far are free, and gets them at once; it grows block
    by block while it decodes. When none is free, the youngest running sequence gives up everything and waits
    again, at the head of the queue; what it had generated is kept and computed anew.
    """

    def __init__(self, plan: CachePlan, limits: SchedulerLimits) -> None:
        self._plan = plan
        self._limits = limits
        self._blocks = BlockAllocator(plan.num_blocks)
        self._slots = BlockAllocator(plan.num_state_slots)
        # By request id, and in order of arrival: whoever waits came after all who run.
        self.waiting: OrderedDict[str, Sequence] = OrderedDict()
        self.running: OrderedDict[str, Sequence] = OrderedDict()
        self.counters = Counters()

    @property
    def num_free_blocks(self) -> int:
        return self._blocks.num_free

    @property
    def num_free_slots(self) -> int:
        return self._slots.num_free

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence.

        Raises:
            ValueError: its request id is in use.
        """
        if sequence.request_id in self.waiting or sequence.request_id in self.running:
            raise ValueError(f"request id {sequence.request_id!r} is in use")
        self.waiting[sequence.request_id] = sequence

    def abort(self, request_id: str, now_s: float) -> TokenOutput | None:
        """Drop a sequence wherever it is and free all that it holds; None if there is no such sequence."""
        sequence = self.running.pop(request_id, None) or self.waiting.pop(request_id, None)
        if sequence is None:
            return None
        usage = self._usage(sequence, now_s)
        self._release(sequence)
        self.counters.aborted += 1
        return TokenOutput((), "abort", usage)

    def schedule(self, now_s: float) -> ScheduledBatch:
        """Choose the next step's work: every decode first, then prefills in order of arrival, then newcomers."""
        room = self._limits.step_tokens
        parts: list[ScheduledSequence] = []
        for sequence in list(self.running.values()):
            # An earlier one in this loop may have preempted it; then it waits and no longer decodes.
            if sequence.decodes and self._grow(sequence):
                parts.append(ScheduledSequence(sequence, 1, True))
        # A later one never preempts an earlier one, so whoever got a part still runs.
        room -= len(parts)
        for sequence in self.running.values():
            if not room:
                break
            if not sequence.decodes:
                parts.append(self._chunk(sequence, room))
                room -= parts[-1].num_tokens
        while room and (newcomer := self._admit(now_s)):
            parts.append(self._chunk(newcomer, room))
            room -= parts[-1].num_tokens
        return ScheduledBatch(tuple(parts))

    def postprocess(
        self, batch: ScheduledBatch, tokens: dict[str, int], eos_token_ids: frozenset[int], now_s: float
    ) -> list[tuple[str, TokenOutput]]:
        """Take over a step's results; returns the outputs of the sequences that got a token.

        Args:
            tokens: request id -> sampled token, for the parts that sample.
        """
        outputs = []
        for part in batch.parts:
            sequence = part.sequence
            self.counters.prompt_tokens += max(0, min(part.num_tokens, sequence.num_prompt - sequence.num_computed))
            sequence.num_computed += part.num_tokens
            self._note_peak(sequence)
            if part.samples:
                token = tokens[sequence.request_id]
                outputs.append((sequence.request_id, self._append(sequence, token, eos_token_ids, now_s)))
        return outputs

    def check(self) -> None:
        """Assert that blocks and state slots are conserved and that every table covers what is computed."""
        self._blocks.check([block for sequence in self._all() for block in sequence.block_table])
        self._slots.check([s.state_slot for s in self._all() if s.state_slot is not None])
        for sequence in self.running.values():
            assert sequence.state_slot is not None, "a running sequence has no state slot"
            needed = self._plan.num_blocks_for(sequence.num_computed)
            assert len(sequence.block_table) >= needed, "a block table is too short"
        for sequence in self.waiting.values():
            assert not sequence.block_table, "a waiting sequence holds blocks"
            assert sequence.state_slot is None, "a waiting sequence holds a state slot"

    def _all(self) -> Iterator[Sequence]:
        yield from self.running.values()
        yield from self.waiting.values()

    def _chunk(self, sequence: Sequence, room: int) -> ScheduledSequence:
        size = min(sequence.num_remaining, self._limits.prefill_chunk, room)
        return ScheduledSequence(sequence, size, size == sequence.num_remaining)

    def _admit(self, now_s: float) -> Sequence | None:
        """Move the head of the queue to the running sequences if everything that it needs now is free."""
        if not self.waiting or len(self.running) >= self._limits.max_running or not self._slots.num_free:
            return None
        sequence = next(iter(self.waiting.values()))
        needed = self._plan.num_blocks_for(len(sequence.token_ids))
        if needed > self._blocks.num_free:
            return None
        self.running[sequence.request_id] = self.waiting.pop(sequence.request_id)
        sequence.block_table = self._blocks.allocate(needed)
        [sequence.state_slot] = self._slots.allocate(1)
        if sequence.started_s is None:
            sequence.started_s = now_s
        self._note_peak(sequence)
        return sequence

    def _grow(self, sequence: Sequence) -> bool:
        """Make room for one more token, preempting the youngest while there is none; False if it had to go itself."""
        needed = self._plan.num_blocks_for(len(sequence.token_ids))
        while len(sequence.block_table) < needed:
            if self._blocks.num_free:
                sequence.block_table += self._blocks.allocate(1)
                continue
            victim = self._preempt_youngest()
            if victim is sequence:
                return False
        return True

    def _preempt_youngest(self) -> Sequence:
        request_id, sequence = self.running.popitem()
        self._release(sequence)
        sequence.num_computed = 0
        self.waiting[request_id] = sequence
        self.waiting.move_to_end(request_id, last=False)
        self.counters.preemptions += 1
        return sequence

    def _release(self, sequence: Sequence) -> None:
        self._blocks.release(sequence.block_table)
        sequence.block_table = []
        if sequence.state_slot is not None:
            self._slots.release([sequence.state_slot])
            sequence.state_slot = None

    def _append(self, sequence: Sequence, token: int, eos_token_ids: frozenset[int], now_s: float) -> TokenOutput:
        if sequence.first_token_s is None:
            sequence.first_token_s = now_s
        sequence.token_ids.append(token)
        self.counters.generation_tokens += 1
        reason = self._finish_reason(sequence, token, eos_token_ids)
        if reason is None:
            return TokenOutput((token,), None, None)
        usage = self._usage(sequence, now_s)
        del self.running[sequence.request_id]
        self._release(sequence)
        self.counters.finished += 1
        # The token that ends a completion is counted but not part of its text.
        return TokenOutput(() if reason == "stop" else (token,), reason, usage)

    def _finish_reason(self, sequence: Sequence, token: int, eos_token_ids: frozenset[int]) -> FinishReason | None:
        params = sequence.request.params
        if token in params.stop_token_ids or (token in eos_token_ids and not params.ignore_eos):
            return "stop"
        full = len(sequence.token_ids) >= self._limits.max_context
        return "length" if full or sequence.num_generated >= params.max_tokens else None

    def _bytes(self, sequence: Sequence) -> tuple[int, int]:
        held = sequence.state_slot is not None
        return len(sequence.block_table) * self._plan.block_bytes, self._plan.bytes_per_sequence if held else 0

    def _note_peak(self, sequence: Sequence) -> None:
        sequence.peak_bytes = max(sequence.peak_bytes, sum(self._bytes(sequence)))

    def _usage(self, sequence: Sequence, now_s: float) -> SequenceUsage:
        # What was aborted may not have got that far.
        started_s = now_s if sequence.started_s is None else sequence.started_s
        first_token_s = now_s if sequence.first_token_s is None else sequence.first_token_s
        kv_bytes, state_bytes = self._bytes(sequence)
        return SequenceUsage(
            prompt_tokens=sequence.num_prompt,
            cached_tokens=0,
            completion_tokens=sequence.num_generated,
            queue_s=started_s - sequence.added_s,
            prefill_s=first_token_s - started_s,
            decode_s=now_s - first_token_s,
            kv_bytes=kv_bytes,
            state_bytes=state_bytes,
            peak_bytes=sequence.peak_bytes,
        )
