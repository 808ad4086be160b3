"""Executes what the scheduler decided: ScheduledBatch -> ForwardBatch -> StepResult. The torch half."""

from pathlib import Path

import torch

from models.batch import ForwardBatch
from models.cache import (
    CacheShape,
    allocate_caches,
    block_tensors,
    copy_rows,
    row_bytes,
    row_layout,
    state_tensors,
)
from models.config import CacheNeeds
from models.decode_graphs import DecodeGraphs, why_no_graphs
from models.decode_tapes import DecodeTapes
from models.kernels.bind import bind
from models.kernels.choose import Choice, Need, choose, preferred_block_size
from models.kernels.environment import probe
from models.load import load_decoder
from models.populate import Populating, Rows
from server.cache.planner import CachePlan
from server.config import ConfigError, EngineConfig, Quantization
from server.device_rows import DeviceRows
from server.sampling import Launched, Sampling, score, scores
from server.sequence import ScheduledBatch, StepResult
from server.step_tensors import StepTensors

POPULATED_TOKENS, POPULATED_STATES = 1 << 14, 64  # whose memory shall be there before they are
POPULATED_S = 2.0  # at most, before the first request

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_device(config: EngineConfig) -> torch.device:
    """The device asked for, or a GPU where there is one."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch sees no CUDA device here")
    if config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(config.device)


def choose_dtype(config: EngineConfig, device: torch.device) -> torch.dtype:
    """The dtype asked for, or bfloat16 on a GPU and float32 on a CPU."""
    if config.dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return DTYPES[config.dtype]


class Runner:
    """Owns the weights and the cache tensors. rows: the bytes of these, once they are allocated.

    Args:
        dtype: of weights, keys and values. state_dtype: of recurrent states between steps.
        quantization: of the matrices of weights.

    Raises:
        ModelError: the checkpoint cannot be read.
        ConfigError: no kernel here reads such weights.
    """

    def __init__(
        self,
        directory: Path,
        *,
        dtype: torch.dtype,
        device: torch.device,
        state_dtype: torch.dtype = torch.float32,
        quantization: Quantization = "none",
    ) -> None:
        self.device = device
        self.dtype, self.state_dtype, self.quantization = dtype, state_dtype, quantization
        self.environment = probe(device)
        self._check_quantization()
        self._graphs: DecodeGraphs | DecodeTapes | None = None
        self._last: Launched | None = None
        self._populating: Populating | None = None
        self.decoder = load_decoder(directory, dtype=dtype, device=device)
        self._sampling = Sampling(self.decoder.config.vocab_size, device)

    def _check_quantization(self) -> None:
        choice = choose("linear", self.environment, Need(str(self.dtype).removeprefix("torch.")))
        if self.quantization == "int8" and choice.backend != "numba":
            reasons = "; ".join(f"{name} {reason}" for name, reason in choice.passed_over)
            raise ConfigError(f"--quantization int8: only by the kernels in numba, which are not taken: {reasons}")

    @property
    def cache_needs(self) -> CacheNeeds:
        """Bytes that a sequence takes, as the layers declare them."""
        return self.decoder.config.cache_needs(self.dtype.itemsize, self.state_dtype.itemsize)

    def preferred_block_size(self) -> int:
        """Tokens per KV block that this machine's kernels like best."""
        name = str(self.dtype).removeprefix("torch.")
        return preferred_block_size(self.decoder.config.layers, self.environment, name)

    def row_bytes(self, block_size: int) -> tuple[int, int]:
        """Bytes of a block and of a state where both lie in one buffer."""
        rows = row_bytes(self.decoder.config, block_size, self.dtype, self.state_dtype)
        return rows.block, rows.slot

    def allocate(self, plan: CachePlan) -> tuple[Choice, ...]:
        """Allocate the cache and choose the kernels, some of which want a certain block size; returns the choices."""
        self._block_size, self._graphs = plan.block_size, None
        if self._populating is not None:
            self._populating.close()
        self._steps = StepTensors(self.device, plan.block_size)
        self._choices = choices = bind(
            self.decoder,
            self.environment,
            self.dtype,
            plan.block_size,
            self.state_dtype,
            int8=self.quantization == "int8",
        )
        self._caches = allocate_caches(
            self.decoder.config,
            CacheShape(plan.num_blocks, plan.block_size, plan.num_state_slots, plan.arena_bytes),
            dtype=self.dtype,
            device=self.device,
            state_dtype=self.state_dtype,
        )
        self.rows = DeviceRows(self._caches, self.device)
        return choices

    def populate(self, *, whole: bool = False) -> bool:
        """On a processor, have the memory of blocks and states there before they are handed out: a part at once and
        the rest behind, or the whole of it at once.

        Returns:
            Whether what was to be there at once is.
        """
        if self.device.type != "cpu":
            return True
        blocks = Rows(
            block_tensors(self._caches), from_end=False, ahead=None if whole else POPULATED_TOKENS // self._block_size
        )
        slots = Rows(state_tensors(self._caches), from_end=True, ahead=None if whole else POPULATED_STATES)
        self._populating = Populating(blocks, slots)
        return self._populating.wait(None if whole else POPULATED_S)

    @property
    def cache_layout(self) -> str:
        """What blocks and states are made of, as text."""
        return row_layout(self._caches)

    def capture(self, *, max_running: int, max_context: int) -> str | None:
        """Capture decode steps, of so many sequences of so many tokens, as CUDA graphs, on a processor as tapes.

        Returns:
            Why not, if not.
        """
        if reason := why_no_graphs(self.decoder, self._choices):
            return reason
        blocks = -(-max_context // self._block_size)
        with torch.inference_mode():
            if self.device.type == "cuda":
                graphs = DecodeGraphs(self.decoder, self._caches, largest=max_running, max_blocks=blocks)
                graphs.prepare()
                self._graphs = graphs
                return None
            self._graphs = tapes = DecodeTapes(
                self.decoder, self._caches, largest=max_running, max_blocks=blocks, block_size=self._block_size
            )
            return tapes.prepare()

    def run(self, batch: ScheduledBatch) -> StepResult:
        """Compute the step, and wait for it."""
        return self.launch(batch).result()

    @torch.inference_mode()
    def launch(self, batch: ScheduledBatch) -> Launched:
        """Begin to compute the step, behind the one before. On a processor it is done when this returns.

        Tokens of its parts that are not known yet are those which the step before it has sampled.
        """
        if self._populating is not None:
            self._populating.reach(*batch.extents)
        self._last = launched = self._launch(batch)
        if self._populating is not None:
            self._populating.rest()
        return launched

    def _launch(self, batch: ScheduledBatch) -> Launched:
        copy_rows(self._caches, batch.copies)
        forward = self._steps.fill(batch)
        self._take_unknown(batch, forward)
        if scores(batch):
            hidden = self.decoder.hidden(forward, self._caches)
            launched = self._sampling.draw(batch, self.decoder.logits(hidden[forward.logit_rows]))
            launched.scored = score(batch, self.decoder, hidden)
        elif self._graphs is not None and self._graphs.takes(forward):
            launched = self._sampling.draw(batch, self._graphs.run(forward))
        else:
            launched = self._sampling.draw(batch, self.decoder(forward, self._caches))
        return launched

    def _take_unknown(self, batch: ScheduledBatch, forward: ForwardBatch) -> None:
        """Put the tokens that only the device knows yet where they belong."""
        unknown = [number for number, part in enumerate(batch.parts) if part.sequence.num_unknown]
        if not unknown:
            return
        assert self._last is not None, "a token is unknown, but none was sampled"
        places = [self._last.rows[batch.parts[number].sequence.request_id] for number in unknown]
        rows = forward.query_start[unknown].to(self.device)
        forward.token_ids[rows] = self._last.tokens[torch.tensor(places, device=self.device)]
