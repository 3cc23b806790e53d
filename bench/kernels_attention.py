"""Paged attention beside its peers: decode, prefill and mixed steps, over the layers of one pool.

Peers get the same pool where they read pages (FlashInfer, FlashAttention 3), and torch's attention keys and
values that lie side by side. A result is compared with float64 for a few rows of a step.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from timing import Call, Result, column, copies, fastest_peer, random, relative_error, time_calls

from octavo import ops

BLOCK = 16
CHECKED = 24  # queries of the first and of the last row that are compared with float64
Peers = dict[str, Callable[[], tuple[list[Call], float]]]


@dataclass(frozen=True)
class Cell:
    """Rows of (queries, cached tokens, their own included)."""

    part: str
    name: str
    rows: tuple[tuple[int, int], ...]
    heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128
    fp8: bool = False
    fresh: bool = False  # from the projections on: the newest keys and values are not stored yet

    @property
    def tokens(self) -> int:
        return sum(queries for queries, _ in self.rows)

    @property
    def kv_bytes(self) -> float:
        entry = self.kv_heads * self.head_dim * (1 if self.fp8 else 2)
        return 2.0 * entry * sum(length for _, length in self.rows)

    @property
    def flop(self) -> float:
        pairs = sum(q * length - q * (q - 1) / 2 for q, length in self.rows)
        return 4.0 * pairs * self.heads * self.head_dim


GEMMA = {"heads": 8, "kv_heads": 4, "head_dim": 256}
SKEWED = ((1, 1024),) * 60 + ((1, 32768),) * 4
DECODE = [
    Cell("decode", f"{rows} x {length // 1024}k", ((1, length),) * rows)
    for rows, length in [
        (1, 1024),
        (1, 8192),
        (1, 32768),
        (8, 1024),
        (8, 8192),
        (64, 1024),
        (64, 8192),
        (256, 1024),
    ]
]
OTHERS = [
    Cell("decode", "60 x 1k and 4 x 32k", SKEWED),
    Cell("decode", "8 x 8k, Gemma heads", ((1, 8192),) * 8, **GEMMA),
    Cell("decode", "8 x 8k, e4m3", ((1, 8192),) * 8, fp8=True),
    Cell("decode", "64 x 8k, e4m3", ((1, 8192),) * 64, fp8=True),
    Cell("decode", "1 x 1k, fresh", ((1, 1024),), fresh=True),
    Cell("decode", "8 x 1k, fresh", ((1, 1024),) * 8, fresh=True),
    Cell("decode", "16 x 4k, fresh", ((1, 4096),) * 16, fresh=True),
]
PREFILL = [
    Cell("prefill", "1 x 8k", ((8192, 8192),)),
    Cell("prefill", "4 x 2k", ((2048, 2048),) * 4),
    Cell("prefill", "16 x 512 after 4k", ((512, 4608),) * 16),
    Cell("prefill", "1 x 2k after 32k", ((2048, 34816),)),
    Cell("prefill", "1 x 8k, Gemma heads", ((8192, 8192),), **GEMMA),
    Cell("mixed", "64 x 4k and a 2k prompt", ((1, 4096),) * 64 + ((2048, 2048),)),
]


class Step:
    """A cell's tensors on the device: a pool with a layer for each call, and the rows' blocks in it."""

    def __init__(self, cell: Cell) -> None:
        self.cell = cell
        self.calls = copies(cell.kv_bytes)
        self.each = [math.ceil(length / BLOCK) for _, length in cell.rows]
        used = sum(self.each)
        pool = random(used + 1, self.calls, 2, cell.kv_heads, BLOCK, cell.head_dim)
        self.pool = pool.to(torch.float8_e4m3fn) if cell.fp8 else pool
        order = torch.randperm(used, device="cuda").to(torch.int32) + 1
        self.blocks = order.split(self.each)
        self.table = torch.zeros(len(self.each), max(self.each), dtype=torch.int32, device="cuda")
        for row, part in enumerate(self.blocks):
            self.table[row, : len(part)] = part
        self.query_start = column([0, *itertools.accumulate(queries for queries, _ in cell.rows)])
        self.seq_len = column([length for _, length in cell.rows])
        self.row_slot = column(range(len(cell.rows)))
        self.q = random(cell.tokens, cell.heads, cell.head_dim)
        self.out = torch.full_like(self.q, torch.nan)
        self.scale = cell.head_dim**-0.5

    def plan(self) -> ops.AttentionPlan:
        """Return the plan, which is made once a step for all layers."""
        cell, longest = self.cell, max(queries for queries, _ in self.cell.rows)
        cache, like = self.pool[:, 0], self.q if cell.fp8 else None
        count = ops.attention_plan_bytes(
            cache, cell.tokens, len(cell.rows), cell.heads, max_queries=longest, like=like
        )
        plan = ops.AttentionPlan(
            memory=torch.empty(count, dtype=torch.uint8, device="cuda"), max_queries=longest
        )
        ops.plan_attention(plan, cache, *self.rows, cell.tokens, cell.heads, like=like)
        return plan

    @property
    def rows(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        return self.table, self.row_slot, self.query_start, self.seq_len

    def ours(self) -> list[Call]:
        """Return the calls of Octavo's attention."""
        plan, rows = self.plan(), self.rows

        def call(i: int) -> Call:
            layer = self.pool[:, i]
            return lambda: ops.paged_attention(self.out, self.q, layer, *rows, self.scale, plan=plan)

        return [call(i) for i in range(self.calls)]

    def fresh(self, *, apart: bool = False) -> list[Call]:
        """Return the calls of attention from the projections on, in the kernels of the two ops if `apart`.

        Angles are zero and there are no norms, so that what is stored and attended to is what was.
        """
        cell, plan, rows = self.cell, self.plan(), self.rows
        newest = self.seq_len - 1
        block = self.table[self.row_slot.long(), newest // BLOCK].long()
        place = (newest % BLOCK).long()
        angles = torch.zeros(1, cell.head_dim, device="cuda")
        angles[:, : cell.head_dim // 2] = 1.0  # cosines, then sines
        where = (torch.zeros_like(newest), angles)

        def call(i: int) -> Call:
            layer, slot = self.pool[:, i], block * BLOCK + place
            k, v = (layer[block, kv, :, place].contiguous() for kv in (0, 1))
            if not apart:
                given = (self.q, k, v, *where, layer, slot, *rows, self.scale)
                return lambda: ops.norm_rope_attention(self.out, *given, plan=plan)

            def run() -> None:
                ops.norm_rope_cache(self.q, k, v, *where, layer, slot)
                ops.paged_attention(self.out, self.q, layer, *rows, self.scale, plan=plan)

            return run

        return [call(i) for i in range(self.calls)]

    def keys(self, row: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a row's keys and values of the first call, [Hk, length, D] each."""
        stored = self.pool.view(torch.uint8)[self.blocks[row].long(), 0].view(self.pool.dtype)
        k, v = stored.float().movedim(0, 2).flatten(2, 3)[:, :, : self.cell.rows[row][1]]
        return k, v

    @functools.cached_property
    def checked(self) -> list[tuple[slice, torch.Tensor]]:
        """Which tokens are compared, and what float64 gives for them."""
        cell, wanted = self.cell, []
        for row in {0, len(cell.rows) - 1}:
            queries, length = cell.rows[row]
            end, count = int(self.query_start[row + 1]), min(queries, CHECKED)
            q = self.q[end - count : end].double().transpose(0, 1)
            group = cell.heads // cell.kv_heads
            k, v = (x.double().repeat_interleave(group, 0) for x in self.keys(row))
            scores = q @ k.transpose(1, 2) * self.scale
            seen = torch.arange(length, device="cuda") <= column(range(length - count, length))[:, None]
            scores = scores.masked_fill(~seen, -torch.inf)
            wanted.append((slice(end - count, end), (scores.softmax(-1) @ v).transpose(0, 1)))
        return wanted

    def error(self, out: torch.Tensor) -> float:
        """Return the largest relative error of the compared rows of [N, Hq, D]."""
        return max(relative_error(out[at], want) for at, want in self.checked)


def error_of(step: Step, calls: list[Call]) -> float:
    """Make the first call and compare."""
    step.out.fill_(torch.nan)
    calls[0]()
    return step.error(step.out)


def sdpa(step: Step, backend: Any) -> tuple[list[Call], float]:
    """torch's attention over keys and values that are contiguous, for rows of one shape."""
    from torch.nn.attention import sdpa_kernel
    from torch.nn.attention.bias import causal_lower_right

    cell = step.cell
    if len(set(cell.rows)) > 1 or cell.fp8:
        raise NotImplementedError("rows of one shape and 16 bits only")
    queries, length = cell.rows[0]
    mask = causal_lower_right(queries, length) if 1 < queries < length else None
    count = len(cell.rows)
    q = step.q.view(count, queries, cell.heads, cell.head_dim).transpose(1, 2)

    def call(keys: torch.Tensor, values: torch.Tensor) -> Call:
        def run() -> torch.Tensor:
            with sdpa_kernel(backend):
                return F.scaled_dot_product_attention(
                    q, keys, values, attn_mask=mask, is_causal=queries == length, enable_gqa=True
                )

        return run

    first = [torch.stack([step.keys(row)[kv].bfloat16() for row in range(count)]) for kv in (0, 1)]
    pairs = [first] + [[x.clone() for x in first] for _ in range(step.calls - 1)]
    calls = [call(*pair) for pair in pairs]
    out: Any = calls[0]()
    return calls, step.error(out.transpose(1, 2).reshape(step.q.shape))


def flash_attention_3(step: Step) -> tuple[list[Call], float]:
    """FlashAttention 3 as vLLM ships it, over the same pool."""
    from vllm.vllm_flash_attn import flash_attn_varlen_func

    longest, most = max(q for q, _ in step.cell.rows), max(length for _, length in step.cell.rows)

    def call(i: int) -> Call:
        k, v = (step.pool[:, i, kv].transpose(1, 2) for kv in (0, 1))
        return lambda: flash_attn_varlen_func(
            step.q,
            k,
            v,
            longest,
            step.query_start,
            most,
            seqused_k=step.seq_len,
            softmax_scale=step.scale,
            causal=True,
            block_table=step.table,
            out=step.out,
            fa_version=3,
        )

    calls = [call(i) for i in range(step.calls)]
    return calls, error_of(step, calls)


def flashinfer(step: Step, backend: str) -> tuple[list[Call], float]:
    """FlashInfer over the same pool."""
    import flashinfer as peer

    cell = step.cell
    ends = column([0, *itertools.accumulate(step.each)])
    blocks = torch.cat(step.blocks)
    last = column([(length - 1) % BLOCK + 1 for _, length in cell.rows])
    workspace = torch.zeros(512 << 20, dtype=torch.uint8, device="cuda")
    shape = (cell.heads, cell.kv_heads, cell.head_dim, BLOCK)
    options = {
        "sm_scale": step.scale,
        "q_data_type": torch.bfloat16,
        "kv_data_type": step.pool.dtype,
    }
    if cell.part == "decode":
        run = peer.BatchDecodeWithPagedKVCacheWrapper(
            workspace, "HND", use_tensor_cores=True, backend=backend
        )
        run.plan(ends, blocks, last, *shape, **options)
    else:
        run = peer.BatchPrefillWithPagedKVCacheWrapper(workspace, "HND", backend=backend)
        run.plan(step.query_start, ends, blocks, last, *shape, causal=True, **options)

    def call(i: int) -> Call:
        cache = step.pool[:, i]
        return lambda: run.run(step.q, cache, out=step.out)

    calls = [call(i) for i in range(step.calls)]
    return calls, error_of(step, calls)


def peers_of(step: Step) -> Peers:
    """Return the peers that can be imported here."""
    from importlib.util import find_spec

    from torch.nn.attention import SDPBackend

    found: Peers = {
        "torch flash": lambda: sdpa(step, SDPBackend.FLASH_ATTENTION),
        "torch cuDNN": lambda: sdpa(step, SDPBackend.CUDNN_ATTENTION),
    }
    if find_spec("vllm"):
        found["FA3 (vLLM)"] = lambda: flash_attention_3(step)
    if find_spec("flashinfer"):
        for backend in ("fa2", "fa3"):
            found[f"FlashInfer {backend}"] = lambda backend=backend: flashinfer(step, backend)  # type: ignore[misc]
    return {} if step.cell.fp8 or step.cell.fresh else found


def measure(cells: list[Cell]) -> Iterator[Result]:
    """Time the cells one by one."""
    in_16_bits: dict[str, float] = {}
    for cell in cells:
        step = Step(cell)
        calls = step.fresh() if cell.fresh else step.ours()
        error, us = error_of(step, calls), time_calls(calls)
        peer = fastest_peer(peers_of(step))
        if cell.fresh:
            peer = {"peer": "octavo, two kernels", "peer_us": time_calls(step.fresh(apart=True))}
        if cell.fp8:  # no peer here reads e4m3; what it saves over 16 bits is the question
            peer = {"peer": "octavo, bf16", "peer_us": in_16_bits.get(cell.name.removesuffix(", e4m3"))}
        in_16_bits[cell.name] = us
        bound = {"gbytes": cell.kv_bytes / 1e9} if cell.part == "decode" else {"tflop": cell.flop / 1e12}
        yield Result(part=cell.part, case=cell.name, us=us, error=error, **bound, **peer)
        del step, calls
        torch.cuda.empty_cache()


def decode() -> Iterator[Result]:
    """Rows of one query."""
    yield from measure(DECODE + OTHERS)


def prefill() -> Iterator[Result]:
    """Rows of many queries, and some of one beside them."""
    yield from measure(PREFILL)
