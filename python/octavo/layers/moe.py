"""A mixture of experts: a router picks few of many feed-forward blocks for each token (Shazeer et al., 2017).

Tokens are sorted by expert, each expert multiplies its own rows, and the results are summed back per token,
so every weight that is needed is read once a step. With few rows an expert (decode) all products are one op;
with many, torch's product of each expert's rows wins.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from octavo import ops
from octavo.hf_config import ModelSpec
from octavo.layers.layer import Layer
from octavo.layers.linear import FEW_ROWS, Linear, product
from octavo.weights.mxfp4 import BLOCK
from octavo.weights.source import Source

Gate = Callable[[torch.Tensor, torch.Tensor], None]  # out [P, I], gate and up [P, 2I]
Routes = tuple[torch.Tensor, torch.Tensor]  # ids [N, k] int32 and weights [N, k] float32

PARTS = ("gate_proj", "up_proj", "down_proj")


class Router(Linear):
    """x [N, H] -> the experts of each token and their weights."""

    def __init__(self, spec: ModelSpec) -> None:
        experts = spec.experts
        assert experts is not None  # a model file without experts has no router
        super().__init__(spec.hidden_size, experts.count, bias=experts.bias, dtype=getattr(torch, spec.dtype))
        self.per_token = experts.per_token
        self.sigmoid = experts.sigmoid
        self.renormalize = experts.renormalize

    def forward(self, x: torch.Tensor) -> Routes:  # type: ignore[override]
        logits = product(x, self.weight, self.bias).float()
        ids = torch.empty((x.shape[0], self.per_token), dtype=torch.int32, device=x.device)
        weights = torch.empty(ids.shape, dtype=torch.float32, device=x.device)
        ops.moe_route(ids, weights, logits, self.sigmoid, self.renormalize)
        return ids, weights


class Experts(Layer):
    """sum over a token's experts of weight * down(gate(gate_up(x))): x [N, H] -> [N, H].

    Held as [E, 2I, H] and [E, H, I]. Stored a tensor for each projection of each expert, named by `parts`,
    or one for all: as held, or with `columns` transposed, and with `interleaved` gate and up taking turns,
    also in MXFP4. `weigh_input` multiplies the router's weight into x instead of the result.
    """

    gate_up_proj_bias: nn.Parameter | None
    down_proj_bias: nn.Parameter | None

    def __init__(
        self,
        spec: ModelSpec,
        gate: Gate = ops.silu_mul,
        *,
        parts: tuple[str, str, str] | None = PARTS,
        columns: bool = False,
        interleaved: bool = False,
        weigh_input: bool = False,
    ) -> None:
        super().__init__()
        experts = spec.experts
        assert experts is not None
        count, inner, hidden, dtype = (
            experts.count,
            experts.inner,
            spec.hidden_size,
            getattr(torch, spec.dtype),
        )
        self.gate_up_proj = _weight(count, 2 * inner, hidden, dtype=dtype)
        self.down_proj = _weight(count, hidden, inner, dtype=dtype)
        self.gate_up_proj_bias = _weight(count, 2 * inner, dtype=dtype) if experts.bias else None
        self.down_proj_bias = _weight(count, hidden, dtype=dtype) if experts.bias else None
        self.shape = (count, inner, hidden)
        self.gate = gate
        self.parts = parts
        self.columns = columns
        self.interleaved = interleaved
        self.weigh_input = weigh_input

    def forward(self, x: torch.Tensor, routes: Routes) -> torch.Tensor:
        ids, weights = routes
        experts, inner, _ = self.shape
        place, token = torch.empty_like(ids), ids.new_empty(ids.numel())
        start = ids.new_empty(experts + 1)
        ops.moe_group(place, token, start, ids)
        rows = x.index_select(0, token)
        if self.weigh_input:
            scale = torch.empty_like(weights).view(-1)
            scale[place.view(-1).long()] = weights.view(-1)
            rows.mul_(scale[:, None])
            weights = torch.ones_like(weights)
        gate_up = _products(rows, self.gate_up_proj, start, self.gate_up_proj_bias)
        hidden = gate_up.new_empty((gate_up.shape[0], inner))
        self.gate(hidden, gate_up)
        down = _products(hidden, self.down_proj, start, self.down_proj_bias)
        out = torch.empty_like(x)
        ops.moe_combine(out, down, place, weights)
        return out

    def spellings(self, path: str) -> list[dict[str, Source]]:
        """Return every way in which a checkpoint may hold these weights, by name."""
        count, inner, hidden = self.shape
        gate_up, down = self.gate_up_proj, self.down_proj
        halves = gate_up.view(count, 2, inner, hidden)
        both = halves.transpose(1, 2) if self.interleaved else halves
        whole: dict[str, Source] = {}
        if self.columns:
            whole[f"{path}.gate_up_proj"] = Source(both.permute(0, 3, 1, 2), (count, hidden, 2 * inner))
            whole[f"{path}.down_proj"] = Source(down.transpose(1, 2), (count, inner, hidden))
        else:
            whole[f"{path}.gate_up_proj"] = Source(both, (count, 2 * inner, hidden))
            whole[f"{path}.down_proj"] = Source(down, (count, hidden, inner))
        if self.gate_up_proj_bias is not None and self.down_proj_bias is not None:
            bias = self.gate_up_proj_bias.view(count, 2, inner)
            bias = bias.transpose(1, 2) if self.interleaved else bias
            whole[f"{path}.gate_up_proj_bias"] = Source(bias, (count, 2 * inner))
            whole[f"{path}.down_proj_bias"] = Source(self.down_proj_bias, (count, hidden))
        if self.parts is None:
            return [whole, *self._packed(path, whole)]
        each: dict[str, Source] = {}
        for expert in range(count):
            views = (halves[expert, 0], halves[expert, 1], down[expert])
            for part, view in zip(self.parts, views):
                each[f"{path}.{expert}.{part}.weight"] = Source(view, tuple(view.shape))
        return [each, whole]

    def _packed(self, path: str, whole: dict[str, Source]) -> list[dict[str, Source]]:
        """Return the spelling in MXFP4, which packs rows of blocks."""
        count, inner, hidden = self.shape
        if not self.interleaved or inner % BLOCK or hidden % BLOCK:
            return []
        names = {name: source for name, source in whole.items() if name.endswith("_bias")}
        both = self.gate_up_proj.view(count, 2, inner, hidden).transpose(1, 2)
        for part, view, rows, columns in (
            ("gate_up_proj", both, 2 * inner, hidden),
            ("down_proj", self.down_proj, hidden, inner),
        ):
            blocks = (count, rows, columns // BLOCK)
            scales = torch.empty(blocks, dtype=torch.uint8)
            names[f"{path}.{part}_scales"] = Source(scales, blocks)
            names[f"{path}.{part}_blocks"] = Source(view, (*blocks, BLOCK // 2), scales)
        return [names]


def _weight(*shape: int, dtype: torch.dtype) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape, dtype=dtype), requires_grad=False)


def _products(
    x: torch.Tensor, weight: torch.Tensor, start: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """Return each expert's product of its rows: x [P, K], weight [E, M, K] -> [P, M]."""
    out = x.new_empty((x.shape[0], weight.shape[1]))
    if not x.is_cpu or x.shape[0] <= FEW_ROWS.get(x.dtype, 0) * weight.shape[0]:
        ops.grouped_linear(out, x, weight, start, bias)
        return out
    ends = start.tolist()
    for expert, (first, end) in enumerate(zip(ends, ends[1:])):
        if first < end:
            part = product(x[first:end], weight[expert], None if bias is None else bias[expert])
            out[first:end] = part
    return out
