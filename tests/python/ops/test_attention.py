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


def fresh_arguments(step: Step, normed: bool) -> dict[str, Any]:
    """What norm_rope_attention takes for the newest tokens of a step, whose slots hold NaN."""
    tokens, heads = len(step.q), step.heads + 2 * step.kv_heads
    q, k, v = (
        torch.randn(tokens, heads, step.head_dim)
        .to(step.dtype)
        .split((step.heads, step.kv_heads, step.kv_heads), 1)
    )
    position = torch.cat([torch.arange(length - new, length) for length, new in step.rows]).int()
    slot = torch.empty(tokens, dtype=torch.int64)
    ops.slot_mapping(slot, position, step.query_start, step.row_slot, step.table, step.block_size)
    nan = torch.full_like(k, math.nan)
    ops.cache_write(nan, nan, step.cache, slot)
    norms = [torch.randn(step.head_dim).to(step.dtype) if normed else None for _ in range(2)]
    return {
        "out": torch.full_like(step.q, math.nan),
        "q": q,
        "k": k,
        "v": v,
        "position": position,
        "cos_sin": torch.randn(1000, step.head_dim),
        "cache": step.cache,
        "slot": slot,
        "block_table": step.table,
        "row_slot": step.row_slot,
        "query_start": step.query_start,
        "seq_len": step.seq_len,
        "scale": step.head_dim**-0.5,
        "q_norm": norms[0],
        "k_norm": norms[1],
        "eps": 1e-5,
        "weight_offset": 1.0,
    }


HEADS = ("q", "k", "v", "position", "cos_sin", "cache", "slot", "q_norm", "k_norm", "eps", "weight_offset")
ROWS = ("out", "q", "cache", "block_table", "row_slot", "query_start", "seq_len", "scale")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("mask", [{}, {"window": 20, "soft_cap": 5.0}, {"window": 16, "chunked": True}])
def test_norm_rope_attention_has_the_bits_of_its_two_parts(
    dtype: torch.dtype, normed: bool, mask: dict[str, Any]
) -> None:
    step = Step([(40, 1), (16, 1), (17, 3), (1, 1), (90, 90)], dtype=dtype)
    given = fresh_arguments(step, normed)
    sinks = torch.randn(step.heads)
    parts = {name: x.clone() if isinstance(x, torch.Tensor) else x for name, x in given.items()}
    ops.norm_rope_attention(**given, **mask, sinks=sinks)
    ops.norm_rope_cache(**{name: parts[name] for name in HEADS})
    ops.paged_attention(**{name: parts[name] for name in ROWS}, **mask, sinks=sinks)
    assert torch.equal(given["out"], parts["out"])
    assert torch.equal(given["cache"].nan_to_num(7.0), parts["cache"].nan_to_num(7.0))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("position", 1000, r"rope: position\[0\] is 1000, need 0 to 999"),
        ("slot", 1 << 40, r"cache_write: slot\[0\] is 1099511627776"),
        ("seq_len", 1 << 30, r"paged_attention: seq_len\[0\]"),
        ("query_start", 1, "paged_attention: query_start must start at 0"),
    ],
)
def test_norm_rope_attention_checks_all_indices_before_it_writes(name: str, value: int, message: str) -> None:
    step = Step([(40, 2), (10, 1)])
    given = fresh_arguments(step, normed=True)
    before = {part: given[part].clone() for part in ("out", "q", "k", "cache")}
    given[name][0] = value
    with pytest.raises(ValueError, match=message):
        ops.norm_rope_attention(**given)
    for part, was in before.items():
        assert torch.equal(given[part].nan_to_num(7.0), was.nan_to_num(7.0)), part


def test_norm_rope_attention_wants_an_output_of_its_own() -> None:
    given = fresh_arguments(Step([(40, 2), (10, 1)]), normed=False)
    given["out"] = given["q"]
    with pytest.raises(ValueError, match="norm_rope_attention: an output shares memory with an input"):
        ops.norm_rope_attention(**given)
    given["out"] = torch.empty(2, 4, 64)
    with pytest.raises(ValueError, match="paged_attention: out has shape"):
        ops.norm_rope_attention(**given)
