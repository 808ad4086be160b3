"""What the GPUs took for each answer: their own counter of energy, shared among the requests that were under way.

The counter runs on whatever the GPU does, its idling too, and NVML renews it some ten times a second: the figure of
one short answer says little, the mean of many says much.
"""

import contextlib
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

from evals.config import RunConfig

Counter = Callable[[], float | None]  # joules since some moment; None where it cannot be read
JOULES_PER_COUNT = 1e-3  # NVML counts millijoules


@dataclass(slots=True, eq=False)
class Spent:
    """joules: of one request so far; None where the counter could not be read in its time."""

    joules: float | None = 0.0


class EnergyLedger:
    """Splits what the counter advanced between two events evenly among the requests that were under way.

    counter: None where there is nothing to read; then every request's energy is None.
    """

    def __init__(self, counter: Counter | None) -> None:
        self._counter = counter
        self._under_way: list[Spent] = []
        self._last: float | None = None

    @contextlib.contextmanager
    def watch(self) -> Iterator[Spent]:
        """Energy while in the context."""
        self._settle()
        spent = Spent()
        self._under_way.append(spent)
        try:
            yield spent
        finally:
            self._settle()
            self._under_way.remove(spent)

    def _settle(self) -> None:
        before, self._last = self._last, self._counter() if self._counter else None
        # Backwards: the driver was loaded anew.
        if before is None or self._last is None or self._last < before:
            for spent in self._under_way:
                spent.joules = None
            return
        for spent in self._under_way:
            if spent.joules is not None:
                spent.joules += (self._last - before) / len(self._under_way)


def ledger_for(config: RunConfig) -> EnergyLedger:
    """One that counts where the GPUs of this machine are the ones that answer."""
    wanted = config.energy == "local" or (config.energy == "auto" and is_local(config.root_url))
    return EnergyLedger(open_counter() if wanted else None)


def is_local(url: str) -> bool:
    """Whether the address is one by which this machine calls itself."""
    host = (urlsplit(url).hostname or "").lower()
    own = {"localhost", "::1", "0.0.0.0", socket.gethostname().lower()}
    return host in own or host.startswith("127.")


def open_counter() -> Counter | None:
    """The sum over all GPUs that NVML shows; None without the driver, its package or a GPU that counts."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        devices = [pynvml.nvmlDeviceGetHandleByIndex(number) for number in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError:
        return None

    def read() -> float | None:
        try:
            counts = [float(pynvml.nvmlDeviceGetTotalEnergyConsumption(device)) for device in devices]
        except pynvml.NVMLError:
            return None
        return sum(counts) * JOULES_PER_COUNT

    return read if devices and read() is not None else None
