"""Times every kind of kernel beside its peers, in graphs, over memory that rotates beyond the L2 cache.

    PYTHONPATH=python python bench/kernels.py
    PYTHONPATH=python python bench/kernels.py --only decode,sample --output kernels.json

Each line gives microseconds (medians of graph replays), what that is in bytes or operations a second, for row
ops the share of what a copy of as many bytes reaches, the relative distance from float64, and the fastest
peer that can be imported here, with its time over ours: above 1, ours is faster. torch is always a peer,
FlashInfer and FlashAttention 3 (in vLLM) are where they are installed. For the sampler, error is the share of
tokens that float64 cuts away. After decode stand the two numbers of a line through its cells: a fixed time
and a speed.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import kernels_attention
import kernels_rows
import numpy as np
import torch
from timing import HEADER, Result

from octavo.version import __version__

PARTS: dict[str, Callable[[], Iterator[Result]]] = {
    "decode": kernels_attention.decode,
    "prefill": kernels_attention.prefill,
    "rows": kernels_rows.rows,
    "small": kernels_rows.small,
    "sample": kernels_rows.sample,
    "linear": kernels_rows.linear,
}


def main() -> int:
    """Measures the parts, prints a table and writes the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", type=part_names, default=list(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--output", help="JSON file to write")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("error: kernels are timed on a GPU, and torch sees none", file=sys.stderr)
        return 1
    torch.manual_seed(0)
    result = {
        "benchmark": "kernels",
        "date": datetime.date.today().isoformat(),
        "command": " ".join(["python", "bench/kernels.py", *sys.argv[1:]]),
        "octavo": __version__,
        "torch": torch.__version__,
        "gpu": torch.cuda.get_device_name(),
    }
    print(f"{result['gpu']}, torch {torch.__version__}\n{HEADER}")
    with torch.inference_mode():
        for name in args.only:
            result |= measure(name, result.get("cases", []))
            if args.output:  # after each part: what is cut short has been measured too
                Path(args.output).write_text(json.dumps(result, indent=1) + "\n")
    return 0


def measure(part: str, before: list[dict[str, Any]]) -> dict[str, Any]:
    """Run a part and print its lines; returns all cases, and what a fit of these says."""
    found = []
    for case in PARTS[part]():
        print(case.line(), flush=True)
        found.append(case)
    result: dict[str, Any] = {"cases": before + [case.as_json() for case in found]}
    if part == "decode":
        plain = {cell.name for cell in kernels_attention.DECODE}
        fixed, speed, worst = fit([case for case in found if case.case in plain])
        print(f"decode   {fixed:.1f} us and {speed:.0f} GB/s, off by at most {worst:.0%}")
        result["decode_fit"] = {"t0_us": round(fixed, 2), "gbytes_s": round(speed), "worst": round(worst, 3)}
    return result


def fit(cases: Sequence[Result]) -> tuple[float, float, float]:
    """Return microseconds t0 and GB/s of time = t0 + bytes / speed, by least squares of relative errors, and
    the largest of those."""
    us, gbytes = np.array([case.us for case in cases]), np.array([case.gbytes for case in cases])
    terms = np.stack([1 / us, gbytes / us], 1)
    (fixed, slope), *_ = np.linalg.lstsq(terms, np.ones(len(us)), rcond=None)
    return float(fixed), float(1e6 / slope), float(np.abs(terms @ [fixed, slope] - 1).max())


def part_names(text: str) -> list[str]:
    """Parts of a comma list."""
    wanted = text.split(",")
    for name in wanted:
        if name not in PARTS:
            raise argparse.ArgumentTypeError(f"{name!r} is not one of {', '.join(PARTS)}")
    return wanted


if __name__ == "__main__":
    raise SystemExit(main())
