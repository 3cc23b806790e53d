"""The gated feed-forward block (Shazeer, 2020)."""

from __future__ import annotations

import torch

from octavo import ops
from octavo.hf_config import ModelSpec
from octavo.layers.layer import Layer
from octavo.layers.linear import FusedLinear, Linear

_GATES = {"silu": ops.silu_mul, "gelu_tanh": ops.gelu_tanh_mul}


class GatedMLP(Layer):
    """down(act(gate(x)) * up(x)): x [N, H] -> [N, H], gate and up in one product.

    `inner` replaces the spec's width between them.
    """

    def __init__(self, spec: ModelSpec, inner: int | None = None) -> None:
        super().__init__()
        dtype = getattr(torch, spec.dtype)
        inner = spec.intermediate_size if inner is None else inner
        parts = (("gate_proj", inner), ("up_proj", inner))
        self.gate_up_proj = FusedLinear(spec.hidden_size, parts, bias=spec.mlp_bias, dtype=dtype)
        self.down_proj = Linear(inner, spec.hidden_size, bias=spec.mlp_bias, dtype=dtype)
        self.inner = inner
        self.gate = _GATES[spec.hidden_act]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate_up = self.gate_up_proj(x)
        product = gate_up.new_empty((gate_up.shape[0], self.inner))
        self.gate(product, gate_up)
        out: torch.Tensor = self.down_proj(product)
        return out
