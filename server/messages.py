"""What crosses the border between the API process and an engine process."""

import msgspec

from server.request import CacheContent, CacheFreed, EngineInfo, EngineRequest, EngineStats, TokenOutput


class Add(msgspec.Struct, tag="add", frozen=True):
    request: EngineRequest


class Abort(msgspec.Struct, tag="abort", frozen=True):
    request_id: str


class AskStats(msgspec.Struct, tag="stats", frozen=True):
    number: int


class AskCache(msgspec.Struct, tag="cache", frozen=True):
    """`limit`: how many entries at most."""

    number: int
    limit: int


class ClearCache(msgspec.Struct, tag="clear", frozen=True):
    number: int


class Stop(msgspec.Struct, tag="stop", frozen=True):
    pass


Question = AskStats | AskCache | ClearCache
ToEngine = Add | Abort | Question | Stop


class Ready(msgspec.Struct, tag="ready", frozen=True):
    info: EngineInfo
    plan: str


class Outputs(msgspec.Struct, tag="outputs", frozen=True, omit_defaults=True):
    """`begun`: requests that wait no longer and have no token yet."""

    outputs: list[tuple[str, TokenOutput]]
    begun: list[str] = []


class Stats(msgspec.Struct, tag="stats", frozen=True):
    """`number` is that of the AskStats that this answers, 0 for a report unasked."""

    number: int
    stats: EngineStats


class Cache(msgspec.Struct, tag="cache", frozen=True):
    number: int
    content: CacheContent


class Cleared(msgspec.Struct, tag="cleared", frozen=True):
    number: int
    freed: CacheFreed


class Failure(msgspec.Struct, tag="failure", frozen=True):
    """The engine ends. `final`: starting it again would fail the same way."""

    error: str
    final: bool


Answer = Stats | Cache | Cleared
FromEngine = Ready | Outputs | Answer | Failure

to_engine = msgspec.msgpack.Decoder(ToEngine)
from_engine = msgspec.msgpack.Decoder(FromEngine)
encode = msgspec.msgpack.Encoder().encode
