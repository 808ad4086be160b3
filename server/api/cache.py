"""What an engine's prefix cache holds, and its end on request: /v1/fathom/cache."""

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import Field

from server.api.auth import KeyedRoute
from server.api.schemas import Strict, Text
from server.api.state import find_model_or_only
from server.errors import from_engine_error
from server.process import EngineError

MAX_ENTRIES = 1000

router = APIRouter(prefix="/v1/fathom", route_class=KeyedRoute)


class CacheQuery(Strict):
    """`model` may be left out where one model is served."""

    model: Text | None = None


class EntriesQuery(CacheQuery):
    limit: Annotated[int, Field(ge=1, le=MAX_ENTRIES)] = MAX_ENTRIES


@router.get("/cache")
async def show_cache(query: Annotated[EntriesQuery, Query()], request: Request) -> dict[str, Any]:
    """How much there is, how much of it is kept for prompts that begin alike, and for which, by their length alone."""
    hosted = find_model_or_only(request, query.model)
    try:
        content = await hosted.engine.fetch_cache(query.limit)
    except EngineError as error:
        raise from_engine_error(error) from error
    return {
        "object": "fathom.cache",
        "model": hosted.name,
        "totals": {
            "num_blocks": content.num_blocks,
            "blocks_bytes": content.num_blocks * content.block_bytes,
            "num_cached_blocks": content.num_cached_blocks,
            "cached_blocks_bytes": content.num_cached_blocks * content.block_bytes,
            "num_slots": content.num_slots,
            "slots_bytes": content.num_slots * content.slot_bytes,
            "num_snapshots": content.num_snapshots,
            "snapshots_bytes": content.num_snapshots * content.slot_bytes,
            "host_pieces": content.host_pieces,
            "host_bytes": content.host_bytes,
            "disk_pieces": content.disk_pieces,
            "disk_bytes": content.disk_bytes,
        },
        "num_entries": content.num_entries,
        "entries": [asdict(entry) | {"age_s": round(entry.age_s, 3)} for entry in content.entries],
    }


@router.delete("/cache")
async def clear_cache(query: Annotated[CacheQuery, Query()], request: Request) -> dict[str, Any]:
    """Give up all that no running sequence uses, in every tier; the answer has the figures of the device."""
    hosted = find_model_or_only(request, query.model)
    try:
        freed = await hosted.engine.clear_cache()
    except EngineError as error:
        raise from_engine_error(error) from error
    return {"object": "fathom.cache.cleared", "model": hosted.name, "freed": asdict(freed)}
