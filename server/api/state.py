"""What the routes share: the hosted models and the metrics, kept on the application."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from fastapi import Request

from server.api.schemas import Message
from server.contexts import Contexts
from server.errors import ApiError, bad_request
from server.hosting import HostedModel
from server.metrics import Metrics


@dataclass(frozen=True, slots=True)
class ChatContent:
    """A chat that others go on from; the end of the last message is marked."""

    messages: list[Message]


Beginning = ChatContent | str | list[int]  # of a chat, or of a prompt as text or as token ids


@dataclass(frozen=True, slots=True)
class Served:
    """`api_keys` empty lets everybody ask."""

    hosted: Mapping[str, HostedModel]
    metrics: Metrics
    api_keys: tuple[str, ...]
    contexts: Contexts[Beginning] = field(default_factory=Contexts)


def served(request: Request) -> Served:
    state: Served = request.app.state.served
    return state


def find_model(request: Request, name: str) -> HostedModel:
    """The hosted model of that name.

    Raises:
        ApiError: 404, naming those that are served.
    """
    hosted = served(request).hosted
    if name not in hosted:
        raise ApiError(
            404,
            f"model: {name!r} is not served here; there are: {', '.join(hosted)}",
            param="model",
            code="model_not_found",
        )
    return hosted[name]


def find_model_or_only(request: Request, name: str | None) -> HostedModel:
    """The model of that name; without a name the only one.

    Raises:
        ApiError: no such model, or several and no name.
    """
    if name is not None:
        return find_model(request, name)
    hosted = served(request).hosted
    if len(hosted) != 1:
        raise bad_request(f"model: say which of {', '.join(hosted)}", param="model")
    return next(iter(hosted.values()))
