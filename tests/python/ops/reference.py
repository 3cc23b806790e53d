"""float64 references of the ops, and the arguments of a paged step, for the tests beside this file."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from octavo import ops

TOLERANCE = {torch.float32: 4e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}
DTYPES = tuple(TOLERANCE)


def close(got: Tensor, want: Tensor) -> None:
    """Fail unless `got` is `want` (float64) up to float32 arithmetic and one rounding to its dtype."""
    tolerance = TOLERANCE[got.dtype]
    torch.testing.assert_close(got.double(), want.double(), rtol=tolerance, atol=4 * tolerance)


@dataclass
class Step:
    """Rows of (cached tokens, new tokens) over a pool of NaN, their keys and values written by the ops."""

    rows: list[tuple[int, int]]
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    block_size: int = 16
    dtype: torch.dtype = torch.float32
    cache: Tensor = field(init=False)
    table: Tensor = field(init=False)
    row_slot: Tensor = field(init=False)
    query_start: Tensor = field(init=False)
    seq_len: Tensor = field(init=False)
    keys: list[Tensor] = field(init=False)
    values: list[Tensor] = field(init=False)
    q: Tensor = field(init=False)

    def __post_init__(self) -> None:
        need = [-(-length // self.block_size) for length, _ in self.rows]
        order = (torch.randperm(sum(need)) + 1).int().split(need)
        shape = (sum(need) + 1, 3, 2, self.kv_heads, self.block_size, self.head_dim)
        self.cache = torch.full(shape, math.nan, dtype=self.dtype)[:, 1]  # the middle layer of three
        self.table = torch.zeros(len(need) + 2, max([*need, 1]), dtype=torch.int32)
        self.row_slot = torch.randperm(len(need) + 2)[: len(need)].int()
        lengths, queries = zip(*self.rows, strict=True)
        self.seq_len = torch.tensor(lengths, dtype=torch.int32)
        self.query_start = torch.tensor([0, *queries]).cumsum(0).int()
        self.q = torch.randn(sum(queries), self.heads, self.head_dim).to(self.dtype)
        self.keys, self.values = [], []
        for row, blocks in enumerate(order):
            self.table[self.row_slot[row], : len(blocks)] = blocks
            self.keys.append(torch.randn(lengths[row], self.kv_heads, self.head_dim).to(self.dtype))
            self.values.append(torch.randn(lengths[row], self.kv_heads, self.head_dim).to(self.dtype))
            self.write(row)

    def write(self, row: int) -> None:
        """Store the keys and values of a row, as a prefill of all of its tokens does."""
        count = len(self.keys[row])
        slot = torch.empty(count, dtype=torch.int64)
        start = torch.tensor([0, count], dtype=torch.int32)
        position = torch.arange(count, dtype=torch.int32)
        line = self.row_slot[row : row + 1]
        ops.slot_mapping(slot, position, start, line, self.table, self.block_size)
        ops.cache_write(self.keys[row], self.values[row], self.cache, slot)

    def attend(self, out: Tensor, scale: float, **options: object) -> None:
        """Run the op on the whole step."""
        ops.paged_attention(
            out,
            self.q,
            self.cache,
            self.table,
            self.row_slot,
            self.query_start,
            self.seq_len,
            scale,
            **options,  # type: ignore[arg-type]
        )

    def expected(
        self,
        scale: float,
        window: int = 0,
        soft_cap: float = 0.0,
        sinks: Tensor | None = None,
        chunked: bool = False,
    ) -> Tensor:
        """Return the step's output in float64."""
        out = []
        group = self.heads // self.kv_heads
        for row, (length, queries) in enumerate(self.rows):
            q = self.q[self.query_start[row] : self.query_start[row + 1]].double()
            k = self.keys[row].double().repeat_interleave(group, 1)
            v = self.values[row].double().repeat_interleave(group, 1)
            scores = torch.einsum("nhd,lhd->hnl", q, k) * scale
            if soft_cap > 0:
                scores = soft_cap * torch.tanh(scores / soft_cap)
            position = torch.arange(length - queries, length)[:, None]
            key = torch.arange(length)[None]
            visible = key <= position
            if chunked:
                visible &= key // window == position // window
            elif window > 0:
                visible &= key > position - window
            scores = scores.masked_fill(~visible, -math.inf)
            if sinks is not None:
                sink = sinks.double()[:, None, None].expand(self.heads, queries, 1)
                scores = torch.cat([scores, sink], -1)
            weights = scores.softmax(-1)[..., :length]
            out.append(torch.einsum("hnl,lhd->nhd", weights, v))
        return torch.cat(out)
