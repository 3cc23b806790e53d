"""A picture of a simulated run: latencies over time and how full the device was. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from octavo.errors import OctavoError, file_failure


def plot(result: Mapping[str, Any], path: str, title: str, *, ttft: float | None = None) -> None:
    """Write a PNG (or what the file's name says), with a line at the seconds to a first token that are
    aimed at. Raises OctavoError where it cannot be made."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise OctavoError("--plot needs matplotlib: pip install matplotlib, or octavo[plot]") from error

    records = result["records"]
    done = records[records["end"] >= 0]
    samples = result["samples"]
    figure = Figure(figsize=(9, 8), layout="constrained")
    latency, requests, memory = figure.subplots(3, 1, sharex=True)
    figure.suptitle(title)
    latency.plot(done["arrival"], done["first_token"] - done["arrival"], ".", ms=3, label="to first token")
    latency.plot(done["arrival"], done["end"] - done["arrival"], ".", ms=3, label="to last token")
    if ttft is not None:
        latency.axhline(ttft, color="black", lw=1, ls="--", label="first token aimed at")
    latency.set_ylabel("seconds")
    latency.set_yscale("log")
    requests.plot(samples["time"], samples["running"], label="running")
    requests.plot(samples["time"], samples["waiting"], label="waiting")
    requests.set_ylabel("requests")
    memory.plot(samples["time"], 100 * samples["kv_use"], label="KV blocks in use")
    memory.set_ylabel("%")
    memory.set_ylim(0, 100)
    memory.set_xlabel("seconds")
    for axes in (latency, requests, memory):
        axes.legend(loc="upper right")
        axes.grid(alpha=0.3)
    try:
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise OctavoError(file_failure(path, error, "written")) from error
