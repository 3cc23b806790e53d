"""What users of a simulated service would have seen, and how hard the device worked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo import core

PERCENTILES = (50, 90, 99)
_FEW_SAMPLES = 20  # ten a second: less says nothing of how a queue grows


@dataclass(frozen=True)
class Targets:
    """What a request must reach to count as good; None: anything is good."""

    ttft: float | None = None  # seconds
    tpot: float | None = None


def summarize(result: Mapping[str, Any], targets: Targets) -> dict[str, Any]:
    """Return the report of what `octavo.core.serve` returned; times in seconds."""
    records = result["records"]
    done = records[records["end"] >= 0]
    ttft = done["first_token"] - done["arrival"]
    e2e = done["end"] - done["arrival"]
    gaps = np.maximum(done["output_tokens"] - 1, 1)
    tpot = (done["end"] - done["first_token"]) / gaps
    several = done["output_tokens"] > 1
    seconds = max(float(result["seconds"]), 1e-12)
    good = np.ones(len(done), bool)
    if targets.ttft is not None:
        good &= ttft <= targets.ttft
    if targets.tpot is not None:
        good &= ~several | (tpot <= targets.tpot)
    samples = result["samples"]
    arrivals = np.sort(records["arrival"][records["arrival"] >= 0])
    span = float(arrivals[-1] - arrivals[0]) if len(arrivals) else 0.0
    queries = max(int(result["prefix_queries"]), 1)
    return {
        "seconds": seconds,
        "requests": len(records),
        "finished": len(done),
        "refused": int(records["refused"].sum()),
        "offered_requests_per_second": (len(arrivals) - 1) / span if span > 0 else 0.0,
        "overloaded": _overloaded(samples, float(arrivals[-1]) if len(arrivals) else 0.0),
        "requests_per_second": len(done) / seconds,
        "prompt_tokens_per_second": float(done["prompt_tokens"].sum()) / seconds,
        "output_tokens_per_second": float(done["output_tokens"].sum()) / seconds,
        "ttft": percentiles(ttft),
        "tpot": percentiles(tpot[several]),
        "itl": gap_percentiles(result["gap_counts"]),
        "e2e": percentiles(e2e),
        "targets": {"ttft": targets.ttft, "tpot": targets.tpot},
        "good_share": float(good.mean()) if len(done) else 0.0,
        "goodput_requests_per_second": float(good.sum()) / seconds,
        "busy": float(result["busy_seconds"]) / seconds,
        "bandwidth_use": float(result["bandwidth_use"]),
        "compute_use": float(result["compute_use"]),
        "load": {name: load(samples[name]) for name in ("kv_use", "running", "waiting", "step_tokens")},
        "kv_use_mean": float(result["kv_use"]),
        "kv_use_most": float(samples["kv_use"].max(initial=0.0)),
        "running_most": int(samples["running"].max(initial=0)),
        "waiting_most": int(samples["waiting"].max(initial=0)),
        "prefix_hit_rate": int(result["prefix_hits"]) / queries,
        "preemptions": int(result["preemptions"]),
        "evictions": int(result["evictions"]),
        "steps": int(result["steps"]),
        "tokens_a_step": int(result["scheduled_tokens"]) / max(int(result["steps"]), 1),
    }


def percentiles(values: NDArray[Any]) -> dict[str, float] | None:
    """p50, p90 and p99; None where there is nothing to take them of."""
    if not len(values):
        return None
    return {f"p{p}": float(value) for p, value in zip(PERCENTILES, np.percentile(values, PERCENTILES))}


def load(values: NDArray[Any]) -> dict[str, float] | None:
    """The same of samples at equal distances, and the most."""
    if not len(values):
        return None
    return {**(percentiles(values) or {}), "most": float(values.max())}


def _overloaded(samples: NDArray[Any], last_arrival: float) -> bool:
    """Whether the queue was still growing, and longer than what runs, when the last request arrived."""
    before = samples[samples["time"] <= last_arrival]
    if len(before) < _FEW_SAMPLES:
        return False
    middle, end = before[len(before) // 2], before[-1]
    return bool(end["waiting"] > max(end["running"], 1.2 * middle["waiting"]))


def gap_percentiles(counts: NDArray[Any]) -> dict[str, float] | None:
    """Percentiles of the gaps between tokens, from their histogram: 1 % exact."""
    total = np.cumsum(counts)
    if not total[-1]:
        return None
    buckets = np.searchsorted(total, [p / 100 * total[-1] for p in PERCENTILES])
    values = core.GAP_FIRST * core.GAP_BASE ** (buckets + 0.5)
    return {f"p{p}": float(value) for p, value in zip(PERCENTILES, values)}
