"""The Mamba2 mixer (Dao and Gu, 2024): what a recurrent layer has in place of attention."""

from __future__ import annotations

import torch
from torch import nn

from octavo import ops
from octavo.hf_config import ModelSpec, StateSpec
from octavo.layers.attention import AttentionContext
from octavo.layers.layer import Layer
from octavo.layers.linear import Linear
from octavo.layers.norm import Input, Left


class Mamba2Mixer(Layer):
    """x [N, H] -> [N, H]: projection, causal convolution, scan, gated norm, projection.

    The projection's columns are the gate, then the values, B and C, which the convolution mixes over time,
    then one step size a head. Names are the checkpoint's.
    """

    def __init__(self, spec: ModelSpec, layer: int) -> None:
        super().__init__()
        assert spec.state is not None  # its config.json says which layers are recurrent
        state, dtype = spec.state, getattr(torch, spec.dtype)
        self.in_proj = Linear(spec.hidden_size, state.projected, bias=state.proj_bias, dtype=dtype)
        self.conv1d = _Convolution(state, dtype)
        self.A_log = _vector(state.heads, dtype)
        self.D = _vector(state.heads, dtype)
        self.dt_bias = _vector(state.heads, dtype)
        self.norm = _GatedNorm(state, spec.rms_eps, dtype)
        self.out_proj = Linear(state.inner, spec.hidden_size, bias=state.proj_bias, dtype=dtype)
        self.layer = layer
        self.columns = (state.inner, state.conv_size, state.heads)
        self.channels = (state.inner, state.groups * state.size, state.groups * state.size)
        self.head_shape = (-1, state.heads, state.head_dim)
        self.group_shape = (-1, state.groups, state.size)

    def forward(self, x: Input, ctx: AttentionContext) -> torch.Tensor:
        projected: torch.Tensor = self.out_proj(self.mix(x, ctx))
        return projected

    def add_to(self, residual: torch.Tensor, x: Input, ctx: AttentionContext) -> Left:
        """Add the output to the residual [N, H], or return it: then the next norm adds it."""
        return self.out_proj.add_to(residual, self.mix(x, ctx))

    def mix(self, x: Input, ctx: AttentionContext) -> torch.Tensor:
        """Return what the last projection takes: [N, I]."""
        state, start = ctx.state(self.layer), ctx.query_start
        gate, raw, dt = self.in_proj(x).split_with_sizes(self.columns, 1)
        mixed = self.conv1d(raw, state.conv, start, state.source, state.target)
        values, b, c = mixed.split_with_sizes(self.channels, 1)
        values = values.view(self.head_shape)
        out = values.new_empty(values.shape)
        ops.ssm_scan(
            out,
            values,
            dt,
            b.view(self.group_shape),
            c.view(self.group_shape),
            self.A_log,
            self.dt_bias,
            self.D,
            state.scan,
            start,
            state.source,
            state.target,
        )
        mixed_heads: torch.Tensor = self.norm(out.flatten(1), gate)
        return mixed_heads


class _Convolution(Layer):
    """Each channel over its last inputs: x [N, C] -> [N, C]. The weight has the shape of torch's Conv1d."""

    bias: nn.Parameter | None

    def __init__(self, state: StateSpec, dtype: torch.dtype) -> None:
        super().__init__()
        weight = torch.empty(state.conv_size, 1, state.taps, dtype=dtype)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = _vector(state.conv_size, dtype) if state.conv_bias else None

    def forward(
        self,
        x: torch.Tensor,
        state: torch.Tensor,
        start: torch.Tensor,
        source: torch.Tensor,
        target: torch.Tensor,
    ) -> torch.Tensor:
        out = x.new_empty(x.shape)
        ops.causal_conv1d(out, x, self.weight.squeeze(1), self.bias, state, start, source, target)
        return out


class _GatedNorm(Layer):
    """The norm of x * silu(gate), [N, I] both, within each group of heads."""

    def __init__(self, state: StateSpec, eps: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = _vector(state.inner, dtype)
        self.groups = state.groups
        self.eps = eps

    def forward(self, x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        ops.gated_rms_norm(x, x, gate, self.weight, self.groups, self.eps)
        return x


def _vector(size: int, dtype: torch.dtype) -> nn.Parameter:
    return nn.Parameter(torch.empty(size, dtype=dtype), requires_grad=False)
