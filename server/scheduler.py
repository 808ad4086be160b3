"""Decides what each step computes: admission, chunked prefill, decode, preemption. Plain integers, no torch."""

import heapq
from collections import OrderedDict, deque
from dataclasses import dataclass, replace

from server.awaiting import Awaiting
from server.cache.lower import LowerTiers
from server.cache.memory import SequenceMemory
from server.cache.planner import CachePlan
from server.config import Policy
from server.counters import Counters
from server.queue import WaitingQueue
from server.request import FinishReason, SequenceUsage, TokenOutput
from server.sequence import ScheduledBatch, ScheduledSequence, Sequence
from server.speed import StepSpeed

ALIGNED = 64  # tokens: chunks of a prefill end at multiples of it
PARTS = 6  # of the longest gap, for a step that may keep another tenant's short question from its first token
LOOK_AHEAD = 64  # of the queue, for who need not wait for another's work


@dataclass(frozen=True, slots=True)
class SchedulerLimits:
    """max_context: prompt and completion together. snapshot_every: tokens between the states that a long prompt leaves.
    The others as in EngineConfig.
    """

    max_running: int
    step_tokens: int
    prefill_chunk: int
    max_context: int
    snapshot_every: int = 256
    prefix_cache: bool = True
    policy: Policy = "first-come"
    max_gap_s: float = float("inf")


