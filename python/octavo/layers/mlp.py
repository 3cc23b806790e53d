"""The gated feed-forward block (Shazeer, 2020)."""

from __future__ import annotations

import torch

from octavo.hf_config import ModelSpec
from octavo.layers.layer import Layer
from octavo.layers.linear import FusedLinear, Linear
from octavo.layers.norm import Input, Left, RMSNorm, tensor_of


class FeedForward(Layer):
    """The second half of a decoder layer: x [N, H] -> [N, H]."""

    def add_to(self, residual: torch.Tensor, x: Input) -> Left:
        """Add what comes of x to the residual [N, H], or return it: then the next norm adds it."""
        out: torch.Tensor = self(tensor_of(x))
        return out

    def leads_to(self, norm: RMSNorm) -> None:
        """Say that what comes after `add_to` is this norm of the residual."""


class GatedMLP(FeedForward):
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
        self.gate = spec.hidden_act

    def forward(self, x: Input) -> torch.Tensor:
        out: torch.Tensor = self.down_proj(self.gate_up_proj.gated(x, self.gate))
        return out

    def add_to(self, residual: torch.Tensor, x: Input) -> Left:
        return self.down_proj.add_to(residual, self.gate_up_proj.gated(x, self.gate))

    def leads_to(self, norm: RMSNorm) -> None:
        self.down_proj.leads_to(norm)
