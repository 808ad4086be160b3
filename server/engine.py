"""The loop that owns a scheduler and a runner: schedule, run, postprocess, and hand out what came of it."""

import hashlib
import heapq
import random
import time
from dataclasses import dataclass, replace
from typing import Protocol

import msgspec

from server.cache.content import cache_entries
from server.cache.lower import LowerTiers
from server.cache.planner import CachePlan
from server.counters import TierStats
from server.request import CacheContent, CacheFreed, EngineRequest, EngineStats, TokenOutput
from server.scheduler import Scheduler, SchedulerLimits
from server.sequence import ScheduledBatch, Sequence, StepResult

SHOWN_TOKENS = 8192
FETCH_WAIT_S = 0.01  # at a time: somebody may come, or be aborted
FLUSH_S = 3.0  # for what is still to be written at the end; the server waits a little longer


class LaunchedStep(Protocol):
    """A step that is on its way."""

    def result(self) -> StepResult:
        """Wait for what comes of it."""
        ...


class StepRunner(Protocol):
    """What the engine needs of a runner; tests put a scripted model here."""

    def launch(self, batch: ScheduledBatch) -> LaunchedStep: ...


@dataclass(slots=True)
class Flying:
    """A step whose tokens are not taken over yet. started_s: on the monotonic clock. result: once it is waited for."""

    batch: ScheduledBatch
    launched: LaunchedStep
    started_s: float
    result: StepResult | None = None

    @property
    def must_land(self) -> bool:
        """Whether the next step hangs on its tokens by more than reading them."""
        return any(part.samples and part.sequence.request.params.adjusts for part in self.batch.parts)


def with_logprobs(outputs: list[tuple[str, TokenOutput]], result: StepResult) -> list[tuple[str, TokenOutput]]:
    """A step's outputs with the log-probabilities that it has brought; those of a prompt may come without a token."""
    told = [
        (request_id, TokenOutput((), prompt_logprobs=logprobs))
        for request_id, logprobs in result.prompt_logprobs.items()
    ]
    return told + [
        (request_id, msgspec.structs.replace(output, logprobs=result.logprobs[request_id]))
        if request_id in result.logprobs
        else (request_id, output)
        for request_id, output in outputs
    ]


