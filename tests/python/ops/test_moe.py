"""A mixture of experts, put together from its ops, equals torch's in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from ops.reference import DTYPES, close

from octavo import ops


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize("sigmoid", [False, True])
@pytest.mark.parametrize(("experts", "k"), [(1, 1), (8, 2), (128, 8)])
def test_routing_equals_topk(sigmoid: bool, renormalize: bool, experts: int, k: int) -> None:
    logits = torch.randn(33, experts)
    ids, weights = torch.empty(33, k, dtype=torch.int32), torch.empty(33, k)
    ops.moe_route(ids, weights, logits, sigmoid, renormalize)
    scores = logits.double().sigmoid() if sigmoid else logits.double().softmax(-1)
    top = scores.topk(k)
    assert torch.equal(ids.long(), top.indices)
    close(weights, top.values / top.values.sum(-1, keepdim=True) if renormalize else top.values)


@pytest.mark.parametrize("sigmoid", [False, True])
@pytest.mark.parametrize(("groups", "top_groups", "best"), [(1, 1, 1), (8, 3, 1), (8, 4, 2), (4, 4, 3)])
def test_routing_within_groups_equals_masking_the_others(
    sigmoid: bool, groups: int, top_groups: int, best: int
) -> None:
    logits, bias = torch.randn(50, 64), torch.randn(64) / 4
    ids, weights = torch.empty(50, 6, dtype=torch.int32), torch.empty(50, 6)
    options = {"groups": groups, "top_groups": top_groups, "group_best": best, "scale": 1.5}
    ops.moe_route(ids, weights, logits, sigmoid, True, bias, **options)  # type: ignore[arg-type]
    scores = logits.sigmoid() if sigmoid else logits.softmax(-1)
    compared = (scores + bias).view(50, groups, -1)
    chosen = compared.topk(best).values.sum(-1).topk(top_groups).indices
    mask = torch.zeros(50, groups, dtype=torch.bool).scatter_(1, chosen, True)
    want = compared.masked_fill(~mask[..., None], -torch.inf).flatten(1).topk(6).indices
    assert torch.equal(ids.long(), want)
    kept = scores.double().gather(1, want)
    close(weights, 1.5 * kept / kept.sum(-1, keepdim=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tokens", "experts", "k"), [(1, 4, 2), (9, 4, 1), (40, 16, 4)])
def test_group_product_and_combine_are_a_sum_over_experts(
    dtype: torch.dtype, tokens: int, experts: int, k: int
) -> None:
    x = torch.randn(tokens, 48).to(dtype)
    weight, bias = (torch.randn(experts, 56, 48) / 7).to(dtype), torch.randn(experts, 56).to(dtype)
    ids, weights = torch.empty(tokens, k, dtype=torch.int32), torch.empty(tokens, k)
    ops.moe_route(ids, weights, torch.randn(tokens, experts), False, True)
    place = torch.empty_like(ids)
    token, start = torch.empty(tokens * k, dtype=torch.int32), torch.empty(experts + 1, dtype=torch.int32)
    ops.moe_group(place, token, start, ids)
    rows = torch.empty(tokens * k, 56, dtype=dtype)
    ops.grouped_linear(rows, x.index_select(0, token), weight, start, bias)
    out = torch.empty(tokens, 56, dtype=dtype)
    ops.moe_combine(out, rows, place, weights)
    products = torch.einsum("nh,emh->nem", x.double(), weight.double()) + bias.double()
    chosen = products.gather(1, ids.long()[..., None].expand(-1, -1, 56))
    close(rows, products[token.long(), _experts_of(start)])
    want = (chosen * weights.double()[..., None]).sum(1)
    scale = 4 if dtype == torch.float32 else 1
    assert (out.double() - want).abs().max() < scale * 3 * torch.finfo(dtype).eps * want.abs().max()


def _experts_of(start: torch.Tensor) -> torch.Tensor:
    return torch.repeat_interleave(torch.arange(len(start) - 1), start.diff().long())


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_clamped_gate_equals_torch_in_float64(dtype: torch.dtype) -> None:
    gate_up = (torch.randn(5, 2 * 77) * 6).to(dtype)
    gate, up = gate_up.double().chunk(2, -1)
    gate, up = gate.clamp(max=7.0), up.clamp(-7.0, 7.0)
    out = torch.empty(5, 77, dtype=dtype)
    ops.clamped_swiglu(out, gate_up, 1.702, 7.0)
    close(out, (up + 1) * gate * torch.sigmoid(1.702 * gate))


def test_a_nan_stays_one_through_the_clamped_gate() -> None:
    gate_up = torch.zeros(1, 2 * 40)
    gate_up[0, 3] = gate_up[0, 40 + 20] = float("nan")
    out = torch.empty(1, 40)
    ops.clamped_swiglu(out, gate_up, 1.702, 7.0)
    assert out.isnan().nonzero()[:, 1].tolist() == [3, 20]


def test_wrong_tables_are_refused_by_name() -> None:
    x, weight = torch.randn(4, 8), torch.randn(2, 6, 8)
    out = torch.empty(4, 6)
    with pytest.raises(ValueError, match="grouped_linear: start must begin at 0"):
        ops.grouped_linear(out, x, weight, torch.tensor([0, 2, 3], dtype=torch.int32))
    with pytest.raises(ValueError, match=r"weight has shape .* need \[2, any, 8\]"):
        ops.grouped_linear(out, x, torch.randn(3, 6, 8), torch.tensor([0, 2, 4], dtype=torch.int32))
    with pytest.raises(ValueError, match="ids has 3 columns and logits 2"):
        ids = torch.empty(4, 3, dtype=torch.int32)
        ops.moe_route(ids, torch.empty(4, 3), torch.randn(4, 2), False, True)
    with pytest.raises(ValueError, match=r"ids\[1, 0\] is 2"):
        ids = torch.tensor([[0], [2]], dtype=torch.int32)
        start = torch.empty(3, dtype=torch.int32)
        ops.moe_group(torch.empty_like(ids), torch.empty(2, dtype=torch.int32), start, ids)


def test_a_product_of_many_rows_agrees_with_torch() -> None:
    x, weight = torch.randn(300, 64), torch.randn(2, 96, 64)
    out = torch.empty(300, 96)
    ops.grouped_linear(out, x, weight, torch.tensor([0, 100, 300], dtype=torch.int32))
    want = torch.cat([F.linear(x[:100], weight[0]), F.linear(x[100:], weight[1])])
    torch.testing.assert_close(out, want, rtol=1e-4, atol=1e-4)
