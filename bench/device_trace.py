"""What a torch.profiler trace says of the device: time by kernel, and pauses in which nothing ran."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

STEP_GAP_US = 4.0  # kernels of one graph follow each other within less
_NAME_CHARS = 70


@dataclass(frozen=True)
class Span:
    """One kernel or copy on the device, microseconds."""

    name: str
    start: float
    end: float


@dataclass
class KernelTime:
    """All calls of one kernel. A kernel may begin, and wait, while the one before it still runs: that time is
    the earlier one's, so that the times of all kernels and the pauses make up the whole."""

    name: str
    calls: int = 0
    us: float = 0.0


def spans_of(trace: Any) -> list[Span]:
    """Return what ran on the device, by its begin."""
    import torch

    device = torch.autograd.DeviceType.CUDA
    events = [event for event in trace.events() if event.device_type == device]
    spans = [Span(event.name, event.time_range.start, event.time_range.end) for event in events]
    return sorted(spans, key=lambda span: (span.start, span.end))


def short_name(name: str) -> str:
    """Return a kernel's name without its arguments and what all of ours have in common."""
    name = name.replace("(anonymous namespace)::", "").replace("<unnamed>::", "")
    name = re.sub(r"\b(void|octavo::|cuda::|__nv_)\s*", "", name)
    depth = 0  # of angle brackets: what stands in them are no arguments
    for at, char in enumerate(name):
        depth += (char == "<") - (char == ">")
        if char == "(" and depth == 0:
            name = name[:at].rstrip()
            break
    return name if len(name) <= _NAME_CHARS else name[: _NAME_CHARS - 3] + "..."


def by_kernel(spans: Sequence[Span]) -> list[KernelTime]:
    """Return what each kernel took, the largest first. REQUIRES: spans by their begin."""
    found: dict[str, KernelTime] = {}
    last = float("-inf")
    for span in spans:
        kernel = found.setdefault(span.name, KernelTime(span.name))
        kernel.calls += 1
        kernel.us += max(0.0, span.end - max(last, span.start))
        last = max(last, span.end)
    return sorted(found.values(), key=lambda kernel: -kernel.us)


def pauses(spans: Iterable[Span]) -> tuple[float, float]:
    """Return microseconds in which nothing ran: in pauses as between steps, and in shorter ones."""
    long = short = 0.0
    last = float("inf")
    for span in spans:
        gap = span.start - last
        if gap > STEP_GAP_US:
            long += gap
        elif gap > 0:
            short += gap
        last = span.end if last == float("inf") else max(last, span.end)
    return long, short


def whole_steps(spans: Sequence[Span], margin: int) -> tuple[Sequence[Span], int]:
    """Return the spans of whole steps, each of which begins with the copy of its columns, and their number.

    `margin` steps at either end are left out: the first ones meet a profiler that still starts, the last ones
    nobody who launches more.
    """
    starts = [i for i, span in enumerate(spans) if "HtoD" in span.name][margin : -margin or None]
    if len(starts) < 2:
        raise ValueError(f"the trace has {len(starts)} whole steps, need 2: trace more of them")
    return spans[starts[0] : starts[-1]], len(starts) - 1


def table(spans: Sequence[Span], steps: int = 1, most: int = 16) -> str:
    """Return a table of the kernels that take the most time, of so many steps; calls and us are a step's."""
    if not spans:
        return "nothing ran on the device"
    whole = max(span.end for span in spans) - spans[0].start
    kernels, idle = by_kernel(spans), sum(pauses(spans))
    shown, rest = kernels[:most], kernels[most:]
    if rest:
        count = f"{len(rest)} other kernels"
        shown.append(KernelTime(count, sum(k.calls for k in rest), sum(k.us for k in rest)))
    lines = [f"{'us a step':>10}{'share':>7}{'calls':>8}{'us each':>9}  kernel"]
    for kernel in shown:
        calls, us = kernel.calls / steps, kernel.us / steps
        share, each = kernel.us / whole, kernel.us / kernel.calls
        lines.append(f"{us:10.1f}{share:7.1%}{calls:8.1f}{each:9.2f}  {short_name(kernel.name)}")
    lines.append(f"{idle / steps:10.1f}{idle / whole:7.1%}{'':17}  idle")
    return "\n".join(lines)


def as_json(spans: Sequence[Span], steps: int = 1) -> list[dict[str, Any]]:
    """Return by_kernel of so many steps, a step's, for a result file."""
    return [
        {"kernel": short_name(k.name), "calls": round(k.calls / steps, 2), "us": round(k.us / steps, 3)}
        for k in by_kernel(spans)
    ]
