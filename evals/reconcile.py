"""The three lengths of a prompt: asked for, counted by the client, and counted by the server. A prompt that was cut is
no answer to the question, so where the server saw less than was sent, the sample fails.

Knows lengths and no text. A server that counts for the client (POST /tokenize) is held to its own count; of others it
is known how much text a token can hold at most.
"""

from collections import defaultdict
from dataclasses import dataclass

from evals.contexts import Asked, Context
from evals.prompts import build_messages
from evals.records import SERVED, Permission, Unit
from evals.tokens import TokenCounter
from loadtest.wire import Usage

# Documents are counted one by one. The sum was the whole prompt's count, to the token, for each of nine tokenizers and
# seven datasets; one that merges across every fourth border, and a template that is counted with a begin and sent
# without, are still let pass. No document is that short.
SLACK_TOKENS, DOCUMENTS_PER_SLACK_TOKEN = 8, 4
# The densest document of those datasets has 6.4 characters to a token, by a vocabulary made from that very text.
MAX_CHARACTERS_PER_TOKEN = 10
LEAST_CHARACTERS = 512  # by which a prompt is longer than another: fewer may be an odd word or a ruled line


@dataclass(frozen=True, slots=True)
class Lengths:
    """Of one prompt before it is sent. expected: tokens of all of it, None where the endpoint counts none."""

    requested: str
    expected: int | None
    num_documents: int
    num_characters: int


class Reconciler:
    """Compares the lengths of one run's prompts, and each with what the same question reached when it was shorter."""

    def __init__(self, counter: TokenCounter, unit: Unit) -> None:
        self._counter, self._unit = counter, unit
        self._frames: dict[Permission, int] = {}
        self._reached: dict[tuple[str, Permission, str], list[tuple[int, int]]] = defaultdict(list)

    async def measure(self, asked: Asked, budget: int, context: Context, num_characters: int) -> Lengths:
        """Costs one count for each question, and three for each permission.

        Raises:
            ConfigError: the endpoint counted before and does no longer.
        """
        unit = "documents" if self._unit == "documents" else "tokens of documents"
        requested = f"{budget:,} {unit}" if budget else f"{len(context.documents):,} documents"
        expected = None
        if self._counter.source == SERVED:
            expected = await self._frame(asked) + await self._counter.count_question(asked.question.text)
            expected += context.tokens
        return Lengths(requested, expected, len(context.documents), num_characters)

    async def _frame(self, asked: Asked) -> int:
        """Tokens of the instruction and of the template around it and the question."""
        if asked.permission not in self._frames:
            question = asked.question.text
            whole = await self._counter.count_chat(build_messages(asked.permission, (), question))
            self._frames[asked.permission] = whole - await self._counter.count_question(question)
        return self._frames[asked.permission]

    def cut(self, asked: Asked, lengths: Lengths, usage: Usage | None) -> str | None:
        """Why the whole prompt cannot have reached the model; None where it can, or the server does not say."""
        if usage is None:
            return None
        served = usage.prompt_tokens
        why = _too_few(lengths, served) or self._too_dense(asked, lengths, served)
        self._reached[_key(asked)].append((lengths.num_characters, served))
        return why

    def _too_dense(self, asked: Asked, lengths: Lengths, served: int) -> str | None:
        """More text to a token than any has, in the whole prompt or in what it has beyond a shorter one."""
        shorter = [*self._reached[_key(asked)], *self._reached[_key(asked, "closed")]]
        comparable = [one for one in shorter if lengths.num_characters - one[0] >= LEAST_CHARACTERS]
        for characters, tokens in [*sorted(comparable, reverse=True), (0, 0)]:
            more = lengths.num_characters - characters
            if (served - tokens) * MAX_CHARACTERS_PER_TOKEN < more:
                beyond = f" beyond the {tokens:,} of a prompt of {characters:,} characters" if characters else ""
                return (
                    f"the server cut the prompt: {lengths.requested} were asked for, the prompt has "
                    f"{lengths.num_characters:,} characters, and usage.prompt_tokens counts {served:,} tokens in it: "
                    f"above {MAX_CHARACTERS_PER_TOKEN} characters to a token{beyond}"
                )
        return None


def _too_few(lengths: Lengths, served: int) -> str | None:
    expected = lengths.expected
    if expected is None or served >= expected - SLACK_TOKENS - lengths.num_documents // DOCUMENTS_PER_SLACK_TOKEN:
        return None
    return (
        f"the server cut the prompt: {lengths.requested} were asked for, the prompt has {expected:,} tokens by the "
        f"client's count, and usage.prompt_tokens counts {served:,} tokens in it"
    )


def _key(asked: Asked, condition: str | None = None) -> tuple[str, Permission, str]:
    return asked.question.id, asked.permission, condition or asked.condition
