"""The product of few rows on CUDA: against float64, the same bits for any number of rows, and in a graph."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from octavo import ops

SHAPES = [(8, 8), (40, 72), (1024, 1000), (4096, 1024), (6144, 4096), (130, 14336), (33000, 256)]


def operands(rows: int, n: int, k: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    tensors = torch.randn(rows, k), torch.randn(n, k) * k**-0.5, torch.randn(n)
    return tuple(t.to(dtype).cuda() for t in tensors)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("n", "k"), SHAPES)
@pytest.mark.parametrize("rows", [1, 5, 8, 9, 16])
@pytest.mark.parametrize("biased", [False, True])
def test_a_product_equals_float64(dtype: torch.dtype, n: int, k: int, rows: int, biased: bool) -> None:
    x, weight, bias = operands(rows, n, k, dtype)
    out = torch.full((rows, n), torch.nan, dtype=dtype, device="cuda")
    ops.linear(out, x, weight, bias if biased else None)
    want = x.double() @ weight.double().T + (bias.double() if biased else 0.0)
    error = (out.double() - want).norm() / want.norm()
    assert error < {torch.bfloat16: 3e-3, torch.float16: 4e-4}[dtype]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("n", "k"), [(1024, 3072), (4096, 1024), (6144, 4096), (28672, 1024)])
@pytest.mark.parametrize("rows", [17, 32, 33, 64, 100, 128, 200, 257, 512])
def test_a_product_of_many_rows_equals_float64(dtype: torch.dtype, n: int, k: int, rows: int) -> None:
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("wgmma is of compute capability 9.0")
    x, weight, bias = operands(rows, n, k, dtype)
    out = torch.full((rows, n), torch.nan, dtype=dtype, device="cuda")
    ops.linear(out, x, weight, bias)
    want = x.double() @ weight.double().T + bias.double()
    error = (out.double() - want).norm() / want.norm()
    assert error < {torch.bfloat16: 3e-3, torch.float16: 4e-4}[dtype]


@pytest.mark.parametrize(("n", "k"), [(1024, 3072), (6144, 1024), (28672, 1024)])
@pytest.mark.parametrize("rows", [33, 64, 128, 256, 511])
@pytest.mark.parametrize(("gate", "add"), [("silu", False), ("gelu_tanh", True), (None, True)])
def test_many_rows_pass_a_gate_and_are_added(n: int, k: int, rows: int, gate: str | None, add: bool) -> None:
    """Also where multiprocessors have several tiles each, and where they share a tile's k."""
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("wgmma is of compute capability 9.0")
    x, weight, _ = operands(rows, n, k, torch.bfloat16)
    want = x.double() @ weight.double().T
    if gate is not None:
        act = {"silu": F.silu, "gelu_tanh": partial(F.gelu, approximate="tanh")}[gate]
        want = act(want[:, : n // 2]) * want[:, n // 2 :]
    before = torch.randn_like(want).bfloat16()
    outs = [before.clone() for _ in range(3)]
    for out in outs:
        ops.linear(out, x, weight, weight_ready=True, gate=gate, add=add)
    want = want + before.double() if add else want
    assert (outs[0].double() - want).norm() / want.norm() < 6e-3
    assert torch.equal(outs[0], outs[1])
    assert torch.equal(outs[0], outs[2])


@pytest.mark.parametrize(("hidden", "inner"), [(1024, 3072), (4096, 14336), (896, 4864)])
@pytest.mark.parametrize("rows", [17, 64, 100, 256])
@pytest.mark.parametrize("gate", [None, "silu"])
def test_a_norm_between_two_products_is_as_near_as_one_apart(
    hidden: int, inner: int, rows: int, gate: str | None
) -> None:
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("wgmma is of compute capability 9.0")
    x, down, norm = operands(rows, hidden, inner, torch.bfloat16)
    _, up, _ = operands(1, 2 * inner, hidden, torch.bfloat16)
    before = (
        torch.randn(rows, hidden, device="cuda") * torch.logspace(0, 3, rows, device="cuda")[:, None]
    ).bfloat16()
    residual, plain = before.clone(), before.clone()
    scaled, columns = torch.empty_like(residual), -(-hidden // 256) * 4
    squares = torch.full((rows, columns), torch.nan, device="cuda")
    ops.linear(residual, x, down, weight_ready=True, add=True, leaves=(norm, 1.0, scaled, squares))
    ops.linear(plain, x, down, weight_ready=True, add=True)
    assert torch.equal(residual, plain)
    normed = torch.empty_like(residual)
    ops.rms_norm(normed, residual, norm, 1e-6, 1.0)
    outs = [x.new_empty(rows, 2 * inner if gate is None else inner) for _ in range(3)]
    for out in outs[:2]:
        ops.linear(out, scaled, up, weight_ready=True, eps=1e-6, gate=gate, squares=squares)
    ops.linear(outs[2], normed, up, weight_ready=True, gate=gate)
    mean = residual.double().square().mean(1, keepdim=True)
    want = (residual.double() / (mean + 1e-6).sqrt() * (norm.double() + 1.0)) @ up.double().T
    if gate is not None:
        want = F.silu(want[:, :inner]) * want[:, inner:]
    error, apart = ((out.double() - want).norm() / want.norm() for out in outs[1:])
    assert error < 1.03 * apart
    assert torch.equal(outs[0], outs[1])


@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_a_row_has_the_same_bits_alone_and_among_others(n: int, k: int) -> None:
    x, weight, _ = operands(16, n, k, torch.bfloat16)
    together, alone = torch.empty(16, n, dtype=x.dtype, device="cuda"), torch.empty_like(x[:1, :1])
    ops.linear(together, x, weight)
    for row in (0, 7, 8, 15):
        alone = torch.empty(1, n, dtype=x.dtype, device="cuda")
        ops.linear(alone, x[row : row + 1], weight)
        assert torch.equal(alone[0], together[row])


def test_strided_rows_are_taken_as_they_lie_and_nothing_else_is_written() -> None:
    x = torch.randn(4, 2048, device="cuda").bfloat16()[:, :1024]
    weight = torch.randn(512, 1032, device="cuda").bfloat16()[:, :1024]
    out = torch.full((6, 600), 7.0, device="cuda").bfloat16()
    ops.linear(out[1:5, :512], x, weight)
    torch.testing.assert_close(out[1:5, :512].double(), x.double() @ weight.double().T, rtol=1e-2, atol=0.2)
    out[1:5, :512] = 7.0
    assert (out == 7.0).all()


def test_a_chain_in_a_graph_that_reads_weights_ahead_replays_bit_for_bit() -> None:
    x, up, _ = operands(3, 3072, 1024, torch.bfloat16)
    _, down, _ = operands(1, 1024, 1536, torch.bfloat16)
    torch.cuda.synchronize()
    hidden, gated = (
        torch.empty(3, 3072, device="cuda").bfloat16(),
        torch.empty(3, 1536, device="cuda").bfloat16(),
    )

    def layers() -> None:
        for _ in range(4):
            ops.linear(hidden, x, up, weight_ready=True)
            ops.silu_mul(gated, hidden)
            ops.linear(x, gated, down, weight_ready=True)

    start = x.clone()
    layers()
    want = x.clone()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        layers()
    for _ in range(20):
        x.copy_(start)
        graph.replay()
        assert torch.equal(x, want)


def test_what_a_blas_does_as_well_is_refused() -> None:
    x, weight, _ = operands(513, 64, 64, torch.bfloat16)
    with pytest.raises(ValueError, match="x has 513 rows, need at most 512 on CUDA"):
        ops.linear(torch.empty(513, 64, device="cuda").bfloat16(), x, weight)
    with pytest.raises(ValueError, match="x is float32, need bfloat16 or float16"):
        ops.linear(torch.empty(1, 64, device="cuda"), x[:1].float(), weight.float())
    with pytest.raises(ValueError, match="rows that begin on 16 bytes"):
        ops.linear(torch.empty(1, 64, device="cuda").bfloat16(), x[:1, 1:61], weight[:, 1:61])
