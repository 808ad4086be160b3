"""Where a training run stands: its share of tokens and time, the learning rate that goes with it, the loss curve."""

import json
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from scripts.embedded_recipes import Stage


def schedule(progress: float) -> float:
    """Learning rate factor over a round: a short warm-up, then linearly down.

    A plateau was tried first: on it the accuracy on questions fell again after a quarter of an hour.
    """
    return min(1.0, progress / 0.005 + 0.02, max(0.01, (1.0 - progress) / 0.95))


def relative_cost(stages: Sequence[Stage]) -> float:
    """What stages cost in comparable units: tokens, those of long sequences more."""
    return sum(stage.tokens * (1 + stage.length / 2000) for stage in stages)


def seconds_left_for(stages: Sequence[Stage], seconds: float) -> float:
    """The first stage's share of the seconds that are left for all of these."""
    return seconds * relative_cost(stages[:1]) / relative_cost(stages)


@dataclass(slots=True)
class Progress:
    """Where a round stands. Seconds count as progress where the tokens come too slowly."""

    started: float
    total_tokens: int
    max_seconds: float
    tokens: int = 0

    @property
    def elapsed(self) -> float:
        return time.perf_counter() - self.started

    @property
    def fraction(self) -> float:
        return min(1.0, max(self.tokens / self.total_tokens, self.elapsed / self.max_seconds))


@dataclass(slots=True)
class Curve:
    """The loss curve over all rounds: means over the steps since the last point."""

    every_s: float
    stage: int = -1
    tokens: int = 0
    started_s: float = field(default_factory=time.perf_counter)
    points: list[dict[str, float]] = field(default_factory=list)
    _losses: list[float] = field(default_factory=list)
    _hits: list[float] = field(default_factory=list)
    _recent: deque[float] = field(default_factory=lambda: deque(maxlen=10))
    _last_s: float = field(default_factory=time.perf_counter)

    def add(self, loss: float, accuracy: float, tokens: int) -> None:
        self.tokens += tokens
        self._losses.append(loss)
        self._hits.append(accuracy)
        self._recent.append(accuracy)
        if time.perf_counter() - self._last_s < self.every_s:
            return
        self._last_s = time.perf_counter()
        point = {
            "stage": self.stage,
            "tokens": self.tokens,
            "seconds": round(self._last_s - self.started_s, 1),
            "loss": round(sum(self._losses) / len(self._losses), 4),
            "accuracy": round(sum(self._hits) / len(self._hits), 4),
        }
        self._losses, self._hits = [], []
        self.points.append(point)
        print(json.dumps(point), flush=True)

    def reaches(self, accuracy: float | None) -> bool:
        """Whether the last ten steps' answers were as good as that."""
        return accuracy is not None and len(self._recent) == 10 and sum(self._recent) / 10 > accuracy

    def begin_stage(self) -> None:
        self.stage += 1
        self._recent.clear()
