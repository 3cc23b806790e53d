"""Latent attention through Python, against float64 and against the attention that it absorbs."""

from __future__ import annotations

import math
import random

import pytest
import torch
from ops.reference import DTYPES, close

from octavo import ops

BLOCK = 16


class Step:
    """Rows of (cached tokens, new tokens) over a pool of NaN, of which the second of three layers is used."""

    def __init__(
        self, rows: list[tuple[int, int]], heads: int, rank: int, rope: int, dtype: torch.dtype
    ) -> None:
        need = [-(-length // BLOCK) for length, _ in rows]
        order = (torch.randperm(sum(need)) + 1).int().split(need)
        self.rows, self.rank = rows, rank
        self.cache = torch.full((sum(need) + 1, 3, BLOCK, rank + rope), math.nan, dtype=dtype)[:, 1]
        self.table = torch.zeros(len(rows) + 2, max(*need, 1), dtype=torch.int32)
        self.row_slot = torch.randperm(len(rows) + 2)[: len(rows)].int()
        lengths, queries = zip(*rows, strict=True)
        self.seq_len = torch.tensor(lengths, dtype=torch.int32)
        self.query_start = torch.tensor([0, *queries]).cumsum(0).int()
        self.q = torch.randn(sum(queries), heads, rank + rope).to(dtype)
        self.keys = [torch.randn(length, rank + rope).to(dtype) for length in lengths]
        for row, (blocks, keys) in enumerate(zip(order, self.keys)):
            self.table[self.row_slot[row], : len(blocks)] = blocks
            position = torch.arange(len(keys))
            slot = blocks.long()[position // BLOCK] * BLOCK + position % BLOCK
            ops.latent_cache_write(keys[:, :rank], keys[:, rank:], self.cache, slot)

    def attend(self, out: torch.Tensor, scale: float) -> None:
        rows = (self.table, self.row_slot, self.query_start, self.seq_len)
        ops.latent_attention(out, self.q, self.cache, *rows, scale)

    def expected(self, scale: float) -> torch.Tensor:
        out = []
        for row, (length, queries) in enumerate(self.rows):
            q = self.q[self.query_start[row] : self.query_start[row + 1]].double()
            keys = self.keys[row].double()
            scores = torch.einsum("nhd,ld->hnl", q, keys) * scale
            hidden = torch.arange(length)[None] > torch.arange(length - queries, length)[:, None]
            weights = scores.masked_fill(hidden, -math.inf).softmax(-1)
            out.append(torch.einsum("hnl,lc->nhc", weights, keys[:, : self.rank]))
        return torch.cat(out)


@pytest.mark.parametrize("seed", range(20))
def test_latent_attention_equals_float64_on_random_mixed_steps(seed: int) -> None:
    torch.manual_seed(seed)
    choose = random.Random(seed).choice
    rows = []
    for _ in range(choose([1, 3, 6])):
        length = choose([1, BLOCK, BLOCK + 1, 63, 64, 65, 200, 700])
        rows.append((length, choose([1, 1, min(3, length), length])))
    step = Step(rows, choose([1, 4, 16, 40]), choose([16, 40, 64, 512]), choose([8, 16, 64]), choose(DTYPES))
    out = torch.full((*step.q.shape[:2], step.rank), math.nan, dtype=step.q.dtype)
    step.attend(out, 0.1)
    close(out, step.expected(0.1))


def test_absorbed_attention_is_attention_over_the_keys_and_values_of_each_head() -> None:
    torch.manual_seed(0)
    heads, rank, rope, nope, value = 6, 64, 16, 24, 20
    step = Step([(90, 90)], heads, rank, rope, torch.float32)
    latent, shared = step.keys[0][:, :rank], step.keys[0][:, rank:]
    to_keys, to_values = torch.randn(heads, nope, rank) / 8, torch.randn(heads, value, rank) / 8
    q_nope, q_rope = torch.randn(90, heads, nope), torch.randn(90, heads, rope)
    step.q = torch.cat([torch.einsum("nhd,hdc->nhc", q_nope, to_keys), q_rope], -1)
    out = torch.empty(90, heads, rank)
    step.attend(out, 0.15)
    got = torch.einsum("nhc,hvc->nhv", out, to_values)
    keys = torch.cat([torch.einsum("lc,hdc->hld", latent, to_keys), shared.expand(heads, -1, -1)], -1)
    values = torch.einsum("lc,hvc->hlv", latent, to_values)
    queries = torch.cat([q_nope, q_rope], -1).transpose(0, 1)
    want = torch.nn.functional.scaled_dot_product_attention(queries, keys, values, is_causal=True, scale=0.15)
    torch.testing.assert_close(got, want.transpose(0, 1), rtol=1e-4, atol=1e-5)


def test_what_does_not_fit_is_refused_by_name() -> None:
    step = Step([(20, 2)], 4, 32, 8, torch.float32)
    out = torch.full((2, 4, 32), math.nan)
    step.seq_len[0] = 99
    with pytest.raises(ValueError, match=r"latent_attention: seq_len\[0\] is 99"):
        step.attend(out, 0.1)
    step.seq_len[0] = 20
    with pytest.raises(ValueError, match="latent_attention: out has dtype bfloat16"):
        step.attend(out.bfloat16(), 0.1)
    slot = torch.tensor([3, 48])
    with pytest.raises(ValueError, match=r"latent_cache_write: slot\[1\] is 48, need less than 48"):
        ops.latent_cache_write(step.keys[0][:2, :32], step.keys[0][:2, 32:], step.cache, slot)
    assert out.isnan().all()
