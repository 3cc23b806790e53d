"""Decode attention of rows that share a prefix: 8B heads (32 on 8, D 128, bf16), us a layer, on a GPU.

    python bench/shared_prefix.py

Three plans of the same rows: `decode` is today's decode step (no prefill kernel in it), `apart` a mixed step
without sharing, `shared` a mixed step that was asked to share. A graph is the plan and LAYERS calls, each
over a pool of its own; the plan has a column. Values of all plans are compared with each other, and
of the first row with float64.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import sys
from collections.abc import Iterable
from typing import Any

import torch

from octavo import ops

LAYERS, HEADS, KV, DIM, BLOCK = 8, 32, 8, 128, 16
CELLS = [  # rows, shared tokens, own tokens
    (256, 2048, 128),
    (64, 2048, 128),
    (64, 8192, 128),
    (16, 8192, 128),
    (16, 2048, 128),
    (8, 2048, 128),
    (4, 2048, 128),
    (256, 2048, 512),
    (256, 256, 128),
    (256, 0, 1024),  # nothing shared: what asking costs
    (64, 0, 4096),
]


def column(values: Iterable[int]) -> torch.Tensor:
    return torch.tensor(list(values), dtype=torch.int32, device="cuda")


class Rows:
    def __init__(self, rows: int, shared: int, own: int) -> None:
        self.rows, self.length = rows, shared + own
        prefix, each = shared // BLOCK, math.ceil(own / BLOCK)
        used = prefix + rows * each
        self.pool = torch.randn(LAYERS, used + 1, 2, KV, BLOCK, DIM, dtype=torch.bfloat16, device="cuda")
        order = torch.randperm(used, device="cuda").int() + 1
        self.table = torch.zeros(rows, prefix + each, dtype=torch.int32, device="cuda")
        self.table[:, :prefix] = order[:prefix]
        self.table[:, prefix:] = order[prefix:].view(rows, each)
        self.row_slot, self.query_start = column(range(rows)), column(range(rows + 1))
        # Lengths differ by up to a block, as rows do that decode together.
        self.seq_len = column(self.length - row % BLOCK for row in range(rows))
        self.q = torch.randn(rows, HEADS, DIM, dtype=torch.bfloat16, device="cuda")
        self.out = torch.empty_like(self.q)
        self.args = (self.table, self.row_slot, self.query_start, self.seq_len)

    def plan(self, **options: Any) -> ops.AttentionPlan:
        count = ops.attention_plan_bytes(self.pool[0], self.rows, self.rows, HEADS, **options)
        return ops.AttentionPlan(memory=torch.empty(count, dtype=torch.uint8, device="cuda"), **options)

    def run(self, plan: ops.AttentionPlan, layers: int = LAYERS) -> None:
        ops.plan_attention(plan, self.pool[0], *self.args, self.rows, HEADS)
        behind = dataclasses.replace(plan, ready=True)
        for i in range(layers):
            given = plan if i == 0 else behind
            ops.paged_attention(self.out, self.q, self.pool[i], *self.args, DIM**-0.5, plan=given)

    def expected(self, row: int) -> torch.Tensor:
        length = int(self.seq_len[row])
        kv = self.pool[LAYERS - 1][self.table[row].long()].double().movedim(2, 1)  # [n, Hk, 2, bs, D]
        k, v = kv.permute(2, 1, 0, 3, 4).flatten(2, 3)[:, :, :length]
        k, v = (x.repeat_interleave(HEADS // KV, 0) for x in (k, v))
        scores = (k @ self.q[row].double()[..., None])[..., 0] * DIM**-0.5
        return (scores.softmax(-1)[:, None] @ v)[:, 0]


def graph_of(rows: Rows, plan: ops.AttentionPlan, layers: int) -> torch.cuda.CUDAGraph:
    rows.run(plan, layers)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        rows.run(plan, layers)
    return graph


def time_of(graph: torch.cuda.CUDAGraph, repeats: int = 12) -> float:
    """Median us of a launch."""
    times = []
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(4):
            graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1000 / 4)
    return statistics.median(times[2:])


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest relative L2 distance of a head."""
    a, b = a.double(), b.double()
    return float(((a - b).norm(dim=-1) / b.norm(dim=-1).clamp_min(1e-9)).max())


PLANS: dict[str, dict[str, Any]] = {
    "decode": {"max_queries": 1},
    "apart": {"max_queries": 0},
    "shared": {"max_queries": 0, "share_prefixes": True},
}


def measure(cell: tuple[int, int, int]) -> bool:
    """Print a cell's line; return whether the values of all plans agree."""
    rows = Rows(*cell)
    layer, alone, outs = {}, {}, {}
    for name, options in PLANS.items():
        plan = rows.plan(**options)
        graph, empty = graph_of(rows, plan, LAYERS), graph_of(rows, plan, 0)
        rows.out.fill_(math.nan)
        graph.replay()
        torch.cuda.synchronize()
        outs[name] = rows.out.clone()
        alone[name] = time_of(empty)
        layer[name] = (time_of(graph) - alone[name]) / LAYERS
    far = distance(outs["shared"], outs["apart"])
    wrong = max(distance(outs[name][0], rows.expected(0)) for name in PLANS)
    named = f"{cell[0]} x {cell[1]} + {cell[2]}"
    times = " ".join(f"{layer[name]:8.1f}" for name in PLANS)
    planned = " ".join(f"{alone[name]:5.1f}" for name in PLANS)
    print(f"{named:>22} {times} {planned}   apart {far:.1e}, float64 {wrong:.1e}", flush=True)
    return far < 2e-2 and wrong < 1e-2


def main() -> int:
    torch.manual_seed(0)
    print(f"{'rows x shared + own':>22} {'decode':>8} {'apart':>8} {'shared':>8} {'plan us':>17}   distances")
    bad = [cell for cell in CELLS if not measure(cell)]
    print(f"values differ: {bad}" if bad else "values agree")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
