"""How many kernels a decode step has: each op call and each torch call that computes is one on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from models.stepper import Stepper
from torch.utils._python_dispatch import TorchDispatchMode

from octavo import ops
from octavo.layers import linear
from octavo.layers.linear import add_product, product
from octavo.layers.norm import Normed, RMSNorm, tensor_of
from octavo.ops import backends

FREE = {"view", "split_with_sizes", "empty", "new_empty", "empty_like", "unbind", "slice", "t", "transpose"}
FREE |= {"_unsafe_view", "detach", "alias", "as_strided", "select", "permute", "lift_fresh"}

FUSED = ["linear", "norm_rope_attention", "linear", "linear", "linear"]
# Norms behind both halves of a layer leave the sums to the next norm; only the gate is fused.
SANDWICH = ["add_rms_norm", *FUSED[:3], "rms_norm", "add_rms_norm", "linear", "linear", "rms_norm"]
APART = ["add_rms_norm", "aten.linear", "norm_rope_attention", "aten.linear"]
APART += ["add_rms_norm", "aten.linear", "silu_mul", "aten.linear"]


class Calls(TorchDispatchMode):
    """What a forward pass calls, ops and torch, in order. It is the CPU's backend of ops meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.ops = backends._ops

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name not in FREE:
            self.names.append(f"aten.{name}")
        return func(*args, **(kwargs or {}))

    def __getattr__(self, name: str) -> Any:
        op = getattr(self.ops, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            self.names.append(name)
            return op(*args, **kwargs)

        return call


@pytest.fixture
def calls_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[Stepper, dict[int, list[int]]], list[str]]:
    """Return what the model calls in a step of these tokens."""

    def run(stepper: Stepper, tokens: dict[int, list[int]]) -> list[str]:
        calls, forward = Calls(), stepper.model.forward

        def recorded(*args: Any) -> Any:
            monkeypatch.setattr(backends, "_ops", calls)
            with calls:
                hidden = forward(*args)
            monkeypatch.undo()
            return hidden

        monkeypatch.setattr(stepper.model, "forward", recorded, raising=False)
        stepper.step(tokens)
        return calls.names

    return run


def rows_of(count: int, length: int) -> dict[int, list[int]]:
    return {row: [7 + row] * length for row in range(count)}


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2", "qwen3"])
def test_a_layer_of_a_decode_step_is_five_kernels(
    tiny_folder: Callable[[str], Path], calls_of: Any, name: str
) -> None:
    stepper = Stepper(tiny_folder(name), rows=2, max_len=64)
    stepper.step(rows_of(2, 20))
    assert calls_of(stepper, rows_of(2, 1)) == [
        "aten.embedding",
        *FUSED * stepper.spec.num_layers,
        "rms_norm",
    ]


def test_norms_behind_the_halves_of_a_layer_stay_apart(
    tiny_folder: Callable[[str], Path], calls_of: Any
) -> None:
    stepper = Stepper(tiny_folder("gemma2"), rows=1, max_len=64)
    stepper.step(rows_of(1, 20))
    layers = (SANDWICH * stepper.spec.num_layers)[1:]  # the first layer finds nothing to add
    assert calls_of(stepper, rows_of(1, 1)) == ["aten.embedding", "aten.mul_", *layers, "add_rms_norm"]


def test_many_rows_leave_products_to_the_blas(tiny_folder: Callable[[str], Path], calls_of: Any) -> None:
    stepper = Stepper(tiny_folder("llama"), rows=1, max_len=64)
    names = calls_of(stepper, rows_of(1, 40))
    assert names == ["aten.embedding", "rms_norm", *(APART * stepper.spec.num_layers)[1:], "add_rms_norm"]


