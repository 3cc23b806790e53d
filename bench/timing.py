"""Times of calls on a GPU: in graphs, over memory that rotates beyond the L2 cache; and one measured case."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

ROTATED_BYTES = 400e6  # several times the L2 of an H200
REPLAYS = 15
MOST_CALLS = 64  # of one graph
Call = Callable[[], object]


def time_calls(calls: Sequence[Call]) -> float:
    """Return microseconds a call: the median over replays of a graph that makes them all once."""
    for call in calls[:2]:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    graph.replay()
    times = []
    for _ in range(REPLAYS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e3 / len(calls))
    return sorted(times)[REPLAYS // 2]


def copies(nbytes: float, most: int = MOST_CALLS) -> int:
    """Return how many calls, each on nbytes of its own, find none of them in L2."""
    return min(most, max(2, int(ROTATED_BYTES / nbytes) + 1))


def rotating(make: Callable[[], Call], nbytes: float, most: int = MOST_CALLS) -> list[Call]:
    """Return calls on memory of their own, as many as it takes."""
    return [make() for _ in range(copies(nbytes, most))]


def random(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(*shape, dtype=dtype, device="cuda")


def column(values: Sequence[int] | torch.Tensor, dtype: torch.dtype = torch.int32) -> torch.Tensor:
    return torch.as_tensor(values, dtype=dtype, device="cuda")


def relative_error(got: torch.Tensor, want: torch.Tensor) -> float:
    """Return the relative L2 distance from what float64 gives."""
    return float((got.double() - want).norm() / want.norm())


def fastest_peer(peers: dict[str, Callable[[], tuple[list[Call], float]]]) -> dict[str, Any]:
    """Return the fields of a Result for the fastest of the peers; one that cannot do the job is left out.

    Each makes its calls and tells its error.
    """
    best: dict[str, Any] = {}
    for name, make in peers.items():
        try:
            calls, error = make()
            us = time_calls(calls)
        except (RuntimeError, NotImplementedError, ValueError, TypeError) as failure:
            torch.cuda.synchronize()
            print(f"  ({name} cannot: {str(failure).splitlines()[0]:.90})")
            continue
        if not best or us < best["peer_us"]:
            best = {"peer": name, "peer_us": us, "peer_error": error}
    return best


@dataclass(frozen=True, kw_only=True)
class Result:
    """One case. Errors are relative L2 distances to float64, of_copy a share of what a copy of as many bytes
    moves a second."""

    part: str
    case: str
    us: float
    gbytes: float = 0.0  # GB that have to be moved
    tflop: float = 0.0  # 10^12 operations that have to be done
    of_copy: float | None = None
    error: float | None = None
    peer: str | None = None
    peer_us: float | None = None
    peer_error: float | None = None

    def line(self) -> str:
        """Return it as a line under HEADER."""
        rate = f"{self.gbytes / self.us * 1e6:7.0f} GB/s" if self.gbytes else ""
        if self.tflop:
            rate = f"{self.tflop / self.us * 1e6:7.0f} TF/s"
        copy = f"{self.of_copy:6.0%}" if self.of_copy else ""
        peer = f"{self.peer_us:9.1f}  {self.peer_us / self.us:5.2f}  {self.peer}" if self.peer_us else ""
        errors = "".join(f"{e:9.1e}" if e is not None else f"{'':9}" for e in (self.error, self.peer_error))
        return f"{self.part:8} {self.case:28}{self.us:9.2f}{rate:>13}{copy:>7}{errors} {peer}".rstrip()

    def as_json(self) -> dict[str, Any]:
        """Return what is known, rounded."""
        known = {name: value for name, value in asdict(self).items() if value not in (None, 0.0)}
        if self.peer_us:
            known["ratio"] = self.peer_us / self.us
        return {name: float(f"{x:.4g}") if isinstance(x, float) else x for name, x in known.items()}


HEADER = (
    f"{'part':8} {'case':28}{'us':>9}{'rate':>13}{'copy':>7}{'error':>9}{'peer err':>9}"
    f" {'peer us':>9}  ratio  peer"
)
