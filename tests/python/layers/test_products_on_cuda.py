"""Which products a layer gives to ops.linear on a GPU, and in what form; nothing here has memory on one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from octavo import ops
from octavo.layers import linear
from octavo.layers.norm import Normed, RMSNorm


@dataclass(frozen=True)
class OnCuda:
    """What `streams` asks of a tensor."""

    shape: tuple[int, int]
    gap: int = 0
    dtype: torch.dtype = torch.bfloat16
    is_cpu: bool = False
    is_cuda: bool = True
    device: str = "cuda:0"

    def stride(self, dim: int) -> int:
        return (self.shape[1] + self.gap, 1)[dim]


def taken(rows: int, n: int, k: int, *, gap: int = 0, opens: bool = False, more: Any = ()) -> bool:
    x: Any = OnCuda((rows, k), gap)
    weight: Any = OnCuda((n, k))
    return linear.streams(x, weight, opens, more)


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "has_cuda", lambda: True)
    monkeypatch.setattr(linear, "_has_wgmma", lambda _: True)


@pytest.mark.usefixtures("hopper")
def test_up_to_64_rows_go_to_our_product_and_up_to_256_of_a_short_weight() -> None:
    assert taken(17, 4096, 1024)
    assert taken(64, 28672, 4096)
    assert not taken(65, 4096, 1024)
    assert taken(256, 1024, 3072)
    assert not taken(257, 1024, 3072)
    assert not taken(17, 151936, 1024)


@pytest.mark.usefixtures("hopper")
def test_a_gate_makes_up_to_256_rows_worth_it_and_up_to_512_of_a_weight_that_is_not_long() -> None:
    assert taken(256, 34816, 5120, opens=True)
    assert not taken(257, 34816, 5120, opens=True)
    assert taken(512, 6144, 1024, opens=True)
    assert not taken(513, 6144, 1024, opens=True)


@pytest.mark.usefixtures("hopper")
def test_what_saves_a_norm_is_worth_more_rows() -> None:
    assert taken(256, 4096, 1024, more=((256, 4096),))
    assert not taken(257, 4096, 1024, more=((256, 4096),))
    assert not taken(256, 5120, 1024, more=((256, 4096),))


@pytest.mark.parametrize("gate", [None, "silu"])
def test_a_product_says_whether_it_opens_a_gate(monkeypatch: pytest.MonkeyPatch, gate: str | None) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(linear, "streams", lambda x, weight, opens, more: asked.append(opens))
    linear.product(torch.zeros(2, 8), torch.zeros(4, 8), gate=gate)
    assert asked == [gate is not None]


@pytest.mark.usefixtures("hopper")
def test_shapes_that_the_copy_engine_cannot_take_stay_with_the_blas() -> None:
    assert not taken(17, 4096, 1032)
    assert not taken(17, 4104, 1024)
    assert not taken(17, 4096, 1024, gap=4)
    assert taken(17, 4096, 1024, gap=8)
    assert taken(8, 4104, 1032)  # few rows have a product of their own


@pytest.mark.usefixtures("hopper")
def test_a_gpu_without_wgmma_has_few_rows_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "_has_wgmma", lambda _: False)
    assert taken(16, 4096, 1024)
    assert not taken(17, 4096, 1024)


@pytest.mark.parametrize(("rows", "on_the_way"), [(16, True), (17, False)])
def test_from_17_rows_on_a_product_takes_what_is_normed_already(
    monkeypatch: pytest.MonkeyPatch, rows: int, on_the_way: bool
) -> None:
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(linear, "streams", lambda *_, **__: True)
    monkeypatch.setattr(ops, "linear", lambda *args, **_: calls.append(args))
    before = torch.empty(rows, 64, dtype=torch.bfloat16, device="meta")
    after = torch.empty(rows, 64, dtype=torch.bfloat16, device="meta")
    monkeypatch.setattr(linear, "tensor_of", lambda x: after if isinstance(x, Normed) else x)
    norm = RMSNorm(64, eps=1e-6, dtype=torch.bfloat16)
    weight = torch.empty(32, 64, dtype=torch.bfloat16, device="meta")
    linear.product(Normed(norm, before), weight, gate="silu")
    ((out, x, *rest),) = calls
    assert out.shape == (rows, 16)
    assert (x is before) == on_the_way
    assert (x is after) != on_the_way
    assert any(each is norm.weight for each in rest) == on_the_way


def on_meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """What is asked of ops.linear, which takes everything."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    monkeypatch.setattr(linear, "streams", lambda *_, **__: True)
    monkeypatch.setattr(ops, "linear", lambda *args, **options: calls.append((args, options)))
    return calls


@pytest.mark.parametrize(
    ("rows", "columns", "dtype", "halved"),
    [
        (17, 2048, torch.bfloat16, True),
        (16, 2048, torch.bfloat16, False),
        (17, 2048, torch.float16, False),
        (17, 2112, torch.bfloat16, False),
    ],
)
def test_from_17_rows_on_half_of_the_next_norm_is_made_by_the_product_that_adds(
    calls: Any, rows: int, columns: int, dtype: torch.dtype, halved: bool
) -> None:
    residual, norm = on_meta(rows, columns, dtype=dtype), RMSNorm(columns, eps=1e-6, dtype=dtype, offset=1.0)
    left = linear.add_product(residual, on_meta(rows, 64), on_meta(columns, 64), None, norm)
    ((_, options),) = calls
    assert (left is not None) == ("leaves" in options) == halved
    if halved:
        assert isinstance(left, Normed)
        weight, offset, scaled, squares = options["leaves"]
        assert weight is norm.weight
        assert offset == 1.0
        assert scaled.shape == residual.shape
        assert squares.shape == (rows, 32)  # of 64 columns each
        assert norm.of(left, residual) is left


def test_a_product_of_half_a_norm_takes_what_was_left(calls: Any) -> None:
    norm, residual = RMSNorm(64, eps=1e-5, dtype=torch.bfloat16), on_meta(17, 64)
    scaled, squares = on_meta(17, 64), on_meta(17, 4, dtype=torch.float32)
    linear.product(Normed(norm, residual, (scaled, squares)), on_meta(32, 64), gate="silu")
    (((out, x, *rest), options),) = calls
    assert out.shape == (17, 16)
    assert x is scaled
    assert options["squares"] is squares
    assert rest[1:5] == [None, True, None, norm.eps]
    assert all(each is not norm.weight for each in rest)


def test_half_of_another_norm_is_of_no_use() -> None:
    norm, other = (RMSNorm(64, eps=1e-5, dtype=torch.bfloat16) for _ in range(2))
    residual = on_meta(17, 64)
    left = Normed(other, residual, (on_meta(17, 64), on_meta(17, 4, dtype=torch.float32)))
    normed = norm.of(left, residual)
    assert isinstance(normed, Normed)
    assert normed.norm is norm
    assert normed.half is None
