"""What a server says of itself at /metrics while it is asked: read once a second, kept as it was, averaged later.

Servers name alike things differently; here they get one name each. Nothing at /metrics ever fails a run.

Names as the servers' own sources have them: vLLM vllm/v1/metrics/loggers.py (before 0.10 with `gpu_`), SGLang
python/sglang/srt/metrics/collector.py (served with --enable-metrics), llama.cpp tools/server/README.md (served with
--metrics; the two of its cache are of builds before mid 2025, later ones have none), Fathom server/metrics.py.
"""

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass

import aiohttp
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from evals.config import RunConfig
from evals.records import Scrape

TIMEOUT_S = 2.0
# Shares are of the whole cache. Of several engines shares are averaged, all else is added up.
KV_SHARE, KV_TOKENS, RUNNING, PREEMPTIONS = "kv_share", "kv_tokens", "running", "preemptions"
KV_CAPACITY, PREFIX_HITS, PREFIX_QUERIES = "kv_capacity_tokens", "prefix_hit_tokens", "prefix_query_tokens"
PREFIX_HIT_RATE, PROCESS_BYTES, STATE_SHARE = "prefix_hit_rate", "process_bytes", "state_share"
AVERAGED = frozenset({KV_SHARE, PREFIX_HIT_RATE})
NAMES: Mapping[str, str] = {
    "vllm:kv_cache_usage_perc": KV_SHARE,
    "vllm:gpu_cache_usage_perc": KV_SHARE,
    "vllm:num_requests_running": RUNNING,
    "vllm:num_preemptions_total": PREEMPTIONS,
    "vllm:prefix_cache_hits_total": PREFIX_HITS,
    "vllm:gpu_prefix_cache_hits_total": PREFIX_HITS,
    "vllm:prefix_cache_queries_total": PREFIX_QUERIES,
    "vllm:gpu_prefix_cache_queries_total": PREFIX_QUERIES,
    "sglang:token_usage": KV_SHARE,
    "sglang:num_used_tokens": KV_TOKENS,
    "sglang:max_total_num_tokens": KV_CAPACITY,
    "sglang:num_running_reqs": RUNNING,
    "sglang:cache_hit_rate": PREFIX_HIT_RATE,
    "sglang:num_retracted_requests_total": PREEMPTIONS,
    "llamacpp:kv_cache_usage_ratio": KV_SHARE,
    "llamacpp:kv_cache_tokens": KV_TOKENS,
    "llamacpp:requests_processing": RUNNING,
    "fathom_engine_running": RUNNING,
    "fathom_engine_preemptions_total": PREEMPTIONS,
    "process_resident_memory_bytes": PROCESS_BYTES,
}
# Whole and free: the share is worked out.
POOLS: Mapping[str, tuple[str, str]] = {
    KV_SHARE: ("fathom_engine_blocks", "fathom_engine_free_blocks"),
    STATE_SHARE: ("fathom_engine_state_slots", "fathom_engine_free_state_slots"),
}
VLLM_CACHE = "vllm:cache_config_info"
_READ = (*NAMES, *(name for pool in POOLS.values() for name in pool), VLLM_CACHE)
_MODEL_LABELS = ("model_name", "model")
_RANKS = ("tp_rank", "pp_rank")  # parts of one engine: each tells the same

Put = Callable[[Iterable[Scrape]], None]


@dataclass(frozen=True, slots=True)
class Scraper:
    """Reads one server's figures of one model. `interval_s`: between two readings."""

    session: aiohttp.ClientSession
    url: str
    model: str
    interval_s: float

    async def read(self) -> dict[str, float]:
        """Figures by their canonical names; none where the server has none to give now."""
        try:
            timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
            async with self.session.get(self.url, timeout=timeout) as answer:
                return read_figures(await answer.text(), self.model) if answer.status == 200 else {}
        except (aiohttp.ClientError, TimeoutError, ValueError):
            return {}


