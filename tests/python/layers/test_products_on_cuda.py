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


def taken(rows: int, n: int, k: int, *, gap: int = 0, opens: bool = False) -> bool:
    x: Any = OnCuda((rows, k), gap)
    weight: Any = OnCuda((n, k))
    return linear.streams(x, weight, opens)


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


@pytest.mark.parametrize("gate", [None, "silu"])
def test_a_product_says_whether_it_opens_a_gate(monkeypatch: pytest.MonkeyPatch, gate: str | None) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(linear, "streams", lambda x, weight, opens: asked.append(opens))
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
