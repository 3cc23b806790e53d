"""What the engine counts, as vLLM's `get_metrics()` gives it: counters, gauges and histograms."""

from __future__ import annotations

import bisect
from collections.abc import Mapping
from dataclasses import dataclass, field

from octavo.engine.request import Request

PREFIX = "octavo:"
_SECONDS = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 600.0)
_TOKENS = tuple(float(2**i) for i in range(21))


@dataclass(frozen=True)
class Metric:
    """A named number."""

    name: str
    labels: Mapping[str, str]


@dataclass(frozen=True)
class Counter(Metric):
    """A count that only grows."""

    value: int


@dataclass(frozen=True)
class Gauge(Metric):
    """A value as it is now."""

    value: float


@dataclass(frozen=True)
class Histogram(Metric):
    """How many observations lie at or below each bound, as Prometheus counts them."""

    count: int
    sum: float
    buckets: Mapping[str, int]


@dataclass
class _Observations:
    bounds: tuple[float, ...]
    counts: list[int] = field(default_factory=list)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def add(self, value: float) -> None:
        self.counts[bisect.bisect_left(self.bounds, value)] += 1
        self.total += value

    def histogram(self, name: str, labels: Mapping[str, str]) -> Histogram:
        buckets, seen = {}, 0
        for bound, count in zip((*self.bounds, float("inf")), self.counts):
            seen += count
            buckets["+Inf" if bound == float("inf") else f"{bound:g}"] = seen
        return Histogram(PREFIX + name, labels, seen, self.total, buckets)


class EngineMetrics:
    """Observations of finished requests, beside the core's own counts."""

    def __init__(self, model: str) -> None:
        self._labels = {"model_name": model, "engine": "0"}
        self._observed = {
            "time_to_first_token_seconds": _Observations(_SECONDS),
            "request_time_per_output_token_seconds": _Observations(_SECONDS),
            "e2e_request_latency_seconds": _Observations(_SECONDS),
            "request_prompt_tokens": _Observations(_TOKENS),
            "request_generation_tokens": _Observations(_TOKENS),
        }
        self._finished: dict[str, int] = {"stop": 0, "length": 0, "abort": 0, "error": 0}

    def observe(self, request: Request, now: float) -> None:
        """Counts a request that has just finished; `now` of the monotonic clock."""
        metrics, observed = request.metrics, self._observed
        for sample in request.samples:
            self._finished[sample.finish_reason or "abort"] += 1
        observed["e2e_request_latency_seconds"].add(now - metrics.queued_ts)
        observed["request_prompt_tokens"].add(len(request.prompt.token_ids))
        observed["request_generation_tokens"].add(metrics.num_generation_tokens)
        if metrics.first_token_ts is not None:
            observed["time_to_first_token_seconds"].add(metrics.first_token_ts - metrics.queued_ts)
            later = max((len(sample.token_ids) for sample in request.samples), default=1) - 1
            if later > 0 and metrics.last_token_ts is not None:
                per_token = (metrics.last_token_ts - metrics.first_token_ts) / later
                observed["request_time_per_output_token_seconds"].add(per_token)

    def snapshot(
        self, stats: Mapping[str, int | float], host_tier: Mapping[str, int | float]
    ) -> list[Metric]:
        """Every metric now; `stats` and `host_tier` are the core's."""
        labels = self._labels
        total = max(stats["total_blocks"], 1)
        gauges = {
            "num_requests_running": stats["running"],
            "num_requests_waiting": stats["waiting"],
            "kv_cache_usage_perc": (total - stats["free_blocks"]) / total,
        }
        counters = {
            "prefix_cache_queries": stats["prefix_queries"],
            "prefix_cache_hits": stats["prefix_hits"],
            "prompt_tokens": stats["prompt_tokens"],
            "generation_tokens": stats["generation_tokens"],
            "num_preemptions": stats["preemptions"],
            "spec_decode_num_drafts": stats["draft_rows"],
            "spec_decode_num_draft_tokens": stats["draft_tokens"],
            "spec_decode_num_accepted_tokens": stats["accepted_tokens"],
            "steps": stats["steps"],
            "failed_steps": stats["failed_steps"],
            "external_prefix_cache_hits": stats["kv_loaded_tokens"],
            "kv_offload_stored_blocks": host_tier["stored_blocks"],
            "kv_offload_loaded_blocks": host_tier["loaded_blocks"],
            "kv_offload_evicted_blocks": host_tier["evicted_blocks"],
            "kv_offload_failed_blocks": host_tier["failed_blocks"],
        }
        result: list[Metric] = [Gauge(PREFIX + name, labels, float(value)) for name, value in gauges.items()]
        result += [Counter(PREFIX + name, labels, int(value)) for name, value in counters.items()]
        for reason, count in self._finished.items():
            result.append(Counter(PREFIX + "request_success", {**labels, "finished_reason": reason}, count))
        result += [observed.histogram(name, labels) for name, observed in self._observed.items()]
        return result
