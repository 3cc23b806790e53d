"""Paged attention, the slot mapping and the cache write through Python, against float64."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch
from ops.reference import DTYPES, Step, close

from octavo import ops


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("seed", range(30))
def test_attention_equals_float64_on_random_mixed_steps(seed: int) -> None:
    torch.manual_seed(seed)
    choose = random.Random(seed).choice
    block_size = choose([1, 8, 16, 32])
    kv_heads = choose([1, 2])
    rows = []
    for _ in range(choose([1, 3, 6])):
        length = choose([1, block_size, block_size + 1, 63, 64, 65, 200, 700])
        rows.append((length, choose([1, 1, min(2, length), length])))
    step = Step(
        rows,
        heads=kv_heads * choose([1, 2, 3, 4, 8]),
        kv_heads=kv_heads,
        head_dim=choose([32, 64, 72, 80, 96, 128, 256]),
        block_size=block_size,
        dtype=choose(DTYPES),
    )
    options: dict[str, Any] = {
        "window": choose([0, 0, 1, 33, 100]),
        "soft_cap": choose([0.0, 20.0]),
        "sinks": choose([None, torch.randn(step.heads)]),
    }
    options["chunked"] = options["window"] > 0 and choose([False, True])
    out = torch.full_like(step.q, math.nan)
    step.attend(out, step.head_dim**-0.5, **options)
    close(out, step.expected(step.head_dim**-0.5, **options))


def test_chunks_of_a_prompt_give_what_the_whole_prompt_gives() -> None:
    step = Step([(150, 150)])
    whole = torch.empty_like(step.q)
    step.attend(whole, 0.125)
    parts = torch.empty_like(step.q)
    for begin, end in ((0, 70), (70, 71), (71, 150)):
        ops.paged_attention(
            parts[begin:end],
            step.q[begin:end],
            step.cache,
            step.table,
            step.row_slot,
            torch.tensor([0, end - begin], dtype=torch.int32),
            torch.tensor([end], dtype=torch.int32),
            0.125,
        )
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-6)


def test_queries_may_be_a_slice_of_a_fused_projection() -> None:
    step = Step([(40, 3), (20, 1)])
    want = torch.empty_like(step.q)
    step.attend(want, 0.125)
    fused = torch.randn(4, 512)
    fused[:, :256] = step.q.flatten(1)
    step.q = fused[:, :256].view(4, 4, 64)
    out = torch.empty(4, 4, 64)
    step.attend(out, 0.125)
    assert torch.equal(out, want)


def test_a_row_is_the_same_bits_alone_and_in_a_batch() -> None:
    step = Step([(2000, 1), (300, 120), (40, 1), (600, 2)])
    out = torch.empty_like(step.q)
    step.attend(out, 0.125)
    for row, (_, queries) in enumerate(step.rows):
        begin, end = step.query_start[row], step.query_start[row + 1]
        alone = torch.empty_like(step.q[begin:end])
        ops.paged_attention(
            alone,
            step.q[begin:end],
            step.cache,
            step.table,
            step.row_slot[row : row + 1],
            torch.tensor([0, queries], dtype=torch.int32),
            step.seq_len[row : row + 1],
            0.125,
        )
        assert torch.equal(alone, out[begin:end])


def test_instruction_sets_agree() -> None:
    step = Step([(333, 1), (90, 90)], head_dim=96)
    results = []
    before = ops.isa()
    for name in ("base", "avx2", "avx512"):
        try:
            ops.set_isa(name)
        except RuntimeError:
            continue
        results.append(torch.empty_like(step.q))
        step.attend(results[-1], 0.1)
    ops.set_isa(before)
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=1e-5, atol=2e-6)


def test_bad_indices_are_errors_and_write_nothing() -> None:
    step = Step([(40, 2), (10, 1)])
    out = torch.full_like(step.q, math.nan)
    for name, index, value in (
        ("table", (int(step.row_slot[0]), 2), len(step.cache)),
        ("table", (int(step.row_slot[1]), 0), -1),
        ("row_slot", (0,), 99),
        ("seq_len", (0,), 1 << 30),
        ("seq_len", (0,), 1),
        ("query_start", (1,), 4),
        ("query_start", (2,), 4),
    ):
        column = getattr(step, name)
        before = int(column[index])
        column[index] = value
        with pytest.raises(ValueError, match="paged_attention: "):
            step.attend(out, 0.125)
        column[index] = before
    assert out.isnan().all()


def test_slot_mapping_and_cache_write_refuse_what_is_out_of_range() -> None:
    table = torch.tensor([[3, 1]], dtype=torch.int32)
    slot = torch.empty(3, dtype=torch.int64)
    start, line = torch.tensor([0, 2], dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    position = torch.tensor([5, 17, 99], dtype=torch.int32)
    ops.slot_mapping(slot, position, start, line, table, 16)
    assert slot.tolist() == [3 * 16 + 5, 16 + 1, -1]
    position[1] = 32
    with pytest.raises(ValueError, match=r"position\[1\] is 32, need 0 to 31"):
        ops.slot_mapping(slot, position, start, line, table, 16)
    k, cache = torch.randn(3, 2, 8), torch.zeros(4, 2, 2, 16, 8)
    slot[2] = 64
    with pytest.raises(ValueError, match=r"slot\[2\] is 64, need less than 64"):
        ops.cache_write(k, k, cache, slot)
    assert not cache.any()
    slot[2] = -1
    ops.cache_write(k, k, cache, slot)
    assert torch.equal(cache[3, 0, :, 5], k[0])
    assert int(cache.count_nonzero()) == 2 * 2 * 16