class Engine:
    """Turns requests into tokens, one step at a time. Knows nothing of processes, text or HTTP.

    Args:
        tiers: what is kept beyond the device; it begins with what they have, and closes them at its end.
        overlaps: while a step is computed the next is decided and begun, before the tokens of the first are known. A
            sequence that ends with one of those was then computed for a step too many, whose token is dropped.

    begun: the requests of which the last step has computed a first part, but no token.
    """

    def __init__(
        self,
        runner: StepRunner,
        plan: CachePlan,
        limits: SchedulerLimits,
        eos_token_ids: tuple[int, ...],
        tiers: LowerTiers | None = None,
        *,
        overlaps: bool = False,
    ) -> None:
        self._runner = runner
        self._plan, self._max_context = plan, limits.max_context
        self._eos_token_ids = frozenset(eos_token_ids)
        self.scheduler = Scheduler(plan, limits)
        self.begun: list[str] = []
        self._steps = 0
        self._overlaps = overlaps
        self._flying: Flying | None = None
        self._landed_s = 0.0
        self._tiers = self.scheduler.tiers = tiers
        if tiers is not None:
            tiers.attach(self.scheduler.memory)

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work or self._flying is not None

    def add_request(self, request: EngineRequest) -> None:
        """Queue a request. What cannot fit was refused before it came here."""
        seed = random.getrandbits(63) if request.params.seed is None else request.params.seed
        if request.cache_salt:
            # Whoever knows a salt may ask for what was computed under it: no more than its digest is kept anywhere.
            digest = hashlib.blake2b(request.cache_salt.encode("utf-8", "surrogatepass"), digest_size=16)
            request = replace(request, cache_salt=digest.hexdigest())
        ends = request.params.stop_token_ids + (() if request.params.ignore_eos else tuple(self._eos_token_ids))
        self.scheduler.add(Sequence(request, seed, time.monotonic(), list(request.token_ids), ends=ends))

    def abort(self, request_id: str) -> TokenOutput | None:
        """Drop a request and free what it holds at once; its last output, None if it is not (or no longer) here."""
        return self.scheduler.abort(request_id, time.monotonic())

    def step(self) -> list[tuple[str, TokenOutput]]:
        """One step over everything that is due; returns new outputs by request id.

        Where steps overlap it begins one and returns the outputs of the one before.
        """
        started_s = time.monotonic()
        self.begun = []
        outputs = self.scheduler.expire(started_s)
        if self._flying is not None and self._flying.must_land:
            outputs += self._land(self._flying)
            self._flying = None
        if not self.has_work:
            return outputs
        due, launched = self._flying, self._launch(started_s, waits=self._flying is None)
        if self._overlaps:
            self._flying = launched
        else:
            due = launched
        return outputs if due is None else outputs + self._land(due)

    def _launch(self, started_s: float, *, waits: bool) -> Flying | None:
        """Begin the next step; None if there is nothing to compute.

        Args:
            waits: for a moment, where all that there is to do waits for what is being fetched.
        """
        if self._tiers is not None:
            self._tiers.begin_step(holds_up=bool(self.scheduler.running), prefill_rate=self.scheduler.prefill_rate)
        batch = self.scheduler.schedule(started_s)
        if not batch.parts:
            if waits:
                is_fetching = self._tiers is not None and self._tiers.wait(FETCH_WAIT_S)
                assert is_fetching, "there is work, but none of it can be scheduled"
            return None
        self.begun = [part.sequence.request_id for part in batch.parts if not part.samples and part.begins]
        flying = Flying(batch, self._runner.launch(batch), started_s)
        self._steps += 1
        if not self._overlaps:
            self._wait(flying)  # what is kept below hangs on how long it took
        if self._tiers is not None:
            self._tiers.keep(batch, self.scheduler.prefill_rate)
        self.scheduler.advance(batch)
        return flying

    def _land(self, flying: Flying) -> list[tuple[str, TokenOutput]]:
        """Wait for a step, and hand out what came of it."""
        batch, result = flying.batch, self._wait(flying)
        outputs = self.scheduler.resolve(batch, result.tokens, self._eos_token_ids, self._landed_s)
        if self._tiers is not None:
            ended = {request_id for request_id, output in outputs if output.finish_reason is not None}
            self._tiers.keep_answers(part.sequence for part in batch.parts if part.sequence.request_id in ended)
        if result.logprobs or result.prompt_logprobs:
            outputs = with_logprobs(outputs, result)
        return outputs

    def _wait(self, flying: Flying) -> StepResult:
        """What came of a step, once it is done; how long that took is learnt from it."""
        if flying.result is None:
            flying.result = flying.launched.result()
            now_s = time.monotonic()
            self.scheduler.note_speed(flying.batch, now_s - max(flying.started_s, self._landed_s))
            self._landed_s = now_s
        return flying.result

    def close(self) -> None:
        """Write what is still to be written, for some seconds at most."""
        if self._tiers is not None:
            self._tiers.close(FLUSH_S)

    def cache_content(self, limit: int) -> CacheContent:
        """What is kept for prompts that begin alike; of its entries the `limit` used last."""
        memory, plan = self.scheduler.memory, self._plan
        num_entries, entries = cache_entries(memory.index, plan, limit, time.monotonic())
        lower = [] if self._tiers is None else self._tiers.entries()
        host, disk = self._tier_stats()
        return CacheContent(
            num_blocks=plan.num_blocks,
            num_cached_blocks=memory.num_cached_blocks,
            block_bytes=plan.block_bytes,
            num_slots=plan.num_state_slots,
            num_snapshots=memory.index.num_snapshots,
            slot_bytes=plan.bytes_per_sequence,
            host_pieces=host.pieces,
            host_bytes=host.bytes,
            disk_pieces=disk.pieces,
            disk_bytes=disk.bytes,
            num_entries=num_entries + len(lower),
            entries=tuple(heapq.nsmallest(limit, [*entries, *lower], key=lambda entry: entry.age_s)),
        )

    def clear_cache(self) -> CacheFreed:
        """Give up all that no running sequence uses, and all that is in the tiers below; the result is the device's."""
        memory = self.scheduler.memory
        if self._tiers is not None:
            self._tiers.clear()
        blocks, slots = memory.blocks.num_held, memory.slots.num_held
        memory.clear()
        blocks, slots = blocks - memory.blocks.num_held, slots - memory.slots.num_held
        return CacheFreed(blocks, blocks * self._plan.block_bytes, slots, slots * self._plan.bytes_per_sequence)

    def stats(self) -> EngineStats:
        scheduler, counters = self.scheduler, self.scheduler.counters
        host, disk = self._tier_stats()
        longest = self._max_context
        short = min(SHOWN_TOKENS, longest)
        return EngineStats(
            num_running=len(scheduler.running),
            num_waiting=len(scheduler.waiting),
            free_blocks=scheduler.memory.num_free_blocks,
            cached_blocks=scheduler.memory.num_cached_blocks,
            num_blocks=self._plan.num_blocks,
            free_state_slots=scheduler.memory.num_free_slots,
            snapshots=scheduler.memory.index.num_snapshots,
            num_state_slots=self._plan.num_state_slots,
            fit_8k=self._plan.num_sequences(short),
            fit_8k_now=scheduler.memory.num_more(short),
            fit_longest=self._plan.num_sequences(longest),
            fit_longest_now=scheduler.memory.num_more(longest),
            num_preemptions=counters.preemptions,
            prompt_tokens=counters.prompt_tokens,
            cached_tokens=counters.cached_tokens,
            generation_tokens=counters.generation_tokens,
            finished=counters.finished,
            aborted=counters.aborted,
            expired=counters.expired,
            steps=self._steps,
            disk_pieces=disk.pieces,
            disk_bytes=disk.bytes,
            disk_writes=disk.writes,
            disk_writes_skipped=disk.skipped,
            disk_hits=disk.hits,
            disk_bytes_read=disk.bytes_read,
            disk_read_s=disk.read_s,
            host_pieces=host.pieces,
            host_bytes=host.bytes,
            host_writes=host.writes,
            host_writes_skipped=host.skipped,
            host_hits=host.hits,
            host_bytes_read=host.bytes_read,
            host_read_s=host.read_s,
        )

    def _tier_stats(self) -> tuple[TierStats, TierStats]:
        return (TierStats(), TierStats()) if self._tiers is None else self._tiers.stats()
