"""How long steps take, as the last ones did."""

KEPT = 0.7  # of what is known, at every step that says something new


class StepSpeed:
    """A step takes so much whatever it prefills, for weights and decodes, and so much for each token of prefill.

    Without the first part short prompts would seem to take many times longer for each token than long ones: the step
    in which they are read is mostly that of the decodes beside them.
    """

    def __init__(self) -> None:
        self._fixed_s: float | None = None
        # Sums over steps with prefill, the latest weighing most, of the line through what is fixed that is nearest.
        self._products, self._squares = 0.0, 0.0

    def note(self, num_prefilled: int, seconds: float) -> None:
        """A step with so many tokens of prefill has taken so long."""
        if seconds <= 0:
            return
        if not num_prefilled:
            self._fixed_s = seconds if self._fixed_s is None else KEPT * self._fixed_s + (1 - KEPT) * seconds
            return
        # A step cannot have read its tokens in no time, whatever others have taken.
        marginal_s = max(seconds - (self._fixed_s or 0.0), seconds / 10)
        self._products = KEPT * self._products + num_prefilled * marginal_s
        self._squares = KEPT * self._squares + num_prefilled * num_prefilled

    @property
    def prefill_rate(self) -> float | None:
        """Tokens of prefill per second, beside what is fixed; None before the first."""
        return self._squares / self._products if self._products else None

    def num_tokens_in(self, seconds: float) -> int | None:
        """Tokens of prefill for a step that takes so long; None while nothing is known."""
        rate = self.prefill_rate
        return None if rate is None else max(0, int((seconds - (self._fixed_s or 0.0)) * rate))
