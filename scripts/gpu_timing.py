"""Medians of repeated calls, and the two rates that nothing on a device exceeds: of copying and of multiplying."""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

WARM_UPS = 3
MIN_REPEATS, MAX_REPEATS = 3, 9
REPEAT_S = 0.03  # calls are timed in runs of at least so long: an event's own cost vanishes in it
ROW_S = 1.5  # what all repeats of one row may take together
MAX_CALLS = 100  # in one run, so that a GPU that is held back has room for all their kernels in its queue
MAX_HOLD_S = 0.2
CYCLES_PER_S = 2e9  # about: a GPU is held back for a little longer or shorter than was asked


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of one call: the median of the repeats, the fastest and the slowest."""

    median_s: float
    fastest_s: float
    slowest_s: float

    @property
    def spread(self) -> float:
        return (self.slowest_s - self.fastest_s) / self.median_s


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def run_s(call: Callable[[], object], calls: int, device: torch.device, *, hold_s: float = 0.0) -> float:
    """Seconds per call of a run of calls, by the device's own clock where it has one.

    hold_s: how long a GPU is kept from beginning, so that it finds the whole run in its queue.
    """
    if device.type != "cuda":
        started_s = time.perf_counter()
        for _ in range(calls):
            call()
        return (time.perf_counter() - started_s) / calls
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    if hold_s:
        torch.cuda._sleep(round(hold_s * CYCLES_PER_S))
    begin.record()
    for _ in range(calls):
        call()
    end.record()
    torch.cuda.synchronize(device)
    return begin.elapsed_time(end) / 1e3 / calls


def _waited_s(call: Callable[[], object], calls: int, device: torch.device) -> float:
    """Seconds per call until the device has done them all, by the host's clock."""
    synchronize(device)
    started_s = time.perf_counter()
    for _ in range(calls):
        call()
    synchronize(device)
    return (time.perf_counter() - started_s) / calls


@torch.inference_mode()
def time_calls(call: Callable[[], object], device: torch.device, *, held: bool = False) -> Timing:
    """Time a call that is made again and again, what it needs on its first times aside.

    held: the GPU begins when all calls of a run are in its queue, which leaves out what Python takes to make them. A
    call that waits for the GPU is timed as if it were not held. Without a GPU it makes no difference.
    """
    _waited_s(call, WARM_UPS, device)
    once_s = max(_waited_s(call, 1, device), 1e-9)
    calls = min(MAX_CALLS, math.ceil(REPEAT_S / once_s))
    # Long enough to queue them all by the time that they took with all their waiting.
    hold_s = min(MAX_HOLD_S, calls * once_s) if held else 0.0
    repeats = min(MAX_REPEATS, max(MIN_REPEATS, int(ROW_S / (calls * once_s))))
    times_s = sorted(run_s(call, calls, device, hold_s=hold_s) for _ in range(repeats))
    return Timing(statistics.median(times_s), times_s[0], times_s[-1])


def time_copy(copy_bytes: int, device: torch.device) -> tuple[Timing, int]:
    """Time a copy from one buffer to another; returns also the bytes it moves, read and written."""
    source = torch.randint(0, 256, (copy_bytes,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return time_calls(lambda: target.copy_(source), device), 2 * copy_bytes


def time_matmul(size: int, dtype: torch.dtype, device: torch.device) -> tuple[Timing, int]:
    """Time a product of square random matrices; returns also its floating-point operations."""
    left, right, out = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(3))
    return time_calls(lambda: torch.mm(left, right, out=out), device), 2 * size**3