@pytest.mark.parametrize("name", ["llama", "qwen3", "qwen3-moe", "deepseek-v2"])
def test_norms_between_products_are_halved_and_the_answer_is_the_same(
    tiny_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """As with 17 and more rows on CUDA, by a product in torch that takes and leaves half of a norm."""
    steps = [Stepper(tiny_folder(name), rows=1, max_len=64) for _ in range(2)]
    want = steps[0].step(rows_of(1, 40))
    names: list[str] = []
    monkeypatch.setattr(linear, "streams", lambda *_, **__: True)
    monkeypatch.setattr(linear, "_leaves_half", lambda _: True)
    monkeypatch.setattr(ops, "linear", partial(halving_product, ops.linear, names))
    for op in ("rms_norm", "add_rms_norm"):
        monkeypatch.setattr(ops, op, partial(named, getattr(ops, op), op, names))
    got = steps[1].step(rows_of(1, 40))
    for row in want:
        torch.testing.assert_close(got[row], want[row], rtol=1e-3, atol=1e-3)
    assert "leaves" in names
    if name in ("llama", "qwen3"):  # experts take tensors, and several products of a latent one norm
        assert names.count("leaves") == names.count("squares") == 2 * steps[1].spec.num_layers - 1
        assert names.count("rms_norm") == 1  # the last one: the first is a product's on a CPU
        assert "add_rms_norm" not in names


def named(op: Callable[..., None], name: str, names: list[str], *args: Any) -> None:
    names.append(name)
    op(*args)


def halving_product(
    whole: Callable[..., None],
    names: list[str],
    out: torch.Tensor,
    x: torch.Tensor,
    *args: Any,
    squares: torch.Tensor | None = None,
    leaves: Any = None,
    **options: Any,
) -> None:
    if squares is not None:
        names.append("squares")
        groups = -(-x.shape[1] // 64)  # what stands behind them is not defined
        mean = squares[:, :groups].sum(1, keepdim=True) / x.shape[1]
        x = x / (mean + args[4]).sqrt()
        args = (*args[:4], 1e-6, *args[5:])
    whole(out, x, *args, **options)
    if leaves is not None:
        names.append("leaves")
        weight, offset, scaled, left = leaves
        scaled.copy_(out * (weight + offset))
        left.fill_(torch.nan)
        for group, columns in enumerate(out.split(64, 1)):
            left[:, group] = columns.float().square().sum(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 40])
@pytest.mark.parametrize("gate", [None, "silu", "gelu_tanh"])
def test_a_fused_product_is_its_parts_one_after_another(
    dtype: torch.dtype, rows: int, gate: str | None
) -> None:
    norm = RMSNorm(64, 1e-5, dtype=dtype, offset=1.0)
    norm.weight.copy_(torch.randn(64))
    residual, weight, bias = torch.randn(rows, 64), torch.randn(48, 64), torch.randn(48)
    residual, weight, bias = residual.to(dtype), weight.to(dtype), bias.to(dtype)
    want = torch.nn.functional.linear(norm(residual), weight, bias)
    if gate is not None:
        act = {"silu": ops.silu_mul, "gelu_tanh": ops.gelu_tanh_mul}[gate]
        opened = want.new_empty(rows, 24)
        act(opened, want)
        want = opened
    close = {torch.float32: 2e-5, torch.bfloat16: 4e-2}[dtype]
    for x in (Normed(norm, residual), norm(residual)):
        torch.testing.assert_close(product(x, weight, bias, gate), want, rtol=close, atol=close)


@pytest.mark.parametrize("rows", [1, 40])
def test_what_is_not_added_by_a_product_is_left_to_the_next_norm(rows: int) -> None:
    norm = RMSNorm(32, 1e-6, dtype=torch.float32)
    norm.weight.copy_(torch.randn(32))
    residual, x, weight = torch.randn(rows, 32), torch.randn(rows, 64), torch.randn(32, 64)
    want = residual + x @ weight.T
    left = add_product(residual, x, weight)
    assert (left is None) == (rows == 1)
    normed = tensor_of(norm.of(left, residual))
    torch.testing.assert_close(residual, want, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(normed, norm(want), rtol=1e-4, atol=1e-4)


def test_an_op_names_a_gate_that_it_does_not_know() -> None:
    with pytest.raises(ValueError, match="gate is 'relu', need silu or gelu_tanh"):
        ops.linear(torch.empty(1, 4), torch.ones(1, 8), torch.ones(8, 8), gate="relu")
