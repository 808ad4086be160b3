"""What requests may hold. Unknown fields are refused, and so is an option that is not implemented."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, field_validator, model_validator

MAX_STOPS = 16
MAX_STOP_CHARS = 256

# Fields of OpenAI's API that are not implemented, with the values at which they change nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1, None),
    "best_of": (1, None),
    "echo": (False, None),
    "frequency_penalty": (0, None),
    "presence_penalty": (0, None),
    "logit_bias": ({}, None),
    "logprobs": (False, None),
    "top_logprobs": (0, None),
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

Temperature = Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)]
Probability = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]
Positive = Annotated[StrictInt, Field(ge=1)]
TokenId = Annotated[StrictInt, Field(ge=0)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class StreamOptions(Strict):
    include_usage: StrictBool = False


class GenerationRequest(Strict):
    """The fields that chats and plain completions share. None means the default, as in OpenAI's API."""

    extensions: ClassVar[str] = "top_k, min_p, ignore_eos and stop_token_ids are extensions of OpenAI's API"

    model: str
    max_tokens: Positive | None = None
    temperature: Temperature | None = None
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    top_k: Annotated[StrictInt, Field(ge=-1)] | None = None
    min_p: Probability | None = None
    seed: Annotated[StrictInt, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Annotated[list[StopString], Field(max_length=MAX_STOPS)] | None = None
    stop_token_ids: list[TokenId] | None = None
    ignore_eos: StrictBool = False
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None

    @model_validator(mode="before")
    @classmethod
    def refuse_unimplemented(cls, content: Any) -> Any:
        """Take out fields that are not implemented where they would change nothing; refuse them elsewhere."""
        if not isinstance(content, dict):
            return content
        for name in NEUTRAL.keys() & content.keys():
            if content[name] not in NEUTRAL[name]:
                raise ValueError(f"{name}: is not supported; leave it out or send {NEUTRAL[name][0]!r}")
        return {name: value for name, value in content.items() if name not in NEUTRAL}

    @model_validator(mode="after")
    def check_stream_options(self) -> "GenerationRequest":
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options: is only allowed when stream is true")
        return self

    @field_validator("stop", mode="before")
    @classmethod
    def one_stop_is_a_list_of_one(cls, stop: Any) -> Any:
        return [stop] if isinstance(stop, str) else stop

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


class TextPart(Strict):
    type: Literal["text"]
    text: str


class Message(Strict):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart]

    def as_template_input(self) -> dict[str, str]:
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        # `developer` is OpenAI's newer word for `system`; chat templates know the older one.
        return {"role": "system" if self.role == "developer" else self.role, "content": content}


Messages = Annotated[list[Message], Field(min_length=1)]


class ChatRequest(GenerationRequest):
    messages: Messages
    max_completion_tokens: Positive | None = None

    @model_validator(mode="after")
    def check_max_tokens(self) -> "ChatRequest":
        both = self.max_tokens is not None and self.max_completion_tokens is not None
        if both and self.max_tokens != self.max_completion_tokens:
            raise ValueError("max_completion_tokens: contradicts max_tokens; send one of them")
        return self


class CompletionRequest(GenerationRequest):
    """`prompt`: one text, or the token ids of one; a list may hold one prompt."""

    prompt: str | list[TokenId] | list[str] | list[list[TokenId]]

    @model_validator(mode="after")
    def check_single_prompt(self) -> "CompletionRequest":
        if isinstance(self.prompt, list) and not (self.prompt and isinstance(self.prompt[0], int)):
            if len(self.prompt) != 1:
                raise ValueError(f"prompt: must be one prompt, got {len(self.prompt)}; send one request for each")
            if self.prompt[0] == []:
                raise ValueError("prompt: must not be empty")
        return self

    @property
    def single_prompt(self) -> str | list[int]:
        if isinstance(self.prompt, list) and not isinstance(self.prompt[0], int):
            return self.prompt[0]
        return self.prompt


class TokenizeRequest(Strict):
    """Either `prompt` or `messages`. `model` may be left out where one model is served."""

    model: str | None = None
    prompt: str | None = None
    messages: Messages | None = None
    add_special_tokens: StrictBool = True
    add_generation_prompt: StrictBool = True

    @model_validator(mode="after")
    def check_one_source(self) -> "TokenizeRequest":
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("prompt: give exactly one of prompt and messages")
        return self


class DetokenizeRequest(Strict):
    model: str | None = None
    tokens: list[TokenId]
