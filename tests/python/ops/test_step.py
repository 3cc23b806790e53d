"""The ops around the layers of a step: tokens of the last step, and norm, rope and cache write in one."""

from __future__ import annotations

import pytest
import torch
from ops.reference import DTYPES

from octavo import ops


def column(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("interleaved", [False, True])
def test_norm_rope_cache_has_the_bits_of_its_three_parts(
    dtype: torch.dtype, normed: bool, interleaved: bool
) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(7, 4 + 2 + 2, 64).to(dtype).split((4, 2, 2), 1)
    norms = [torch.randn(64).to(dtype) for _ in range(2)] if normed else [None, None]
    position, slot = column(5, 0, 1, 2, 39, 8, 9), torch.tensor([3, 0, 17, -1, 47, 20, 1])
    table = torch.randn(40, 32)
    fused, parts = (torch.full((3, 2, 2, 16, 64), torch.nan, dtype=dtype) for _ in range(2))
    fused_q = q.clone()
    ops.norm_rope_cache(fused_q, k.clone(), v, position, table, fused, slot, *norms, 1e-5, 1.0, interleaved)
    q, k = q.clone(), k.clone()
    for x, weight in zip((q, k), norms):
        if weight is not None:
            ops.rms_norm(x, x, weight, 1e-5, 1.0)
    ops.rope(q, k, position, table, interleaved)
    ops.cache_write(k, v, parts, slot)
    assert torch.equal(fused_q, q)
    assert torch.equal(fused.nan_to_num(7.0), parts.nan_to_num(7.0))


def test_norm_rope_cache_wants_both_norms_or_neither() -> None:
    x, cache = torch.zeros(1, 1, 8), torch.zeros(1, 2, 1, 16, 8)
    with pytest.raises(ValueError, match="one of q_norm and k_norm is missing"):
        ops.norm_rope_cache(
            x, x, x, column(0), torch.zeros(4, 8), cache, torch.zeros(1, dtype=torch.int64), torch.ones(8)
        )


def test_a_token_that_only_the_executor_knows_is_filled_in() -> None:
    last_token = column(50, 51, -1, 53)
    token_id = column(-1, 7, 8, -1, -1)
    ops.fill_tokens(token_id, column(0, 1, 3, 4, 5), column(3, 0, 1, 2), last_token)
    assert token_id.tolist() == [53, 7, 8, 51, 0]


def test_a_sampled_token_is_kept_under_its_rows_slot() -> None:
    last_token = column(50, 51, 52, 53)
    ops.keep_tokens(last_token, column(9, -1), column(1, 2), column(3, 0, 2))
    assert last_token.tolist() == [9, 51, -1, 53]


def test_sampled_tokens_land_where_a_number_in_memory_says() -> None:
    landed, last_token = column(7, 7, 7), column(50, 51)
    for address, want in ((0, [7, 7, 7]), (landed.data_ptr(), [9, -1, 7])):
        landing = torch.tensor([address])
        ops.keep_tokens(last_token, column(9, -1), column(0, 0), column(1), landing)
        assert landed.tolist() == want
    assert last_token[0] == 50 and last_token[1] in (9, -1)
    with pytest.raises(ValueError, match="keep_tokens: landing"):
        ops.keep_tokens(last_token, column(9), column(0), column(1), column(0))


def test_token_ops_refuse_a_slot_out_of_range() -> None:
    with pytest.raises(ValueError, match=r"fill_tokens: row_slot\[0\] is 4, need 0 to 3"):
        ops.fill_tokens(column(-1), column(0, 1), column(4), column(0, 0, 0, 0))
    with pytest.raises(ValueError, match=r"keep_tokens: sample_row\[0\] is 1, need 0 to 0"):
        ops.keep_tokens(column(0), column(5), column(1), column(0))


def test_attention_needs_no_plan_on_the_cpu() -> None:
    cache = torch.zeros(2, 2, 1, 16, 64)
    assert ops.attention_plan_bytes(cache, tokens=4, rows=2, heads=4, share_prefixes=True) == 0
    plan = ops.AttentionPlan(memory=torch.empty(0, dtype=torch.uint8), share_prefixes=True)
    assert plan.options == (0, 1, False, True)
    ops.plan_attention(plan, cache, column(1).view(1, 1), column(0), column(0, 1), column(1), 1, 4)


@pytest.mark.parametrize("to_pool", [False, True])
def test_runs_are_copied_one_way(to_pool: bool) -> None:
    pool, memory = (torch.arange(64, dtype=torch.uint8) + first for first in (0, 100))
    before = pool.clone(), memory.clone()
    ops.copy_runs(pool, memory, torch.tensor([[0, 60, 4], [32, 0, 8], [7, 7, 0]]), to_pool=to_pool)
    want_pool, want_memory = (part.clone() for part in before)
    if to_pool:
        want_pool[0:4], want_pool[32:40] = before[1][60:64], before[1][0:8]
    else:
        want_memory[60:64], want_memory[0:8] = before[0][0:4], before[0][32:40]
    assert torch.equal(pool, want_pool)
    assert torch.equal(memory, want_memory)


@pytest.mark.parametrize("run", [(60, 0, 8), (0, 60, 8), (-1, 0, 4), (0, 0, -1), (2**62, 0, 2**62)])
def test_a_run_beyond_its_memory_is_refused_before_any_is_copied(run: tuple[int, int, int]) -> None:
    pool, memory = torch.zeros(64, dtype=torch.uint8), torch.ones(64, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"copy_runs: runs\[1\] is .* need bytes within pool \(64\)"):
        ops.copy_runs(pool, memory, torch.tensor([(0, 0, 4), run]), to_pool=True)
    assert not pool.any()
    with pytest.raises(ValueError, match="copy_runs: pool"):
        ops.copy_runs(pool.int(), memory, torch.tensor([(0, 0, 4)]), to_pool=True)
