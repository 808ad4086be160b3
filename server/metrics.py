"""Prometheus metrics of one server, in a registry of its own."""

from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from server.hosting import HostedModel
from server.request import EngineStats, SequenceUsage

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)
TOKENS = tuple(4**power for power in range(1, 11))

_GAUGES: dict[str, str] = {
    "num_running": "Sequences that are being computed",
    "num_waiting": "Sequences that wait for room",
    "free_blocks": "KV blocks that no sequence holds",
    "cached_blocks": "KV blocks that are kept for prompts that begin alike",
    "num_blocks": "KV blocks in all",
    "free_state_slots": "State slots that no sequence holds",
    "snapshots": "State slots that are kept for prompts that begin alike",
    "num_state_slots": "State slots in all",
    "host_pieces": "Pieces in the host's memory, of what the device had no room for",
    "host_bytes": "Bytes of these",
    "fit_8k": "Sequences of 8,192 tokens (or the longest context) that fit into the cache at once",
    "fit_8k_now": "The same beside those that are being computed",
    "fit_longest": "Sequences of the longest context that fit into the cache at once",
    "fit_longest_now": "The same beside those that are being computed",
    "disk_pieces": "Files in the model's cache directory",
    "disk_bytes": "Bytes of the model's cache directory",
}
_COUNTERS: dict[str, str] = {
    "num_preemptions": "Sequences that gave up their cache to be computed again",
    "prompt_tokens": "Prompt tokens computed",
    "cached_tokens": "Prompt tokens found in the cache instead",
    "generation_tokens": "Tokens generated",
    "steps": "Engine steps",
    "disk_writes": "Files written to the cache directory",
    "disk_writes_skipped": "Files not written, as the disk was too slow or too small",
    "disk_hits": "Sequences that went on from what was read from the cache directory while they waited",
    "disk_bytes_read": "Bytes read from the cache directory",
    "disk_read_s": "Seconds that reading them took",
    "host_writes": "Pieces taken into the host's memory",
    "host_writes_skipped": "Pieces not taken, as they were worth less than what is there",
    "host_hits": "Sequences that went on from what was in the host's memory",
    "host_bytes_read": "Bytes read from the host's memory",
    "host_read_s": "Seconds that bringing them to the device took",
}


class Metrics:
    """Counts what the API answers; what the engines report is added when somebody reads it."""

    def __init__(self, hosted: Mapping[str, HostedModel]) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_EngineCollector(hosted))
        model = ["model"]
        self._requests = Counter(
            "fathom_requests", "Requests by outcome", ["model", "outcome"], registry=self._registry
        )
        self._responses = Counter(
            "fathom_http_responses", "HTTP responses by route and status", ["route", "status"], registry=self._registry
        )
        self._queue = self._histogram("queue", "Waiting before the first step", SECONDS)
        self._prefill = self._histogram("prefill", "First step to first token", SECONDS)
        self._decode = self._histogram("time_per_output_token", "Decode time per token after the first", TOKEN_SECONDS)
        self._prompt = Histogram(
            "fathom_request_prompt_tokens", "Prompt length", model, buckets=TOKENS, registry=self._registry
        )

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"fathom_{name}_seconds", text, ["model"], buckets=buckets, registry=self._registry)

    def count(self, model: str, outcome: str) -> None:
        """One request's end: a finish reason, `disconnected`, or an error's code."""
        self._requests.labels(model, outcome).inc()

    def count_response(self, route: str, status: int) -> None:
        """One HTTP response, whatever came of the request; `route` is a path that is served, or "other"."""
        self._responses.labels(route, str(int(status))).inc()

    def observe(self, model: str, usage: SequenceUsage, *, first: bool = True) -> None:
        """What one completion took. Of a request's several, only the first waited for the prompt to be computed."""
        if first:
            self._queue.labels(model).observe(usage.queue_s)
            self._prefill.labels(model).observe(usage.prefill_s)
            self._prompt.labels(model).observe(usage.prompt_tokens)
        if usage.completion_tokens > 1:
            self._decode.labels(model).observe(usage.decode_s / (usage.completion_tokens - 1))

    def render(self) -> bytes:
        """The text exposition format."""
        return generate_latest(self._registry)


class _EngineCollector(Collector):
    def __init__(self, hosted: Mapping[str, HostedModel]) -> None:
        self._hosted = hosted

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterable[Metric]:
        for field, text in _GAUGES.items():
            gauge = GaugeMetricFamily(f"fathom_engine_{field.removeprefix('num_')}", text, labels=["model"])
            for model, stats in self._stats():
                gauge.add_metric([model], getattr(stats, field))
            yield gauge
        for field, text in _COUNTERS.items():
            name = field.removeprefix("num_").replace("_read_s", "_read_seconds")
            counter = CounterMetricFamily(f"fathom_engine_{name}", text, labels=["model"])
            for model, stats in self._stats():
                counter.add_metric([model], getattr(stats, field))
            yield counter
        up = GaugeMetricFamily("fathom_engine_up", "1 while the engine serves", labels=["model"])
        restarts = CounterMetricFamily("fathom_engine_restarts", "Times the engine was started anew", labels=["model"])
        queued = GaugeMetricFamily(
            "fathom_engine_queued_tokens", "Prompt tokens of requests that have not begun", labels=["model"]
        )
        for model, hosted in self._hosted.items():
            queued.add_metric([model], hosted.engine.num_queued_tokens)
            up.add_metric([model], float(hosted.engine.state == "ready"))
            restarts.add_metric([model], hosted.engine.num_restarts)
        yield queued
        yield up
        yield restarts

    def _stats(self) -> Iterable[tuple[str, EngineStats]]:
        for model, hosted in self._hosted.items():
            yield model, hosted.engine.stats
