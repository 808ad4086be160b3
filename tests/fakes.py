"""A scripted model for the engine, without torch, that remembers only what its blocks and state slots hold."""

import os
import zlib
from array import array
from collections.abc import Callable, Mapping, Sequence
from tempfile import TemporaryDirectory

import numpy as np

from server.cache.blocks import RowCopy
from server.cache.host import HostStore
from server.cache.lower import LowerTiers
from server.cache.planner import CachePlan
from server.cache.rows import WriteTimer
from server.cache.tiers import DiskStore
from server.config import Policy
from server.engine import Engine
from server.request import EngineRequest, FinishReason, Logprobs, SamplingParams, TokenOutput
from server.scheduler import SchedulerLimits
from server.sequence import ScheduledBatch, ScheduledSequence, StepResult
from server.sequence import Sequence as RunningSequence
from server.speed import StepSpeed

VOCAB_SIZE = 61
EOS = 0

NextToken = Callable[[Sequence[int]], int]


def hashed_token(tokens: Sequence[int]) -> int:
    """The next token after `tokens`: any change of a token, of the order or of the length changes it."""
    return zlib.crc32(",".join(map(str, tokens)).encode()) % VOCAB_SIZE


def scripted_logprobs(seen: Sequence[Sequence[int]], follow: Sequence[int]) -> Logprobs:
    """What the scripted model says of tokens behind others; any change of those changes it."""
    values = [-zlib.crc32(repr((list(tokens), token)).encode()) for tokens, token in zip(seen, follow, strict=True)]
    follow = array("i", follow)
    return Logprobs(0, follow.tobytes(), array("f", values).tobytes(), follow.tobytes(), b"", b"")


def planned_tokens(plans: Mapping[tuple[int, ...], Sequence[int]]) -> NextToken:
    """A model that answers each prompt in `plans` with the tokens written down for it."""

    def next_token(tokens: Sequence[int]) -> int:
        [(prompt, planned)] = [item for item in plans.items() if tuple(tokens[: len(item[0])]) == item[0]]
        return planned[len(tokens) - len(prompt)]

    return next_token


class Landed:
    """A step of the scripted model, which is done when it is begun."""

    def __init__(self, result: StepResult) -> None:
        self._result = result

    def result(self) -> StepResult:
        return self._result


class SlowTimer:
    """Of writes that have arrived when it is asked for the second time, after a second."""

    def __init__(self) -> None:
        self._asked = 0

    def stop(self) -> None:
        pass

    def seconds(self) -> float | None:
        self._asked += 1
        return 1.0 if self._asked > 1 else None


