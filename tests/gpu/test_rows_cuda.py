"""The row ops and the ops between columns on CUDA, beside the CPU ops and float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from ops.reference import DTYPES, close
from torch import Tensor

from octavo import ops

# Aligned and not, one warp, one CTA, more than a CTA's threads at once.
SIZES = [8, 64, 129, 512, 576, 4096, 5120, 20000]


def poisoned(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.full(shape, torch.nan, dtype=dtype, device="cuda")


def column(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32, device="cuda")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("rows", [1, 37])
def test_norms_equal_torch_in_float64(dtype: torch.dtype, size: int, rows: int) -> None:
    x, residual, weight = (torch.randn(*s).to(dtype).cuda() for s in ((rows, size), (rows, size), (size,)))
    out = poisoned(rows, size, dtype=dtype)
    ops.rms_norm(out, x, weight, 1e-6, 1.0)
    close(out, F.rms_norm(x.double(), (size,), weight.double() + 1.0, 1e-6))
    total = x + residual
    ops.add_rms_norm(x, x, residual, weight, 1e-5)
    assert torch.equal(residual, total)
    close(x, F.rms_norm(total.double(), (size,), weight.double(), 1e-5))


def test_a_norm_takes_heads_out_of_a_fused_projection() -> None:
    fused = torch.randn(6, 3 * 4 * 32, device="cuda")
    heads, rest = fused[:, 128:256].view(6, 4, 32), fused[:, 256:].clone()
    want = F.rms_norm(heads.double(), (32,), None, 1e-6)
    ops.rms_norm(heads, heads, torch.ones(32, device="cuda"), 1e-6)
    close(heads, want)
    assert torch.equal(fused[:, 256:], rest)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [8, 77, 4096, 14336])
def test_gated_activations_equal_torch_in_float64(dtype: torch.dtype, size: int) -> None:
    gate_up = (torch.randn(33, 2 * size) * 5).to(dtype).cuda()
    gate, up = gate_up.double().chunk(2, -1)
    out = poisoned(33, size, dtype=dtype)
    ops.silu_mul(out, gate_up)
    close(out, F.silu(gate) * up)
    ops.gelu_tanh_mul(out, gate_up)
    close(out, F.gelu(gate, approximate="tanh") * up)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rotary", [64, 32, 6])
@pytest.mark.parametrize("interleaved", [False, True])
def test_rope_is_the_cpus(dtype: torch.dtype, rotary: int, interleaved: bool) -> None:
    fused, position = torch.randn(9, 5, 64).to(dtype), torch.randint(0, 40, (9,), dtype=torch.int32)
    table = torch.randn(40, rotary)
    on_device = fused.cuda()
    ops.rope(on_device[:, :3], on_device[:, 3:], position.cuda(), table.cuda(), interleaved)
    ops.rope(fused[:, :3], fused[:, 3:], position, table, interleaved)
    assert torch.equal(on_device.cpu(), fused)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [64, 128, 256, 72, 20])
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("interleaved", [False, True])
def test_norm_rope_cache_has_the_bits_of_its_three_parts(
    dtype: torch.dtype, head_dim: int, normed: bool, interleaved: bool
) -> None:
    tokens, slots = 53, torch.randperm(64 * 16)[:53]
    slots[::7] = -1
    slot, position = slots.cuda(), torch.randint(0, 40, (tokens,), dtype=torch.int32, device="cuda")
    q, k, v = torch.randn(tokens, 12, head_dim).to(dtype).cuda().split((8, 2, 2), 1)
    norms = [torch.randn(head_dim).to(dtype).cuda() for _ in range(2)] if normed else [None, None]
    table = torch.randn(40, head_dim // 2 // 2 * 2, device="cuda")
    fused, parts = (poisoned(64, 2, 2, 16, head_dim, dtype=dtype) for _ in range(2))
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


def test_slots_and_tokens_are_the_cpus_and_padding_writes_nothing() -> None:
    table = torch.randint(0, 1000, (6, 8), dtype=torch.int32)
    # The fourth row has no tokens, as padding rows have none, and three tokens belong to nobody.
    start = torch.tensor([0, 1, 60, 61, 61], dtype=torch.int32)
    line = torch.tensor([5, 0, 3, 0], dtype=torch.int32)
    position = torch.cat([torch.tensor([77]), torch.arange(59), torch.tensor([127, 0, 0, 0])]).int()
    want, got = torch.zeros(64, dtype=torch.int64), torch.zeros(64, dtype=torch.int64, device="cuda")
    ops.slot_mapping(want, position, start, line, table, 16)
    ops.slot_mapping(got, position.cuda(), start.cuda(), line.cuda(), table.cuda(), 16)
    assert torch.equal(got.cpu(), want)
    last = torch.tensor([50, 51, 52, -1, 54, 55], dtype=torch.int32)
    token = torch.where(torch.arange(64) % 2 == 0, -1, torch.arange(64)).int()
    known = token.cuda()
    ops.fill_tokens(token, start, line, last)
    ops.fill_tokens(known, start.cuda(), line.cuda(), last.cuda())
    assert torch.equal(known[:61].cpu(), token[:61])
    assert known[61:].min() >= 0  # embeddings of padding are read as well
    kept = last.cuda()
    ops.keep_tokens(kept, column(9, -1), column(1, 2), line.cuda())
    assert kept.tolist() == [9, 51, 52, -1, 54, 55]


def test_a_bad_index_touches_nothing() -> None:
    x = torch.ones(2, 1, 64, device="cuda")
    cache = torch.zeros(2, 2, 1, 16, 64, device="cuda")
    slot = torch.tensor([32, 1 << 40], device="cuda")
    ops.norm_rope_cache(x, x.clone(), x.clone(), column(-1, 1 << 30), torch.randn(4, 64).cuda(), cache, slot)
    ops.cache_write(x, x, cache, slot)
    assert cache.abs().sum() == 0 and (x == 1).all()
    kept = column(1, 2)
    ops.keep_tokens(kept, column(5, 6), column(7, -1), column(0, 9))
    assert kept.tolist() == [1, 2]


def test_offsets_are_64_bits() -> None:
    blocks = 70_000  # 2 * 16 * 1024 elements each: 2.3e9, beyond 2^31
    cache = torch.empty(blocks, 2, 8, 16, 128, dtype=torch.bfloat16, device="cuda")
    x = torch.randn(2, 8, 128, device="cuda").bfloat16()
    slot = torch.tensor([blocks * 16 - 1, 5], device="cuda")
    ops.norm_rope_cache(x.clone(), x.clone(), x, column(0, 0), torch.empty(1, 0, device="cuda"), cache, slot)
    assert torch.equal(cache[-1, :, :, 15], torch.stack([x[0], x[0]]))
    assert torch.equal(cache[0, :, :, 5], torch.stack([x[1], x[1]]))


def test_every_tensor_lies_on_one_device() -> None:
    x, weight = torch.randn(2, 8, device="cuda"), torch.randn(8)
    with pytest.raises(ValueError, match=r"weight lies on cpu, but out on cuda:0: move them to one device"):
        ops.rms_norm(x, x, weight, 1e-6)


def captured(run: Callable[[], None]) -> torch.cuda.CUDAGraph:
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph


def test_a_graph_of_a_layers_ops_replays_bit_for_bit_on_new_numbers() -> None:
    x, residual, weight = (torch.randn(*s).bfloat16().cuda() for s in ((16, 1024), (16, 1024), (1024,)))
    cache = torch.zeros(8, 2, 2, 16, 128, dtype=torch.bfloat16, device="cuda")
    slot, position = torch.arange(16, device="cuda"), torch.arange(16, device="cuda").int()
    table = torch.randn(64, 128, device="cuda")

    def layer() -> None:
        ops.add_rms_norm(x, x, residual, weight, 1e-6)
        q, k, v = x.view(16, 8, 128).split((4, 2, 2), 1)
        ops.norm_rope_cache(q, k, v, position, table, cache, slot, weight[:128], weight[:128])

    graph = captured(layer)
    inputs = torch.randn(16, 1024).bfloat16().cuda(), torch.randn(16, 1024).bfloat16().cuda()
    results = []
    for run in (layer, graph.replay, graph.replay):
        x.copy_(inputs[0])
        residual.copy_(inputs[1])
        slot.copy_(torch.randperm(128, generator=torch.Generator().manual_seed(3))[:16])
        cache.zero_()
        run()
        results.append((x.clone(), residual.clone(), cache.clone()))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))