async def find_metrics(session: aiohttp.ClientSession, config: RunConfig) -> Scraper | None:
    """None where nothing is to be scraped, or the server has no figure that is known here."""
    if config.scrape_interval_s == 0:
        return None
    scraper = Scraper(session, f"{config.root_url}/metrics", config.model, config.scrape_interval_s)
    return scraper if await scraper.read() else None


@contextlib.asynccontextmanager
async def scraping(scraper: Scraper | None, dataset: str, put: Put) -> AsyncIterator[None]:
    """Read while in the context, once at its begin and once at its end too, and hand each reading to `put`."""
    if scraper is None:
        yield
        return
    stop = asyncio.Event()
    task = asyncio.create_task(_scrape(scraper, dataset, put, stop))
    try:
        yield
    finally:
        stop.set()
        await task


async def _scrape(scraper: Scraper, dataset: str, put: Put, stop: asyncio.Event) -> None:
    while True:
        is_last = stop.is_set()
        figures = await scraper.read()
        # The clock of the samples' own times. Stamped late: the server looked before it answered.
        at_s = time.perf_counter()
        put(
            Scrape(model=scraper.model, dataset=dataset, at_s=at_s, name=name, value=value)
            for name, value in figures.items()
        )
        if is_last:
            return
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), scraper.interval_s)


def read_figures(text: str, model: str) -> dict[str, float]:
    """The text exposition format -> figures of one model by their canonical names.

    Raises:
        ValueError: it is no such text.
    """
    # The rest, histograms mostly, is not parsed: requests are being timed meanwhile.
    lines = [line for line in text.splitlines() if line.startswith(_READ)]
    families = text_string_to_metric_families("\n".join(lines) + "\n")
    samples: dict[str, list[Sample]] = {}
    for sample in (sample for family in families for sample in family.samples if math.isfinite(sample.value)):
        samples.setdefault(sample.name, []).append(sample)
    is_named = any(_names(sample, model) for found in samples.values() for sample in found)
    own = {name: [one for one in found if _is_own(one, model if is_named else None)] for name, found in samples.items()}
    figures: dict[str, float] = {}
    for name, canonical in NAMES.items():
        if own.get(name) and canonical not in figures:
            figures[canonical] = _together([sample.value for sample in own[name]], averaged=canonical in AVERAGED)
    return figures | _of_pools(own) | _of_vllm(own, figures)


def _names(sample: Sample, model: str) -> bool:
    return any(sample.labels.get(label) == model for label in _MODEL_LABELS)


def _is_own(sample: Sample, model: str | None) -> bool:
    """Of the model, or of no model by name, and of the first rank. None: the server knows it by another name."""
    if any(sample.labels.get(rank, "0") != "0" for rank in _RANKS):
        return False
    return model is None or _names(sample, model) or not any(label in sample.labels for label in _MODEL_LABELS)


def _together(values: list[float], *, averaged: bool) -> float:
    return math.fsum(values) / (len(values) if averaged else 1)


def _of_pools(own: Mapping[str, list[Sample]]) -> dict[str, float]:
    shares = {}
    for canonical, names in POOLS.items():
        whole, free = (sum(sample.value for sample in own.get(name, [])) for name in names)
        if whole > 0:
            shares[canonical] = 1 - free / whole
    return shares


def _of_vllm(own: Mapping[str, list[Sample]], figures: Mapping[str, float]) -> dict[str, float]:
    """Tokens in use, from the share in use and the sizes among the labels; later versions say the capacity itself."""
    capacity = 0
    for sample in own.get(VLLM_CACHE, []):
        blocks, size, whole = (
            int(text) if (text := sample.labels.get(label, "")).isdecimal() else 0
            for label in ("num_gpu_blocks", "block_size", "kv_cache_size_tokens")
        )
        capacity += whole or blocks * size
    if not capacity:
        return {}
    used = {KV_TOKENS: capacity * figures[KV_SHARE]} if KV_SHARE in figures else {}
    return {KV_CAPACITY: float(capacity), **used}
