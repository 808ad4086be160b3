"""Whether what was computed is found sooner than computed again: bytes against tokens, by measured rates."""

from dataclasses import dataclass

HOST_BYTES_PER_S = 5e9  # until it is measured
# What a disk is taken to give until it is measured, and always when it is decided what to write: files that were read
# just now come from the system's memory.
DISK_BYTES_PER_S = 500e6
LEAST_MEASURED = 1 << 20  # bytes: of less, the time is that of the call
WEIGHT = 0.3  # of the newest measurement


@dataclass(slots=True)
class Costs:
    """prefill_rate: tokens per second, None while it is not known. host_rate, disk_rate: bytes per second.

    While nothing is known of prefill, what is there is used.
    """

    prefill_rate: float | None = None
    host_rate: float = HOST_BYTES_PER_S
    disk_rate: float | None = None

    def note_host(self, num_bytes: int, seconds: float) -> None:
        if num_bytes >= LEAST_MEASURED and seconds > 0:
            self.host_rate += WEIGHT * (num_bytes / seconds - self.host_rate)

    def note_disk(self, num_bytes: int, seconds: float) -> None:
        if num_bytes >= LEAST_MEASURED and seconds > 0:
            rate = num_bytes / seconds
            self.disk_rate = rate if self.disk_rate is None else self.disk_rate + WEIGHT * (rate - self.disk_rate)

    def host_pays(self, token_bytes: int) -> bool:
        """Whether keys and values come back from the host's memory sooner than they are computed."""
        return self.prefill_rate is None or token_bytes * self.prefill_rate < self.host_rate

    def disk_pays(self, token_bytes: int) -> bool:
        """The same of the disk, asked before they are written; not where it is not known yet."""
        return self.prefill_rate is not None and token_bytes * self.prefill_rate < DISK_BYTES_PER_S

    def reading_pays(self, *, host_bytes: int, disk_bytes: int, num_tokens: int) -> bool:
        """Whether these bytes are read sooner than so many tokens are computed."""
        if self.prefill_rate is None:
            return True
        read_s = host_bytes / self.host_rate + disk_bytes / (self.disk_rate or DISK_BYTES_PER_S)
        return read_s < num_tokens / self.prefill_rate
