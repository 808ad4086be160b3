"""Which prompts fit, and which were cut: by us, or by a server that says that it read fewer tokens than it got."""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

from evals.config import ConfigError, RunStoppedError


@dataclass(frozen=True, slots=True)
class Needed:
    """What one request needs, in tokens. key: tells its prompt from others; place: of the request in its document."""

    task: str
    doc_id: int
    place: int
    key: Hashable
    num_prompt: int
    num_answer: int

    def __str__(self) -> str:
        return f"task {self.task}, document {self.doc_id}"


class Cuts:
    """Keeps account of all requests. `are_known`: somebody counts tokens."""

    def __init__(self, limit: int, model: str, *, are_allowed: bool) -> None:
        self._limit, self._model, self._are_allowed = limit, model, are_allowed
        self._by_key: dict[Hashable, list[Needed]] = {}
        self._cut: dict[Needed, None] = {}  # in the order in which they were found
        self.are_known = True

    def add(self, needed: Iterable[Needed]) -> None:
        """Raises:
        ConfigError: a request does not fit, and must not be cut.
        """
        for one in needed:
            if one.num_answer >= self._limit:
                raise ConfigError(
                    f"--tasks: {one} asks for {one.num_answer:,} tokens, which leaves no room for a prompt in the "
                    f"{self._limit:,} of {self._model}"
                )
            self._by_key.setdefault(one.key, []).append(one)
            if one.num_prompt + one.num_answer > self._limit:
                self._cut[one] = None
        if self._cut and not self._are_allowed:
            first = next(iter(self._cut))
            others = f"; {len(self._cut) - 1} more requests are too long" if len(self._cut) > 1 else ""
            raise ConfigError(
                f"--tasks: {first} has a prompt of {first.num_prompt:,} tokens and asks for {first.num_answer:,}, more "
                f"than the {self._limit:,} of {self._model} together{others}. Nothing was asked; --truncate allow cuts "
                "the begins of prompts"
            )

    def name(self, keys: Sequence[Hashable]) -> str:
        """Whose requests these are, for an error."""
        named = [str(self._by_key[key][0]) for key in keys if key in self._by_key]
        return named[0] if named else "a window of a text"

    def check_read(self, keys: Sequence[Hashable], num_read: int, reader: str) -> None:
        """Compare what was read of some prompts, sent together, with what they have.

        Raises:
            RunStoppedError: it is less, and must not be.
        """
        if any(key not in self._by_key for key in keys):
            return
        # Of what is known to be cut, what lm-eval leaves is whole.
        firsts = [self._by_key[key][0] for key in keys]
        num_whole = sum(min(one.num_prompt, self._limit - one.num_answer) for one in firsts)
        if num_read >= num_whole:
            return
        if not self._are_allowed:
            raise RunStoppedError(
                f"{self.name(keys)}: {reader} cut the prompt: it has {num_whole:,} tokens, of which {num_read:,} were "
                "read. --truncate allow lets that pass"
            )
        # Of several that were sent together nobody knows which: all count.
        self._cut.update((one, None) for key in keys for one in self._by_key[key])

    def count(self, task: str) -> int | None:
        """Requests of a task whose prompts were cut; None where nobody knows."""
        return sum(one.task == task for one in self._cut) if self.are_known else None
