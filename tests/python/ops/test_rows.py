"""RMSNorm, RoPE and gated activations through Python, against torch in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from ops.reference import DTYPES, close

from octavo import _ops, ops


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 7, 64, 576])
def test_rms_norm_equals_torch_in_float64(dtype: torch.dtype, size: int) -> None:
    x, weight = torch.randn(5, size).to(dtype), torch.randn(size).to(dtype)
    out = torch.empty_like(x)
    ops.rms_norm(out, x, weight, 1e-6, 1.0)
    close(out, F.rms_norm(x.double(), (size,), weight.double() + 1.0, 1e-6))


def test_rms_norm_takes_heads_out_of_a_fused_projection() -> None:
    fused = torch.randn(6, 3 * 4 * 32)
    heads = fused[:, 128:256].view(6, 4, 32)
    want = F.rms_norm(heads.double(), (32,), None, 1e-6)
    rest = fused[:, 256:].clone()
    ops.rms_norm(heads, heads, torch.ones(32), 1e-6)
    close(heads, want)
    assert torch.equal(fused[:, 256:], rest)


@pytest.mark.parametrize("dtype", DTYPES)
def test_add_rms_norm_updates_the_residual_and_norms_it(dtype: torch.dtype) -> None:
    x, residual, weight = (torch.randn(*shape).to(dtype) for shape in ((4, 96), (4, 96), (96,)))
    total = x + residual
    ops.add_rms_norm(x, x, residual, weight, 1e-5)
    assert torch.equal(residual, total)
    close(x, F.rms_norm(total.double(), (96,), weight.double(), 1e-5))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rotary", [64, 32])
@pytest.mark.parametrize("interleaved", [False, True])
def test_rope_is_a_rotation_in_the_plane_of_each_pair(
    dtype: torch.dtype, rotary: int, interleaved: bool
) -> None:
    q, k = torch.randn(9, 3, 64).to(dtype), torch.randn(9, 1, 64).to(dtype)
    position = torch.randint(0, 40, (9,), dtype=torch.int32)
    angle = torch.arange(40)[:, None] * 10000.0 ** (-torch.arange(0, rotary, 2) / rotary)
    turn = torch.polar(torch.ones_like(angle).double(), angle.double())[position.long()][:, None]

    def rotated(x: torch.Tensor) -> torch.Tensor:
        part = x[..., :rotary].double()
        pairs = part.unflatten(-1, (-1, 2)) if interleaved else part.unflatten(-1, (2, -1)).transpose(-1, -2)
        turned = torch.view_as_real(torch.view_as_complex(pairs.contiguous()) * turn)
        flat = turned.flatten(-2) if interleaved else turned.transpose(-1, -2).flatten(-2)
        return torch.cat([flat, x[..., rotary:].double()], -1)

    want_q, want_k = rotated(q), rotated(k)
    ops.rope(q, k, position, torch.cat([angle.cos(), angle.sin()], -1), interleaved)
    close(q, want_q)
    close(k, want_k)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gated_activations_equal_torch_in_float64(dtype: torch.dtype) -> None:
    gate_up = (torch.randn(3, 2 * 77) * 5).to(dtype)
    gate, up = gate_up.double().chunk(2, -1)
    out = torch.empty(3, 77, dtype=dtype)
    ops.silu_mul(out, gate_up)
    close(out, F.silu(gate) * up)
    ops.gelu_tanh_mul(out, gate_up)
    close(out, F.gelu(gate, approximate="tanh") * up)


def test_errors_name_the_op_the_tensor_and_the_need() -> None:
    x, weight = torch.randn(2, 8), torch.randn(8)
    with pytest.raises(ValueError, match=r"rms_norm: weight has shape \[7\], need \[8\]"):
        ops.rms_norm(x, x, weight[:7], 1e-6)
    with pytest.raises(ValueError, match="rms_norm: weight has dtype float16, need float32 as x has"):
        ops.rms_norm(x, x, weight.half(), 1e-6)
    with pytest.raises(ValueError, match="x has a dtype that no op takes"):
        ops.rms_norm(x, x.double(), weight, 1e-6)
    with pytest.raises(ValueError, match="stride 8 in its last dimension, need 1"):
        ops.rms_norm(x.T.contiguous(), x.T, weight[:2], 1e-6)
    with pytest.raises(ValueError, match="gate_up lies|gate_up is no strided memory"):
        ops.silu_mul(x, torch.empty(2, 16, device="meta"))
    with pytest.raises(ValueError, match="no ops for device 'meta'"):
        ops.rms_norm(x, x.to("meta"), weight, 1e-6)
    with pytest.raises(TypeError):
        ops.silu_mul(x, [[1.0]])  # type: ignore[arg-type]


def test_threads_follow_torch_until_they_are_set() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert ops.num_threads() == 2
        ops.set_num_threads(1)
        assert ops.num_threads() == 1
    finally:
        ops.set_num_threads(0)
        torch.set_num_threads(before)
    assert ops.num_threads() == before
    assert ops.thread_backend() in ("openmp", "pool")


def test_an_unknown_instruction_set_is_refused() -> None:
    with pytest.raises(RuntimeError, match='"mmx" is not available'):
        ops.set_isa("mmx")
    assert ops.isa() in ("avx512", "avx2", "base")


def test_numpy_arrays_cross_as_well() -> None:
    gate_up = np.ones((1, 8), dtype=np.float32)
    out = np.empty((1, 4), dtype=np.float32)
    _ops.silu_mul(out, gate_up)  # type: ignore[arg-type]
    np.testing.assert_allclose(out, 1 / (1 + np.exp(-1.0)), rtol=1e-6)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads as Linux does")
def test_ops_borrow_torchs_threads_and_start_none() -> None:
    if ops.thread_backend() != "openmp":
        pytest.skip("this torch brings no OpenMP runtime")
    x, weight = torch.randn(512, 256), torch.randn(2048, 256)
    gate_up, out = F.linear(x, weight), torch.empty(512, 1024)
    ops.silu_mul(out, gate_up)
    before = len(list(Path("/proc/self/task").iterdir()))
    for _ in range(5):
        F.linear(x, weight)
        ops.silu_mul(out, gate_up)
    assert len(list(Path("/proc/self/task").iterdir())) == before
