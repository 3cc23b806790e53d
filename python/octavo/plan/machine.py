"""What this machine has: memory, cores and the CPU's number formats. Standard library only."""

from __future__ import annotations

import os
import platform
from pathlib import Path

_CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def available_memory() -> int:
    """Return the bytes a program may still take: what the system says, or the container's limit if lower."""
    free = _system_available()
    for limit_path, usage_path in _CGROUPS:
        limit, usage = _read_int(limit_path), _read_int(usage_path)
        if limit is not None and usage is not None:
            free = min(free, max(limit - usage, 0))
    return free


def physical_cores() -> int:
    """Return how many cores this process may run on; two hyper-threads count as one core."""
    cpus = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    cores = set()
    for cpu in cpus:
        siblings = _read_text(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        cores.add(siblings or str(cpu))
    return max(len(cores), 1)


def fast_formats() -> frozenset[str]:
    """Return the 16-bit dtypes that the CPU multiplies faster than float32: a subset of bfloat16, float16."""
    flags = cpu_flags()
    found = set()
    if flags & {"avx512_bf16", "amx_bf16", "bf16"}:
        found.add("bfloat16")
    if flags & {"avx512_fp16", "amx_fp16"}:
        found.add("float16")
    return frozenset(found)


def cpu_flags() -> frozenset[str]:
    """Return the instruction sets that the CPU reports, by their Linux names; empty where unknown."""
    for line in (_read_text("/proc/cpuinfo") or "").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def cpu_name() -> str:
    """Return the CPU's name, or its architecture where the system does not tell."""
    for line in (_read_text("/proc/cpuinfo") or "").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


def _system_available() -> int:
    for line in (_read_text("/proc/meminfo") or "").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    # No /proc: half of the memory is a fair guess of what is free.
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _read_text(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def _read_int(path: str) -> int | None:
    text = _read_text(path)
    return int(text) if text is not None and text.isdecimal() else None