class ScriptedModel:
    """Stands in for the runner. `batches` keeps (request id, number of tokens) of every step.

    What it knows of a sequence's past it reads back from the blocks of its table and from its state slot, so
    that a block handed to two sequences or a state kept too long changes the tokens, as in a real model.
    """

    def __init__(self, plan: CachePlan, next_token: NextToken = hashed_token) -> None:
        self._plan = plan
        self._next_token = next_token
        self._blocks = [[-1] * plan.block_size for _ in range(plan.num_blocks)]
        self._states: list[tuple[int, ...]] = [(-1,)] * plan.num_state_slots
        self._owners: list[tuple[str, int] | None] = [None] * (plan.arena_bytes or 0)
        self.batches: list[list[tuple[str, int]]] = []
        self._sampled: dict[str, int] = {}  # in the last step

    def launch(self, batch: ScheduledBatch) -> Landed:
        result = self._run(batch)
        self._sampled = result.tokens
        return Landed(result)

    def _text(self, sequence: RunningSequence) -> list[int]:
        """A sequence's tokens, the one among them that the engine does not know yet."""
        assert sequence.num_unknown <= 1, "a step begins before the one before the last is done"
        unknown = [self._sampled[sequence.request_id]] if sequence.num_unknown else []
        return sequence.token_ids + unknown

    def _run(self, batch: ScheduledBatch) -> StepResult:
        self.batches.append([(part.sequence.request.request_id, part.num_tokens) for part in batch.parts])
        self.copy(batch.copies)
        # All write before any reads: what one part overwrites of another shows.
        for part in batch.parts:
            self._remember(part)
        tokens, logprobs, prompts = {}, {}, {}
        for part in batch.parts:
            request, recalled = part.sequence.request, self._recall(part)
            if part.samples:
                tokens[request.request_id] = token = self._next_token(recalled)
                if request.params.logprobs is not None:
                    logprobs[request.request_id] = scripted_logprobs([recalled], [token])
            if part.scored:
                seen = [recalled[: position + 1] for position in part.scored]
                follow = [self._text(part.sequence)[position + 1] for position in part.scored]
                prompts[request.request_id] = scripted_logprobs(seen, follow)
        return StepResult(tokens, logprobs, prompts)

    def copy(self, copies: Sequence[RowCopy]) -> None:
        for kind, source, target in copies:
            # Rows may be copied before anything is written to them.
            is_whole, nothing = self._is_whole(kind, source), [-1] * self._plan.block_size
            if kind == "block":
                self._blocks[target] = list(self._blocks[source]) if is_whole else nothing
            else:
                self._states[target] = self._states[source] if is_whole else (-1,)
            self._overwrite(kind, target)

    def read_blocks(self, blocks: Sequence[int]) -> memoryview:
        contents = (np.array(self._blocks[block], np.int16).tobytes() for block in blocks)
        return memoryview(b"".join(content.ljust(self._plan.block_bytes, b"-") for content in contents))

    def read_state(self, slot: int) -> memoryview:
        state = self._states[slot]
        content = np.array([len(state), *state], np.int16).tobytes().ljust(self._plan.bytes_per_sequence, b"-")
        assert len(content) == self._plan.bytes_per_sequence, "a state is too long for its bytes"
        return memoryview(content)

    def reads_done(self) -> Callable[[], None]:
        return lambda: None

    def time_writes(self) -> WriteTimer:
        return SlowTimer()

    def write_blocks(self, blocks: Sequence[int], content: memoryview) -> None:
        size = self._plan.block_bytes
        assert len(content) == size * len(blocks)
        for number, block in enumerate(blocks):
            if block >= 0:
                tokens = np.frombuffer(content[number * size :], np.int16, self._plan.block_size)
                self._blocks[block] = tokens.tolist()
                self._overwrite("block", block)

    def write_state(self, slot: int, content: memoryview) -> None:
        length = int(np.frombuffer(content, np.int16, 1)[0])
        self._states[slot] = tuple(np.frombuffer(content, np.int16, length + 1)[1:].tolist())
        self._overwrite("slot", slot)

    def _remember(self, part: ScheduledSequence) -> None:
        sequence = part.sequence
        text = self._text(sequence)
        start, stop = sequence.num_computed, sequence.num_computed + part.num_tokens
        assert part.num_tokens > 0, "an empty part"
        assert part.samples == (stop == len(text)), "samples before the newest token"
        assert sequence.state_slot is not None
        # A pass that starts at 0 takes the slot as empty, whatever is left in it.
        past = self._states[sequence.state_slot] if start else ()
        for position, slot in part.snapshots:
            assert start < position <= stop, "a snapshot of tokens that are not computed"
            assert slot != sequence.state_slot, "a snapshot in the running slot"
            self._states[slot] = past + tuple(text[start:position])
            self._overwrite("slot", slot)
        assert not start or self._is_whole("slot", sequence.state_slot), "a state was overwritten"
        self._states[sequence.state_slot] = past + tuple(text[start:stop])
        self._overwrite("slot", sequence.state_slot)
        if self._plan.bytes_per_token:
            for position in range(max(start, sequence.num_shared), stop):
                block = sequence.block_table[position // self._plan.block_size]
                self._blocks[block][position % self._plan.block_size] = text[position]
                self._overwrite("block", block)

    def _recall(self, part: ScheduledSequence) -> list[int]:
        sequence = part.sequence
        assert sequence.state_slot is not None
        length = sequence.num_computed + part.num_tokens
        state = list(self._states[sequence.state_slot])
        if not self._plan.bytes_per_token and not self._plan.bytes_per_sequence:
            return self._text(sequence)[:length]  # a model that remembers nothing would be asked for nothing
        if not self._plan.bytes_per_token:
            return state
        for block in sequence.block_table[: self._plan.num_blocks_for(length)]:
            assert self._is_whole("block", block), "a block was overwritten"
        kept = [token for block in sequence.block_table for token in self._blocks[block]][:length]
        # With both kinds of memory the two must agree; a made-up token tells where they do not.
        return kept if kept == state or not self._plan.bytes_per_sequence else [-1, *kept, *state]

    def _bytes_of(self, kind: str, number: int) -> slice:
        """Where a block or slot lies in an arena."""
        plan = self._plan
        assert plan.arena_bytes is not None
        if kind == "block":
            return slice(number * plan.block_row_bytes, (number + 1) * plan.block_row_bytes)
        stop = plan.arena_bytes - (plan.num_state_slots - 1 - number) * plan.slot_row_bytes
        return slice(stop - plan.slot_row_bytes, stop)

    def _overwrite(self, kind: str, number: int) -> None:
        if self._owners:
            place = self._bytes_of(kind, number)
            self._owners[place] = [(kind, number)] * (place.stop - place.start)

    def _is_whole(self, kind: str, number: int) -> bool:
        """Whether nothing else was written to its bytes since it was."""
        return not self._owners or set(self._owners[self._bytes_of(kind, number)]) == {(kind, number)}


def make_request(
    request_id: str,
    prompt: Sequence[int],
    max_tokens: int,
    *,
    stop_token_ids: tuple[int, ...] = (),
    ignore_eos: bool = False,
) -> EngineRequest:
    """A greedy request."""
    params = SamplingParams(max_tokens, temperature=0.0, stop_token_ids=stop_token_ids, ignore_eos=ignore_eos)
    return EngineRequest(request_id, tuple(prompt), params)


class KnownSpeed(StepSpeed):
    """So many tokens of prefill per second, however long a scripted step takes."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        super().note(1000, 1000 / rate)

    def note(self, num_prefilled: int, seconds: float) -> None:
        """Learn nothing."""


def make_engine(
    plan: CachePlan,
    *,
    next_token: NextToken = hashed_token,
    max_running: int | None = None,
    step_tokens: int = 64,
    prefill_chunk: int = 64,
    max_context: int = 64,
    snapshot_every: int = 8,
    prefix_cache: bool = True,
    policy: Policy = "first-come",
    max_gap_s: float = float("inf"),
    overlaps: bool = False,
    host: HostStore | None = None,
    disk: DiskStore | None = None,
    chunk_tokens: int = 16,
) -> tuple[Engine, ScriptedModel]:
    """An engine over a scripted model; as many may run as there are state slots unless said otherwise."""
    model = ScriptedModel(plan, next_token)
    limits = SchedulerLimits(
        max_running or plan.num_state_slots,
        step_tokens,
        prefill_chunk,
        max_context,
        snapshot_every,
        prefix_cache,
        policy,
        max_gap_s,
    )
    tiers = None
    if host is not None or disk is not None:
        tiers = LowerTiers(
            plan, model, snapshot_every=snapshot_every, host=host, disk=disk, chunk_tokens=chunk_tokens, least_tokens=2
        )
    engine = Engine(model, plan, limits, (EOS,), tiers, overlaps=overlaps)
    # Known from the first step on; so slow that all is worth to be kept.
    engine.scheduler._speed = KnownSpeed(1.0)
    return engine, model


def answer_alone(
    request: EngineRequest, *, max_context: int, next_token: NextToken = hashed_token
) -> tuple[list[int], FinishReason]:
    """What a request must be answered whatever its company: the plain loop, with no scheduler, block or slot."""
    tokens, params = list(request.token_ids), request.params
    while True:
        token = next_token(tokens)
        if token in params.stop_token_ids or (token == EOS and not params.ignore_eos):
            return tokens[len(request.token_ids) :], "stop"
        tokens.append(token)
        if len(tokens) - len(request.token_ids) >= params.max_tokens or len(tokens) >= max_context:
            return tokens[len(request.token_ids) :], "length"


def drain(engine: Engine, limit: int = 10_000) -> dict[str, list[TokenOutput]]:
    """Step until nothing is left to do; all outputs by request id."""
    outputs: dict[str, list[TokenOutput]] = {}
    for _ in range(limit):
        if not engine.has_work:
            return outputs
        for request_id, output in engine.step():
            outputs.setdefault(request_id, []).append(output)
        engine.scheduler.check()
    raise AssertionError(f"still at work after {limit} steps")


def tokens_of(outputs: Sequence[TokenOutput]) -> list[int]:
    return [token for output in outputs for token in output.token_ids]


def fast_directory() -> TemporaryDirectory[str]:
    """One in the system's memory where there is such, for what is written a thousand times."""
    return TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
