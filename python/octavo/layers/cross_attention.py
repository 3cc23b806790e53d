"""What layers of encoder-decoder models are made of (Vaswani et al., 2017): attention without rotary
positions, over an encoder's output or over a past, with biases everywhere but on the keys, and a plain
feed-forward half. Names are the checkpoint's.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from octavo.hf_config import ModelSpec
from octavo.layers.attention import AttentionContext
from octavo.layers.layer import Layer
from octavo.layers.linear import FusedLinear, Linear
from octavo.layers.norm import LayerNorm
from octavo.weights.source import Source


class Projections(FusedLinear):
    """Queries, keys and values of one input, or some of them, [M, H] -> [M, parts * H]."""

    def __init__(self, names: Sequence[str], hidden: int, *, dtype: torch.dtype) -> None:
        super().__init__(hidden, [(name, hidden) for name in names], bias=True, dtype=dtype)
        assert self.bias is not None
        with torch.no_grad():
            self.bias.zero_()  # the rows of keys stay so: no checkpoint has any for them

    def spellings(self, path: str) -> list[dict[str, Source]]:
        """Every part has a weight, all but the keys a bias."""
        assert self.bias is not None
        parent, names, first = path.rpartition(".")[0], {}, 0
        for part, rows in self.parts:
            weight, bias = self.weight.narrow(0, first, rows), self.bias.narrow(0, first, rows)
            names[f"{parent}.{part}.weight"] = Source(weight, tuple(weight.shape))
            if part != "k_proj":
                names[f"{parent}.{part}.bias"] = Source(bias, tuple(bias.shape))
            first += rows
        return [names]


class EncoderAttention(Layer):
    """Every position sees every other: x [L, H] -> [L, H]."""

    def __init__(self, spec: ModelSpec, heads: int) -> None:
        super().__init__()
        dtype, hidden = getattr(torch, spec.dtype), spec.hidden_size
        self.qkv_proj = Projections(("q_proj", "k_proj", "v_proj"), hidden, dtype=dtype)
        self.out_proj = Linear(hidden, hidden, bias=True, dtype=dtype)
        self.shape = (-1, 3, heads, hidden // heads)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv_proj(x).view(self.shape).permute(1, 2, 0, 3).unsqueeze(1)
        out = F.scaled_dot_product_attention(q, k, v)
        projected: torch.Tensor = self.out_proj(out[0].transpose(0, 1).flatten(1))
        return projected


class SelfAttention(Layer):
    """The decoder's own past: x [N, H] -> [N, H]."""

    def __init__(self, spec: ModelSpec, layer: int) -> None:
        super().__init__()
        dtype, hidden = getattr(torch, spec.dtype), spec.hidden_size
        self.qkv_proj = Projections(("q_proj", "k_proj", "v_proj"), hidden, dtype=dtype)
        self.out_proj = Linear(hidden, hidden, bias=True, dtype=dtype)
        self.shape = (-1, 3, spec.num_heads, spec.head_dim)
        self.layer = layer
        self.scale = spec.attention_scale

    def forward(self, x: torch.Tensor, ctx: AttentionContext) -> torch.Tensor:
        q, k, v = self.qkv_proj(x).view(self.shape).unbind(1)
        out = ctx.attend(self.layer, q, k, v, scale=self.scale)
        projected: torch.Tensor = self.out_proj(out.flatten(1))
        return projected


class CrossAttention(Layer):
    """What the encoder made of each row's input: x [N, H] -> [N, H].

    Its keys and values depend on that alone: `store` computes them once.
    """

    def __init__(self, spec: ModelSpec, layer: int) -> None:
        super().__init__()
        dtype, hidden = getattr(torch, spec.dtype), spec.hidden_size
        self.q_proj = Linear(hidden, hidden, bias=True, dtype=dtype)
        self.kv_proj = Projections(("k_proj", "v_proj"), hidden, dtype=dtype)
        self.out_proj = Linear(hidden, hidden, bias=True, dtype=dtype)
        self.shape = (-1, spec.num_heads, spec.head_dim)
        self.layer = spec.cross_layers[layer]
        self.scale = spec.attention_scale

    def forward(self, x: torch.Tensor, ctx: AttentionContext) -> torch.Tensor:
        out = ctx.attend_encoded(self.layer, self.q_proj(x).view(self.shape), scale=self.scale)
        projected: torch.Tensor = self.out_proj(out.flatten(1))
        return projected

    def store(self, encoded: torch.Tensor, slots: torch.Tensor, ctx: AttentionContext) -> None:
        """Write the keys and values of encoded [L, H] to the slots [L] int64 of the cache."""
        k, v = self.kv_proj(encoded).view(-1, 2, *self.shape[1:]).unbind(1)
        ctx.store(self.layer, k, v, slots)


class EncoderDecoderLayer(Layer):
    """What layers of encoder and decoder share. Checkpoints have its names beside the attention's."""

    def __init__(self, inner: int, spec: ModelSpec) -> None:
        super().__init__()
        dtype, hidden = getattr(torch, spec.dtype), spec.hidden_size
        self.self_attn_layer_norm = LayerNorm(spec)
        self.final_layer_norm = LayerNorm(spec)
        self.fc1 = Linear(hidden, inner, bias=True, dtype=dtype)
        self.fc2 = Linear(inner, hidden, bias=True, dtype=dtype)

    def feed_forward(self, x: torch.Tensor) -> torch.Tensor:
        """Add to x [N, H] in place."""
        return x.add_(self.fc2(F.gelu(self.fc1(self.final_layer_norm(x)))))
