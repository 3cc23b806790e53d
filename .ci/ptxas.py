"""Reads what `nvcc -Xptxas -v` said.

Fails on a kernel that spills registers, on what ptxas says it could not do for wgmma or setmaxnreg, and on a
missing architecture.

python .ci/ptxas.py build.log sm_80 sm_90a
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

_ENTRY = re.compile(r"Compiling entry function '(?P<name>\w+)' for '(?P<arch>\w+)'")
_SPILLS = re.compile(r"(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads")
# C7508: setmaxnreg is ignored; C7510 and its neighbours: products of a warpgroup run one after another.
_REFUSED = re.compile(r"ptxas .*\(C75\d\d\)")
_REGISTERS = re.compile(r"Used (?P<count>\d+) registers")


@dataclass
class Kernel:
    name: str
    arch: str
    spills: int = 0
    registers: int = 0


def read_kernels(log: str) -> list[Kernel]:
    kernels: list[Kernel] = []
    for line in log.splitlines():
        entry = _ENTRY.search(line)
        if entry:
            kernels.append(Kernel(entry["name"], entry["arch"]))
        elif kernels:
            # A device function that is not inlined reports after its kernel; its spills are the kernel's.
            spills = _SPILLS.search(line)
            registers = _REGISTERS.search(line)
            if spills:
                kernels[-1].spills += int(spills["stores"]) + int(spills["loads"])
            if registers:
                kernels[-1].registers = max(kernels[-1].registers, int(registers["count"]))
    return kernels


def complaints(kernels: list[Kernel], architectures: list[str]) -> list[str]:
    found = [
        f"{kernel.name} for {kernel.arch} spills {kernel.spills} bytes" for kernel in kernels if kernel.spills
    ]
    names = {arch: {kernel.name for kernel in kernels if kernel.arch == arch} for arch in architectures}
    found += [f"no kernel was built for {arch}" for arch in architectures if not names[arch]]
    return found


def read_refusals(log: str) -> list[str]:
    return [line.strip() for line in log.splitlines() if _REFUSED.search(line)]


def main(log: str, *architectures: str) -> int:
    text = Path(log).read_text(encoding="utf-8", errors="replace")
    kernels = read_kernels(text)
    for kernel in kernels:
        print(
            f"{kernel.arch:8} {kernel.registers:4} registers {kernel.spills:6} bytes spilled  {kernel.name}"
        )
    found = complaints(kernels, list(architectures)) + read_refusals(text)
    for complaint in found:
        print(f"error: {complaint}", file=sys.stderr)
    print(f"{len(kernels)} kernels, {len(found)} complaints")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
