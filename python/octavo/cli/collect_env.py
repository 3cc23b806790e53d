"""`octavo collect-env`: what a bug report needs to know, and nothing that names a machine or its user.

Versions come from package metadata, so that a broken torch can still be reported.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from octavo import env
from octavo.cli.console import gib, print_facts
from octavo.version import __version__

DESCRIPTION = """\
Describe this machine for a bug report: versions, CPU, memory, GPUs and how Octavo was built.
No host name, no user name, and no paths unless --paths asks for them."""

PACKAGES = ("torch", "numpy", "tokenizers", "safetensors", "jinja2", "rich", "transformers")
CPU_FLAGS = "avx2 fma f16c avx512f avx512bw avx512_bf16 avx512_fp16 amx_bf16 asimd bf16 sve".split()
GPU_QUERY = ("name", "memory.total", "driver_version", "compute_cap")
GPU_TIMEOUT_S = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `octavo collect-env`."""
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--paths", action="store_true", help="add where Python and Octavo are installed")


def run(args: argparse.Namespace) -> int:
    """Prints the description."""
    report = collect(paths=args.paths)
    if args.json:
        print(json.dumps(report, indent=2))
        return 0
    for section, facts in report.items():
        print_facts(section, {name: shown(value) for name, value in facts.items()})
    return 0


def collect(*, paths: bool = False) -> dict[str, dict[str, Any]]:
    """Sections of facts; also the machine description of benchmark results."""
    report = {
        "versions": versions(),
        "cpu": cpu(),
        "memory": memory(),
        "gpu": gpus(),
        "build": build(),
        "settings": settings(),
    }
    if paths:
        report["paths"] = {"python": sys.executable, "octavo": str(Path(__file__).resolve().parent.parent)}
    return report


def versions() -> dict[str, Any]:
    """Octavo, Python, the system and the packages we use; None for what is not installed."""
    found: dict[str, Any] = {
        "octavo": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "kernel": platform.release(),
        "libc": " ".join(platform.libc_ver()).strip() or None,
    }
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def cpu() -> dict[str, Any]:
    """Model, cores and the instruction sets that matter to our kernels."""
    text = read_text("/proc/cpuinfo")
    model = re.search(r"^(?:model name|Model)\s*:\s*(.+)$", text, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE)
    present = set(flags[1].split()) if flags else set()
    return {
        "model": model[1].strip() if model else platform.processor() or platform.machine(),
        "logical cores": os.cpu_count(),
        "usable cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "features": [flag for flag in CPU_FLAGS if flag in present],
        "used by kernels": kernel_isa(),
    }


def kernel_isa() -> str | None:
    """The instruction set that the CPU kernels chose; None where the extension cannot be loaded."""
    try:
        return str(importlib.import_module("octavo._ops").isa())
    except (ImportError, AttributeError):
        return None


def memory() -> dict[str, Any]:
    """Bytes in the machine and free for new work."""
    text = read_text("/proc/meminfo")
    sizes = {name: int(kib) * 1024 for name, kib in re.findall(r"^(\w+):\s+(\d+) kB", text, re.MULTILINE)}
    return {"total": sizes.get("MemTotal"), "available": sizes.get("MemAvailable")}


def gpus() -> dict[str, Any]:
    """What nvidia-smi says of each GPU; empty without it."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return {}
    command = [program, f"--query-gpu={','.join(GPU_QUERY)}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=GPU_TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return {"nvidia-smi": f"failed: {type(error).__name__}"}
    return {str(index): line.strip() for index, line in enumerate(done.stdout.splitlines()) if line.strip()}


def build() -> dict[str, Any]:
    """Whether the compiled parts load, and what they say of their build."""
    found: dict[str, Any] = {}
    for module in ("_core", "_ops"):
        try:
            loaded = importlib.import_module(f"octavo.{module}")
        except ImportError as error:
            found[module] = f"not loaded: {without_paths(str(error))}"
            continue
        info = getattr(loaded, "build_info", None)
        found[module] = info() if callable(info) else "loaded"
    return found


def settings() -> dict[str, Any]:
    """Octavo's environment variables that are set."""
    names = [value for name, value in vars(env).items() if name.isupper() and isinstance(value, str)]
    return {name: os.environ[name] for name in names if name in os.environ}


def without_paths(text: str) -> str:
    """Only the last component of each path."""
    return re.sub(r"(?:/[^\s/:]+)+/([^\s/:]+)", r"\1", text)


def read_text(path: str) -> str:
    """A system file; empty where there is none."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def shown(value: Any) -> str:
    """A fact as text."""
    if value is None:
        return "not available"
    if isinstance(value, list):
        return " ".join(map(str, value))
    if isinstance(value, dict):
        return ", ".join(f"{name} {item}" for name, item in value.items())
    if isinstance(value, int) and value >= 1 << 20:
        return gib(value)
    return str(value)
