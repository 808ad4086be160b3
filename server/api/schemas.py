"""What requests may hold. Unknown fields are refused, and so is an option that is not implemented."""

import json
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Protocol, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    StrictBool,
    StrictInt,
    Tag,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from server.generation_config import MAX_REPETITION

MAX_STOPS = 16
MAX_STOP_CHARS = 256
MAX_CHOICES = 128
MAX_COMPLETIONS = 1024  # of all prompts of a request together
MAX_PRIORITY = 1000
MAX_TIMEOUT_S = 86_400
MAX_KEY_CHARS = 256  # of cache_salt and prompt_cache_key
MAX_MARKS = 4  # Anthropic's limit for such boundaries
TTL_S = {"5m": 300.0, "1h": 3600.0}
MAX_LOGPROBS = 20  # of the likeliest tokens that can be told of at each place; OpenAI's for chats
MAX_BIASES = 1024
MAX_BIAS = 100.0
INT32 = 2**31  # the engine's integers: token ids and top_k are below

Neutral = Mapping[str, tuple[Any, ...]]

# Fields of OpenAI's API that are not implemented, with the values at which they change nothing.
NEUTRAL: Neutral = {
    "best_of": (1, None),
    "suffix": ("", None),
    "response_format": ({"type": "text"}, None),
    "tools": ([], None),
    "tool_choice": ("none", "auto", None),
    "parallel_tool_calls": (True, False, None),
    "functions": ([], None),
    "function_call": ("none", "auto", None),
    "modalities": (["text"], None),
    "service_tier": ("auto", "default", None),
    "store": (False, None),
    "metadata": ({}, None),
}

# The same of a message: an answer's message holds them, and comes back in the next request.
NEUTRAL_IN_MESSAGE: Neutral = {
    "name": (None, ""),
    "refusal": (None, ""),
    "tool_calls": (None, []),
    "function_call": (None,),
    "audio": (None,),
    "annotations": (None, []),
}


