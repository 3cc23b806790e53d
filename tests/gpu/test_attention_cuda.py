"""Paged attention through Python on CUDA: by a plan and without one, beside the CPU op."""

from __future__ import annotations

import pytest
import torch
from ops.reference import Step, close
from torch import Tensor

from octavo import ops


def on_device(step: Step) -> Step:
    """Move a step to the device. Its layer stays a strided view of the pool."""
    pool = step.cache.new_empty(step.cache.shape[0], 3, *step.cache.shape[1:], device="cuda")
    pool.fill_(torch.nan)
    pool[:, 1] = step.cache.cuda()
    step.cache = pool[:, 1]
    for name in ("table", "row_slot", "query_start", "seq_len", "q"):
        setattr(step, name, getattr(step, name).cuda())
    return step


def plan_for(step: Step, window: int, chunked: bool = False, **options: int) -> ops.AttentionPlan:
    tokens, heads = step.q.shape[:2]
    rows = (step.table, step.row_slot, step.query_start, step.seq_len)
    count = ops.attention_plan_bytes(step.cache, tokens, len(step.row_slot), heads, window, **options)
    plan = ops.AttentionPlan(memory=torch.empty(count, dtype=torch.uint8, device="cuda"), **options)
    ops.plan_attention(plan, step.cache, *rows, tokens, heads, window, chunked)
    return plan


def attend(step: Step, plan: ops.AttentionPlan | None, **options: object) -> Tensor:
    out = torch.full_like(step.q, torch.nan)
    rows = (step.table, step.row_slot, step.query_start, step.seq_len)
    ops.paged_attention(out, step.q, step.cache, *rows, step.head_dim**-0.5, plan=plan, **options)
    return out


ROWS = [
    [(1, 1)],
    [(5, 5), (0, 0), (16, 1), (17, 1), (33, 33), (700, 1), (129, 100)],
    [(3000, 1), (1, 1), (64, 64)],
]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("head_dim", [64, 128, 256, 40])
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(("window", "chunked"), [(0, False), (40, False), (40, True)])
def test_attention_is_the_cpus(
    dtype: torch.dtype, head_dim: int, rows: list[tuple[int, int]], window: int, chunked: bool
) -> None:
    step = Step(rows, heads=8, kv_heads=2, head_dim=head_dim, dtype=dtype)
    want = torch.full_like(step.q, torch.nan)
    mask: dict[str, object] = {"window": window, "chunked": chunked}
    step.attend(want, head_dim**-0.5, **mask)
    step = on_device(step)
    plan = plan_for(step, window, chunked)
    planned, plain = attend(step, plan, **mask), attend(step, None, **mask)
    close(planned.cpu(), want.double())
    close(plain.cpu(), want.double())


def test_one_plan_serves_all_layers_of_a_graph_and_follows_the_lengths() -> None:
    step = on_device(
        Step([(900, 1), (17, 1), (2000, 1)], heads=8, kv_heads=2, head_dim=128, dtype=torch.bfloat16)
    )
    plan = plan_for(step, 0, max_queries=1)
    rows = (step.table, step.row_slot, step.query_start, step.seq_len)
    outs = [torch.empty_like(step.q) for _ in range(2)]

    def run() -> None:
        ops.plan_attention(plan, step.cache, *rows, 3, 8)
        for out in outs:
            ops.paged_attention(out, step.q, step.cache, *rows, 0.1, plan=plan)

    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    for lengths in ([900, 17, 2000], [899, 1, 1024], [33, 0, 7]):
        step.seq_len.copy_(torch.tensor(lengths, dtype=torch.int32))
        for out in outs:
            out.fill_(3.0)
        run()
        want = [out.clone() for out in outs]
        for out in outs:
            out.fill_(3.0)
        graph.replay()
        assert all(torch.equal(a, b) for a, b in zip(outs, want))
        assert torch.equal(outs[0], outs[1])
        assert not outs[0].isnan().any()


@pytest.mark.parametrize("share_prefixes", [False, True])
def test_rows_that_share_a_prefix_are_the_cpus(share_prefixes: bool) -> None:
    lengths = [1024 + 1 + 7 * row for row in range(70)]
    rows = [*((length, 1) for length in lengths), (200, 60)]
    step = Step(rows, heads=16, kv_heads=8, head_dim=128, dtype=torch.bfloat16)
    slots = step.row_slot[:70].long()
    step.table[slots, :64] = step.table[slots[0], :64].clone()
    want = torch.full_like(step.q, torch.nan)
    step.attend(want, 128**-0.5)
    step = on_device(step)
    got = attend(step, plan_for(step, 0, share_prefixes=share_prefixes))
    close(got.cpu(), want.double())


def test_a_plan_too_small_is_refused_with_the_need() -> None:
    step = on_device(Step([(40, 1)], head_dim=64, dtype=torch.float16))
    small = ops.AttentionPlan(memory=torch.empty(256, dtype=torch.uint8, device="cuda"))
    with pytest.raises(ValueError, match="256"):
        attend(step, small)
