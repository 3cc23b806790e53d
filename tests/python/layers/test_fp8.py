"""The product of 8-bit numbers against float64, on the CPU and by the op that CUDA has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from octavo.hf.quantization import METHODS, Quantization
from octavo.layers import fp8
from octavo.layers.fp8 import FP8, FP8_MAX, Fp8Linear, cpu_product, device_product, quantize_rows, widen
from octavo.layers.linear import FusedLinear, Linear, weights_without_memory

DYNAMIC = Quantization(method="fp8", scheme="fp8", stored=True)
STATIC = Quantization(method="fp8", scheme="fp8", stored=True, static=True)
SHAPES = [(1, 16, 16), (3, 48, 80), (17, 512, 1024), (64, 33, 20), (5, 300_000, 3)]
Product = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def random_fp8(*shape: int, seed: int = 0) -> torch.Tensor:
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return (100 * drawn).clamp(-FP8_MAX, FP8_MAX).to(FP8)


def test_every_number_is_widened_exactly() -> None:
    codes = torch.arange(256, dtype=torch.uint8).view(FP8)
    want = codes.float()
    number = ~want.isnan()
    assert int(number.sum()) == 254
    assert torch.equal(256 * widen(codes)[number], want[number])
    assert torch.equal(widen(codes).signbit()[number], want.signbit()[number])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_largest_of_a_row_becomes_the_largest_number(dtype: torch.dtype) -> None:
    size = torch.tensor([1e-3, 1.0, 50.0, 0.0]).to(dtype)
    x = torch.randn(4, 200, generator=torch.Generator().manual_seed(1)).to(dtype) * size[:, None]
    q, scale = quantize_rows(x)
    assert q.dtype == FP8
    assert torch.equal(q.float().abs().amax(1), torch.tensor([448.0, 448.0, 448.0, 0.0]))
    # Three bits after the point: half of the last is 2^-4 of a number, or of the smallest normal one, 2^-6.
    bound = 2**-4 * torch.maximum(x.double().abs(), 2**-6 * scale[:, None].double())
    assert ((q.double() * scale[:, None].double() - x.double()).abs() <= bound * (1 + 1e-6)).all()


def test_a_given_scale_clamps_what_is_too_large() -> None:
    q, scale = quantize_rows(torch.tensor([[1.0, -1e6], [1e6, 0.5]]), torch.tensor(0.5))
    assert q.float().tolist() == [[2.0, -448.0], [448.0, 1.0]]
    assert scale.tolist() == [0.5, 0.5]


def _scaled_rows(*operands: torch.Tensor) -> torch.Tensor:
    return device_product(*operands, rows_inside=True)


def _scaled_after(*operands: torch.Tensor) -> torch.Tensor:
    return device_product(*operands, rows_inside=False)


@pytest.mark.parametrize(
    ("multiply", "dtype"),
    [(cpu_product, torch.float32), (_scaled_after, torch.float32), (_scaled_rows, torch.bfloat16)],
    ids=["cpu", "scaled-after", "scaled-inside"],
)
@pytest.mark.parametrize(("rows", "columns", "out"), SHAPES)
def test_products_equal_those_of_float64(
    multiply: Product, dtype: torch.dtype, rows: int, columns: int, out: int
) -> None:
    x, weight = random_fp8(rows, columns), random_fp8(out, columns, seed=1)
    scales = torch.rand(rows + out, generator=torch.Generator().manual_seed(2)) + 0.01
    x_scale, weight_scale = scales[:rows], scales[rows:]
    got = multiply(x, x_scale, weight, weight_scale)
    left, right = x.double() * x_scale[:, None].double(), weight.double() * weight_scale[:, None].double()
    want, size = left @ right.t(), left.abs() @ right.abs().t()
    assert got.dtype == dtype
    bound = 2e-6 * size + (want.abs() * 2**-8 if dtype == torch.bfloat16 else 0)
    assert ((got.double() - want).abs() <= bound).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_fused_layer_is_its_parts_side_by_side(dtype: torch.dtype) -> None:
    fused = Fp8Linear(FusedLinear(64, (("a", 32), ("b", 8)), bias=True, dtype=dtype), DYNAMIC)
    parts = [Fp8Linear(Linear(64, rows, bias=True, dtype=dtype), DYNAMIC) for rows in (32, 8)]
    first = 0
    for index, (part, rows) in enumerate(zip(parts, (32, 8))):
        part.weight.copy_(random_fp8(rows, 64, seed=index))
        part.weight_scale.fill_((0.001, 0.5)[index])  # a scale that reached the wrong part would show
        assert part.bias is not None and fused.bias is not None
        part.bias.copy_(torch.randn(rows, generator=torch.Generator().manual_seed(index)))
        for name in ("weight", "weight_scale", "bias"):
            getattr(fused, name)[first : first + rows] = getattr(part, name)
        first += rows
    x = torch.randn(7, 64, generator=torch.Generator().manual_seed(9)).to(dtype)
    got = fused(x)
    assert got.dtype == dtype
    torch.testing.assert_close(got, torch.cat([part(x) for part in parts], dim=1))


def test_parts_with_scales_of_their_own_share_the_largest() -> None:
    layer = Fp8Linear(FusedLinear(32, (("a", 16), ("b", 16)), dtype=torch.float32), STATIC)
    assert layer.input_scale is not None
    layer.weight.copy_(random_fp8(32, 32))
    layer.weight_scale.fill_(1.0)
    layer.input_scale.copy_(torch.tensor([0.25, 4.0]))
    x = torch.full((2, 32), 1000.0)  # 250 times the larger scale; the smaller would clamp it
    want = (x.double() / 4).to(FP8).double() * 4 @ layer.weight.double().t()
    torch.testing.assert_close(layer(x).double(), want, rtol=1e-5, atol=1e-2)


@pytest.mark.parametrize("quantization", [DYNAMIC, STATIC], ids=["dynamic", "static"])
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_poisoned_token_stays_poisoned_and_alone(quantization: Quantization, poison: float) -> None:
    layer = Fp8Linear(Linear(32, 16, dtype=torch.float32), quantization)
    layer.weight.copy_(random_fp8(16, 32))
    layer.weight_scale.fill_(1.0)
    if layer.input_scale is not None:
        layer.input_scale.fill_(1.0)
    x = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    clean = layer(x)
    x[1, 5] = poison
    out = layer(x)
    if quantization.static and poison == float("inf"):
        assert out[1].isfinite().all()  # clamped to the largest number, as the format has it
    else:
        assert not out[1].isfinite().any()
    assert torch.equal(out[[0, 2]], clean[[0, 2]])


class Largest(TorchDispatchMode):
    """Notes the most numbers of more than 8 bits that any result of an op has in memory."""

    most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, torch.Tensor) and not tensor.is_meta and tensor.itemsize > 1:
                self.most = max(self.most, tensor.numel())
        return out


def test_a_weight_exists_in_8_bits_only() -> None:
    """From its making to its product: the model's dtype is seen a piece at a time."""
    online = METHODS["fp8"].online
    assert online is not None
    stored = torch.randn(2048, 512, generator=torch.Generator().manual_seed(0))
    halves = stored[:1024], stored[1024:]
    x = torch.randn(3, 512, generator=torch.Generator().manual_seed(1))
    with Largest() as seen:
        with weights_without_memory():
            linear = FusedLinear(512, (("a", 1024), ("b", 1024)), dtype=torch.float32)
        layer = Fp8Linear(linear, online)
        (names,) = layer.spellings("mlp.ab")
        for part, half in zip(("a", "b"), halves):
            write = names[f"mlp.{part}.weight"].write
            assert write is not None
            write(half)
        out = layer(x)
    assert linear.weight.is_meta
    assert seen.most <= fp8._PIECE < stored.numel() // 2
    q, scale = quantize_rows(stored)
    assert torch.equal(layer.weight.view(torch.uint8), q.view(torch.uint8))
    assert torch.equal(layer.weight_scale, scale)
    inputs = [tensor.double() for tensor in quantize_rows(x)]
    want = (inputs[0] * inputs[1][:, None]) @ (q.double() * scale[:, None].double()).t()
    torch.testing.assert_close(out.double(), want, rtol=1e-5, atol=1e-4)