def _whole_text(text: str) -> str:
    """Refuse half of a surrogate pair, which JSON can write and no text can hold."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PydanticCustomError("lone_surrogate", "holds a lone surrogate, which is not a character") from error
    return text


# The alternatives of a union, chosen before any is tried: else each that does not fit would report its own faults.
TEXT, LIST, LIST_OF_TEXTS, LIST_OF_LISTS = "<text>", "<list>", "<list of texts>", "<list of lists>"
UNION_STEPS = frozenset((TEXT, LIST, LIST_OF_TEXTS, LIST_OF_LISTS))


def text_or_list(content: Any) -> str:
    return LIST if isinstance(content, list) else TEXT


def _prompt_kind(prompt: Any) -> str:
    """What the first element is, the others must be."""
    if not isinstance(prompt, list):
        return TEXT
    match prompt[:1]:
        case [str()]:
            return LIST_OF_TEXTS
        case [list()]:
            return LIST_OF_LISTS
    return LIST


Text = Annotated[str, AfterValidator(_whole_text)]
Temperature = Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)]
Probability = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS), AfterValidator(_whole_text)]
CacheSalt = Annotated[str, Field(min_length=1, max_length=MAX_KEY_CHARS), AfterValidator(_whole_text)]
ContextName = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
Ttl = Literal["5m", "1h"]
Positive = Annotated[StrictInt, Field(ge=1)]
Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
NumTop = Annotated[StrictInt, Field(ge=0, le=MAX_LOGPROBS)]
TokenId = Annotated[StrictInt, Field(ge=0, lt=INT32)]
# Lists end at the first wrong element: to tell of each of a million would stop the server for a minute.
TokenIds = Annotated[list[TokenId], Field(fail_fast=True)]


class Strict(BaseModel):
    """`neutral`: fields that are not implemented, with the values at which they are accepted and ignored."""

    model_config = ConfigDict(extra="forbid")
    neutral: ClassVar[Neutral] = {}

    @model_validator(mode="before")
    @classmethod
    def refuse_unimplemented(cls, content: Any) -> Any:
        """Take out fields that are not implemented where they would change nothing; refuse them elsewhere."""
        if not isinstance(content, dict):
            return content
        kept: dict[str, Any] = {}
        num_unknown = 0
        for name, value in content.items():
            if name in cls.neutral:
                if not _is_one_of(value, cls.neutral[name]):
                    neutral = json.dumps(cls.neutral[name][0])
                    raise ValueError(f"{name}: is not supported; leave it out or send {neutral}")
                continue
            num_unknown += name not in cls.model_fields
            # One unknown field is enough to be told of.
            if name in cls.model_fields or num_unknown == 1:
                kept[name] = value
        return kept


def _is_one_of(value: Any, choices: tuple[Any, ...]) -> bool:
    """By type as well: to Python 0 is False and 1 is True, but `logprobs` 0 asks for something."""
    return any(type(value) is type(choice) and value == choice for choice in choices)


class StreamOptions(Strict):
    include_usage: StrictBool = False


class GenerationRequest(Strict):
    """The fields that chats and plain completions share. None means the default, as in OpenAI's API."""

    extensions: ClassVar[str] = (
        "top_k, min_p, repetition_penalty, min_tokens, ignore_eos, stop_token_ids, prompt_logprobs, cache_salt, "
        "context, priority and timeout_s are extensions of OpenAI's API"
    )
    neutral: ClassVar[Neutral] = NEUTRAL

    model: Text
    n: Annotated[StrictInt, Field(ge=1, le=MAX_CHOICES)] | None = None
    max_tokens: Annotated[StrictInt, Field(ge=0)] | None = None
    temperature: Temperature | None = None
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    top_k: Annotated[StrictInt, Field(ge=-1, lt=INT32)] | None = None
    min_p: Probability | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=MAX_REPETITION, allow_inf_nan=False)] | None = None
    # By token id; JSON's keys are texts.
    logit_bias: dict[int, float] | None = None
    min_tokens: Annotated[StrictInt, Field(ge=0)] | None = None
    seed: Annotated[StrictInt, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Annotated[list[StopString], Field(max_length=MAX_STOPS, fail_fast=True)] | None = None
    stop_token_ids: TokenIds | None = None
    ignore_eos: StrictBool = False
    prompt_logprobs: NumTop | None = None
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None
    user: Text | None = None
    # Only requests of the same salt find what others have computed. An empty one would look like a secret and be none.
    priority: Annotated[StrictInt, Field(ge=-MAX_PRIORITY, le=MAX_PRIORITY)] | None = None
    timeout_s: Annotated[float, Field(gt=0, le=MAX_TIMEOUT_S, allow_inf_nan=False)] | None = None
    cache_salt: CacheSalt | None = None
    # What comes before the messages or the prompt: POST /v1/fathom/contexts.
    context: ContextName | None = None
    # OpenAI's hint which of many servers has a prompt in its cache. One server has one cache, so here it has no effect;
    # a router before several may go by it.
    prompt_cache_key: Annotated[str, Field(max_length=MAX_KEY_CHARS), AfterValidator(_whole_text)] | None = None

    @model_validator(mode="after")
    def check_stream_options(self) -> "GenerationRequest":
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options: is only allowed when stream is true")
        return self

    @model_validator(mode="after")
    def check_prompt_logprobs(self) -> "GenerationRequest":
        if self.prompt_logprobs is not None and self.stream:
            raise ValueError("prompt_logprobs: is not supported where stream is true")
        if self.max_tokens == 0 and self.prompt_logprobs is None and not self.echoes:
            raise ValueError("max_tokens: must be at least 1, unless echo or prompt_logprobs asks for the prompt")
        return self

    @property
    def echoes(self) -> bool:
        """Whether the prompt is given back with the answer."""
        return False

    @property
    def num_top(self) -> int | None:
        """Of how many of the likeliest tokens the log-probability is wanted, besides each one's own; None: of none."""
        raise NotImplementedError

    @field_validator("logit_bias", mode="before")
    @classmethod
    def check_biases(cls, biases: Any) -> Any:
        """One fault is told, not each of a thousand."""
        if not isinstance(biases, dict):
            return biases
        if len(biases) > MAX_BIASES:
            raise PydanticCustomError("too_many", f"has {len(biases)} entries; at most {MAX_BIASES} may be")
        for key, bias in biases.items():
            if not (isinstance(key, str) and key.isascii() and key.isdigit() and int(key[:11]) < INT32):
                raise PydanticCustomError("no_token_id", f"must have token ids as keys, not {key[:40]!r}")
            if isinstance(bias, bool) or not isinstance(bias, int | float) or not -MAX_BIAS <= bias <= MAX_BIAS:
                limits = f"numbers from -{MAX_BIAS:g} to {MAX_BIAS:g}"
                raise PydanticCustomError("no_bias", f"must have {limits} as values, not {bias!r:.40}")
        return biases

    @field_validator("stop", mode="before")
    @classmethod
    def one_stop_is_a_list_of_one(cls, stop: Any) -> Any:
        return [stop] if isinstance(stop, str) else stop

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


class CacheControl(Strict):
    """A boundary: what is remembered up to the end of this part is to be found again (Anthropic's convention)."""

    type: Literal["ephemeral"]
    ttl: Ttl = "5m"


class TextPart(Strict):
    type: Literal["text"]
    text: Text
    cache_control: CacheControl | None = None


TextParts = Annotated[list[TextPart], Field(fail_fast=True)]


class Message(Strict):
    neutral: ClassVar[Neutral] = NEUTRAL_IN_MESSAGE

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[
        Annotated[Text, Tag(TEXT)] | Annotated[TextParts, Tag(LIST)],
        Discriminator(text_or_list),
    ]

    @property
    def marks(self) -> list[tuple[int, float]]:
        """After how many characters of the content something is marked, and for how many seconds."""
        found, num_chars = [], 0
        for part in self.content if isinstance(self.content, list) else []:
            num_chars += len(part.text)
            if part.cache_control is not None:
                found.append((num_chars, TTL_S[part.cache_control.ttl]))
        return found

    def as_template_input(self) -> dict[str, str]:
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        # `developer` is OpenAI's newer word for `system`; chat templates know the older one.
        return {"role": "system" if self.role == "developer" else self.role, "content": content}


def _few_marks(messages: list[Message]) -> list[Message]:
    count = sum(len(message.marks) for message in messages)
    if count > MAX_MARKS:
        raise PydanticCustomError(
            "too_many_marks", f"hold {count} parts with cache_control; at most {MAX_MARKS} may be"
        )
    return messages


Messages = Annotated[list[Message], Field(min_length=1, fail_fast=True), AfterValidator(_few_marks)]


class ChatRequest(GenerationRequest):
    neutral: ClassVar[Neutral] = {**NEUTRAL, "echo": (False, None)}

    messages: Messages
    max_completion_tokens: Positive | None = None
    logprobs: StrictBool | None = None
    top_logprobs: NumTop | None = None

    @model_validator(mode="after")
    def check_top_logprobs(self) -> "ChatRequest":
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs: is only allowed when logprobs is true")
        return self

    @property
    def num_top(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def most_tokens(self) -> int | None:
        """How many may be generated, by either of the two names."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @model_validator(mode="after")
    def check_max_tokens(self) -> "ChatRequest":
        both = self.max_tokens is not None and self.max_completion_tokens is not None
        if both and self.max_tokens != self.max_completion_tokens:
            raise ValueError("max_completion_tokens: contradicts max_tokens; send one of them")
        return self


class CompletionRequest(GenerationRequest):
    """`prompt`: one text, or the token ids of one; or a list of several of a kind."""

    neutral: ClassVar[Neutral] = {**NEUTRAL, "top_logprobs": (0, None)}

    echo: StrictBool | None = None
    logprobs: NumTop | None = None
    prompt: Annotated[
        Annotated[Text, Tag(TEXT)]
        | Annotated[TokenIds, Tag(LIST)]
        | Annotated[list[Text], Field(fail_fast=True), Tag(LIST_OF_TEXTS)]
        | Annotated[list[TokenIds], Field(fail_fast=True), Tag(LIST_OF_LISTS)],
        Discriminator(_prompt_kind),
    ]

    @model_validator(mode="after")
    def check_num_prompts(self) -> "CompletionRequest":
        if self.prompt == []:
            raise ValueError(f"prompt: must not be empty; a list holds 1 to {MAX_COMPLETIONS} prompts")
        num_completions = len(self.prompts) * (self.n or 1)
        if num_completions > MAX_COMPLETIONS:
            asked = f"{len(self.prompts)} prompts, and n {self.n or 1}, ask for {num_completions} completions"
            raise ValueError(f"prompt: {asked}; at most {MAX_COMPLETIONS} may be")
        return self

    @property
    def echoes(self) -> bool:
        return bool(self.echo)

    @property
    def num_top(self) -> int | None:
        return self.logprobs

    @property
    def prompts(self) -> list[str | list[int]]:
        """All prompts, which are of a kind: one where a text or its token ids were sent alone."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        token_ids = [each for each in self.prompt if isinstance(each, int)]
        return [token_ids] if token_ids else [each for each in self.prompt if not isinstance(each, int)]


class HasSources(Protocol):
    """`prompt` and `messages`: of these it has one."""

    @property
    def prompt(self) -> object: ...
    @property
    def messages(self) -> object: ...


Source = TypeVar("Source", bound=HasSources)


def one_source(request: Source) -> Source:
    """A validator of what has either a prompt or messages."""
    if (request.prompt is None) == (request.messages is None):
        raise ValueError("prompt: give exactly one of prompt and messages")
    return request


class TokenizeRequest(Strict):
    """Either `prompt` or `messages`. `model` may be left out where one model is served."""

    model: Text | None = None
    prompt: Text | None = None
    messages: Messages | None = None
    add_special_tokens: StrictBool = True
    add_generation_prompt: StrictBool = True

    check_one_source = model_validator(mode="after")(one_source)


class DetokenizeRequest(Strict):
    model: Text | None = None
    tokens: TokenIds