class Scheduler:
    """Owns the waiting and the running sequences; the blocks and state slots that they hold are the memory's.

    A sequence is admitted when there is room for all blocks of its tokens so far, and gets them at once; it grows block
    by block while it decodes. When there is no more, the youngest running sequence gives up everything and waits again,
    at the head of the queue. What it had generated is kept; what it had computed stays in the memory's index as long
    as there is room, so that it is found again.
    """

    def __init__(self, plan: CachePlan, limits: SchedulerLimits) -> None:
        self._plan = plan
        self._limits = limits
        self.memory = SequenceMemory(plan, snapshot_every=limits.snapshot_every, caches=limits.prefix_cache)
        self.tiers: LowerTiers | None = None
        self.queue = WaitingQueue(limits.policy)
        self.running: OrderedDict[str, Sequence] = OrderedDict()  # in the order in which they were admitted
        self.counters = Counters()
        # Chunks of fewer tokens than that end wherever they must.
        self._aligned = ALIGNED if min(limits.prefill_chunk, limits.step_tokens) >= ALIGNED else 1
        self._num_added, self._has_priorities = 0, False
        self._speed = StepSpeed()
        self._deadlines: list[tuple[float, int, Sequence]] = []
        self._awaiting = Awaiting(self.memory, self.running)

    @property
    def waiting(self) -> OrderedDict[str, Sequence]:
        """By request id."""
        return self.queue.sequences

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
        self._num_added += 1
        self._has_priorities |= sequence.request.priority != 0
        sequence.number = self._num_added
        self.queue.arrive(sequence)
        if sequence.request.timeout_s is not None:
            heapq.heappush(self._deadlines, (sequence.added_s + sequence.request.timeout_s, sequence.number, sequence))

    def abort(self, request_id: str, now_s: float) -> TokenOutput | None:
        """Drop a sequence wherever it is and free all that it holds; None if there is no such sequence."""
        sequence = self.running.get(request_id) or self.waiting.get(request_id)
        if sequence is None:
            return None
        usage = self._usage(sequence, now_s)
        self._end(sequence)
        self.counters.aborted += 1
        return TokenOutput((), "abort", usage)

    def expire(self, now_s: float) -> list[tuple[str, TokenOutput]]:
        """Drop those whose time is over, rather than serve them late; returns their last outputs."""
        outputs = []
        while self._deadlines and self._deadlines[0][0] <= now_s:
            _, _, sequence = heapq.heappop(self._deadlines)
            request_id = sequence.request_id
            if sequence in (self.running.get(request_id), self.waiting.get(request_id)):
                outputs.append((request_id, TokenOutput((), "timeout", self._usage(sequence, now_s))))
                self._end(sequence)
                self.counters.expired += 1
        return outputs

    def schedule(self, now_s: float) -> ScheduledBatch:
        """Choose the next step's work: every decode first, then prefills and newcomers in turn."""
        parts: dict[str, ScheduledSequence] = {}
        for sequence in self._in_order_of_importance():
            # An earlier one in this loop may have preempted it; then it waits and no longer decodes.
            if sequence.decodes and not self._is_full(sequence) and self._grow(sequence):
                parts[sequence.request_id] = ScheduledSequence(sequence, 1, True)
        # A later one never preempts an earlier one, so whoever got a part still runs.
        room = min(self._limits.step_tokens - len(parts), self._prefill_room(now_s, holds_up=bool(parts)))
        answered: set[str] = set()
        begun = deque(sorted((s for s in self.running.values() if not s.decodes), key=self.queue.rank))
        while room > 0:
            self._skip_preempted(begun)
            newcomer = self._admit(now_s, parts, before=self.queue.rank(begun[0]) if begun else None)
            self._skip_preempted(begun)
            if newcomer is None and not begun:
                break
            part = self._chunk(newcomer or begun.popleft(), room, alone=not parts)
            # Whoever gets a first token in this step waits for it no longer than for what is short as well.
            if part is None or (not part.samples and self._others(answered & parts.keys(), part)):
                break
            parts[part.sequence.request_id] = part
            room -= part.num_tokens
            if part.samples and self._limits.policy == "fair":
                answered.add(part.sequence.request_id)
        # Last, so that no slot is taken for a snapshot that a newcomer could run in.
        for part in parts.values():
            if part.sequence.wanted:
                self.memory.take_snapshots(part.sequence, part.num_tokens)
        leaving = tuple(_with_snapshots(part) for part in parts.values())
        # Without a part there is no step: what is to be copied waits for the next.
        return ScheduledBatch(leaving, self.memory.take_copies() if parts else (), self.memory.extents)

    def postprocess(
        self, batch: ScheduledBatch, tokens: dict[str, int], eos_token_ids: frozenset[int], now_s: float
    ) -> list[tuple[str, TokenOutput]]:
        """Take over a step's results; returns the outputs of the sequences that got a token.

        Args:
            tokens: request id -> sampled token, for the parts that sample.
        """
        self.advance(batch)
        return self.resolve(batch, tokens, eos_token_ids, now_s)

    def advance(self, batch: ScheduledBatch) -> None:
        """A step is on its way, and will be done before any that is scheduled from here on."""
        for part in batch.parts:
            sequence = part.sequence
            self.counters.prompt_tokens += max(0, min(part.num_tokens, sequence.num_prompt - sequence.num_computed))
            self.queue.charge(sequence, part.num_tokens)
            sequence.num_computed += part.num_tokens
            sequence.num_scored = max(sequence.num_scored, min(sequence.num_computed, sequence.num_to_score))
            sequence.num_unknown += part.samples
            if part.num_tokens > 1 or part.snapshots:
                self.memory.commit(sequence)

    def resolve(
        self, batch: ScheduledBatch, tokens: dict[str, int], eos_token_ids: frozenset[int], now_s: float
    ) -> list[tuple[str, TokenOutput]]:
        """Take over the tokens of a step that is done. Who ended since is no longer asked."""
        outputs = []
        for part in batch.parts:
            sequence = part.sequence
            if part.samples and sequence.num_unknown:
                sequence.num_unknown -= 1
                token = tokens[sequence.request_id]
                outputs.append((sequence.request_id, self._append(sequence, token, eos_token_ids, now_s)))
        return outputs

    @property
    def prefill_rate(self) -> float | None:
        """Tokens per second, as measured; None before the first."""
        return self._speed.prefill_rate

    def note_speed(self, batch: ScheduledBatch, seconds: float) -> None:
        """Learn from a step how many tokens of prefill fit into the longest gap that decodes shall see."""
        self._speed.note(sum(part.num_tokens for part in batch.parts if part.num_tokens > 1), seconds)

    def check(self) -> None:
        """Assert that blocks and state slots are conserved and that every table covers what is computed."""
        self.memory.check([*self.running.values(), *self.waiting.values()])
        if self.tiers is not None:
            self.tiers.check(self.waiting.values())
        for sequence in self.running.values():
            assert sequence.state_slot is not None, "a running sequence has no state slot"
            needed = self._plan.num_blocks_for(sequence.num_computed)
            assert len(sequence.block_table) >= needed, "a block table is too short"
        for sequence in self.waiting.values():
            assert not sequence.block_table, "a waiting sequence holds blocks"
            assert sequence.state_slot is None, "a waiting sequence holds a state slot"

    def _chunk(self, sequence: Sequence, room: int, *, alone: bool) -> ScheduledSequence | None:
        """The next tokens of a prefill. Chunks end at fixed positions, whatever the company: where the rest of a step's
        room does not reach the next of them it is left, unless the step would be empty.
        """
        size = min(sequence.num_remaining, self._limits.prefill_chunk, room)
        if size < sequence.num_remaining and self._aligned > 1:
            aligned = (sequence.num_computed + size) // self._aligned * self._aligned - sequence.num_computed
            if aligned <= 0 and not alone:
                return None
            size = aligned if aligned > 0 else size
        return ScheduledSequence(sequence, size, size == sequence.num_remaining)

    def _skip_preempted(self, begun: deque[Sequence]) -> None:
        while begun and begun[0].request_id not in self.running:
            begun.popleft()

    def _prefill_room(self, now_s: float, *, holds_up: bool) -> int:
        """Tokens of prefill for a step, so that it lasts no longer than the gap that is allowed, where it holds up
        answers in progress; a part of that where another tenant may come, whose first token waits for it too.
        """
        limits, several = self._limits, self.queue.several_recent(now_s)
        if limits.max_gap_s == float("inf") or not (holds_up or several):
            return limits.step_tokens
        size = self._speed.num_tokens_in(limits.max_gap_s / PARTS if several else limits.max_gap_s)
        return limits.prefill_chunk if size is None else min(max(ALIGNED, size), limits.step_tokens)

    def _others(self, request_ids: set[str], part: ScheduledSequence) -> bool:
        """Whether one of these running sequences is another tenant's."""
        tenant = part.sequence.request.tenant
        return any(self.running[request_id].request.tenant != tenant for request_id in request_ids)

    def _in_order_of_importance(self) -> list[Sequence]:
        running = list(self.running.values())
        if self._has_priorities:
            running.sort(key=lambda each: each.request.priority)
        return running

    def _admit(
        self, now_s: float, parts: dict[str, ScheduledSequence], *, before: tuple[int, int, int] | None
    ) -> Sequence | None:
        """Let the first of the queue run who need not wait for another's work, if there is room; but for whom others
        gave room already, `parts`, so that those go on who had the turn `before`.
        """
        sequence = next((each for each in self.queue.candidates(LOOK_AHEAD) if self._may_run(each)), None)
        if sequence is None or (before is not None and self.queue.rank(sequence) >= before):
            return None
        while len(self.running) >= self._limits.max_running or not self.memory.admit(sequence):
            victim = self._who_has_too_much(sequence)
            if victim is None:
                return None
            self._preempt(victim)
            parts.pop(victim.request_id, None)
            if self._fetches(sequence):
                return None
        if self.tiers is not None:
            self.tiers.settle(sequence)
        self.queue.leave(sequence)
        self.running[sequence.request_id] = sequence
        if sequence.started_s is None:
            sequence.started_s = now_s
            sequence.num_cached = sequence.num_computed
            self.counters.cached_tokens += sequence.num_cached
        self._note_peak(sequence)
        return sequence

    def _may_run(self, sequence: Sequence) -> bool:
        # What was preempted while a token of it was on its way waits for that.
        if sequence.num_unknown or (self._limits.prefix_cache and self._awaiting.awaits(sequence)):
            return False
        return not self._fetches(sequence)

    def _fetches(self, sequence: Sequence) -> bool:
        """Whether a beginning of this sequence is being read, which it can then use."""
        return self.tiers is not None and len(self.running) < self._limits.max_running and self.tiers.awaits(sequence)

    def _who_has_too_much(self, sequence: Sequence) -> Sequence | None:
        """The youngest of the tenant that holds most, if it holds more than its share and this one's would not."""
        if self._limits.policy != "fair" or self.queue.tenants < 2:
            return None
        share = 1 / self.queue.tenants
        held: dict[str, list[int]] = {}
        for other in self.running.values():
            counts = held.setdefault(other.request.tenant, [0, 0])
            counts[0] += 1
            counts[1] += len(other.block_table)
        mine = held.pop(sequence.request.tenant, [0, 0])
        needed = self._plan.num_blocks_for(sequence.num_tokens)
        if not held or self._part(mine[0] + 1, mine[1] + needed) > share:
            return None
        greediest = max(held, key=lambda tenant: self._part(*held[tenant]))
        if self._part(*held[greediest]) <= share:
            return None
        return next(other for other in reversed(self.running.values()) if other.request.tenant == greediest)

    def _part(self, num_running: int, num_blocks: int) -> float:
        """Which part of what there is some sequences hold, of places or of blocks, whichever is more."""
        return max(num_running / self._limits.max_running, num_blocks / max(1, self._plan.num_blocks))

    def _grow(self, sequence: Sequence) -> bool:
        """Make room for one more token, preempting the youngest while there is none; False if it had to go itself."""
        if not self.memory.lacks_room(sequence):
            return True
        while not self.memory.grow(sequence):
            if self._preempt_youngest() is sequence:
                return False
        self._note_peak(sequence)
        return True

    def _preempt_youngest(self) -> Sequence:
        """Of the least important, the one that was admitted last."""
        sequence = max(reversed(self.running.values()), key=lambda each: each.request.priority)
        self._preempt(sequence)
        return sequence

    def _preempt(self, sequence: Sequence) -> None:
        del self.running[sequence.request_id]
        self.memory.release(sequence)
        if self.tiers is not None:
            self.tiers.keep_preempted(sequence)
        sequence.num_computed = 0
        self.queue.come_back(sequence)
        self.counters.preemptions += 1

    def _end(self, sequence: Sequence) -> None:
        """Forget a sequence that waits or runs, and take back all that it holds."""
        if self.running.pop(sequence.request_id, None) is None:
            self.queue.leave(sequence)
        sequence.num_unknown = 0
        self.queue.end(sequence)
        self._awaiting.forget(sequence)
        if self.tiers is not None:
            self.tiers.settle(sequence)
        self.memory.release(sequence)

    def _append(self, sequence: Sequence, token: int, eos_token_ids: frozenset[int], now_s: float) -> TokenOutput:
        if sequence.first_token_s is None:
            sequence.first_token_s = now_s
        if sequence.request.params.max_tokens:
            sequence.token_ids.append(token)
            self.counters.generation_tokens += 1
        reason = self._finish_reason(sequence, token, eos_token_ids)
        if reason is None:
            return TokenOutput((token,), None, None)
        usage = self._usage(sequence, now_s)
        self._end(sequence)
        self.counters.finished += 1
        # The token that ends a completion is counted but not part of its text.
        return TokenOutput((token,) if reason == "length" and sequence.num_generated else (), reason, usage)

    def _is_full(self, sequence: Sequence) -> bool:
        """Whether its last token is on its way, whatever it will be."""
        if not sequence.num_unknown:
            return False
        num_generated = sequence.num_generated + sequence.num_unknown
        return num_generated >= sequence.request.params.max_tokens or sequence.num_tokens >= self._limits.max_context

    def _finish_reason(self, sequence: Sequence, token: int, eos_token_ids: frozenset[int]) -> FinishReason | None:
        params = sequence.request.params
        if not params.max_tokens:
            return "length"
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
            cached_tokens=sequence.num_cached,
            completion_tokens=sequence.num_generated,
            queue_s=started_s - sequence.added_s,
            prefill_s=first_token_s - started_s,
            decode_s=now_s - first_token_s,
            kv_bytes=kv_bytes,
            state_bytes=state_bytes,
            peak_bytes=sequence.peak_bytes,
        )


def _with_snapshots(part: ScheduledSequence) -> ScheduledSequence:
    """A part with those that its sequence leaves; when all have theirs, for others' may have moved them."""
    return replace(part, snapshots=tuple(part.sequence.taken)) if part.sequence.taken else part
