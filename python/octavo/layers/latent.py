"""Multi-head latent attention (DeepSeek-V2, 2024, 2.1), in the absorbed form.

A token's keys and values of all heads are products of one latent. Instead of making them, the product for
keys is applied to the queries and the product for values to what attention returns: the cache holds the
latents alone, and all heads read the same vector.
"""

from __future__ import annotations

import torch
from torch import nn

from octavo import ops
from octavo.hf_config import ModelSpec
from octavo.layers.attention import AttentionContext
from octavo.layers.layer import Layer
from octavo.layers.linear import FEW_ROWS, Linear
from octavo.layers.norm import Input, Left, RMSNorm
from octavo.weights.source import Source

_EPS = 1e-6  # of the norms of latents, whatever rms_norm_eps says of the others


class LatentHeads(Layer):
    """What makes keys and values of a latent: stored as one matrix, used as two products for each head."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        latent = spec.latent
        assert latent is not None
        shape = (spec.num_heads, latent.nope_dim + latent.value_dim, latent.rank)
        weight = torch.empty(shape, dtype=getattr(torch, spec.dtype))
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.keys = self.weight[:, : latent.nope_dim]  # [H, nope, C]
        self.values = self.weight[:, latent.nope_dim :]  # [H, value, C]
        self.stored = (spec.num_heads * shape[1], latent.rank)

    def of_queries(self, q: torch.Tensor) -> torch.Tensor:
        """Return q [N, H, nope] with the product for keys applied: [N, H, C]."""
        return torch.bmm(q.transpose(0, 1), self.keys).transpose(0, 1)

    def of_attention(self, x: torch.Tensor) -> torch.Tensor:
        """Return x [N, H, C] with the product for values applied: [N, H, value], each head's values side by
        side in memory, as a product of few rows wants its input.

        On a CPU the weight is read at the speed of memory for few rows, as each expert's is. For more torch's
        product is faster, in 16 bits with the weight on the left: as the right side it would be transposed
        each time (one token, 128 heads, bfloat16: 10.3 ms so, 0.8 by grouped_linear).
        """
        count, heads, _ = x.shape
        rows = x.transpose(0, 1)
        if not x.is_cpu:
            return torch.bmm(rows, self.values.mT).transpose(0, 1)
        rows = rows.contiguous()
        if count <= FEW_ROWS.get(x.dtype, 0):
            start = torch.arange(0, heads * count + 1, count, dtype=torch.int32)
            out = x.new_empty((heads, count, self.values.shape[1]))
            ops.grouped_linear(out.view(heads * count, -1), rows.view(heads * count, -1), self.values, start)
            return out.transpose(0, 1)
        if x.dtype == torch.float32:
            return torch.bmm(rows, self.values.mT).transpose(0, 1)
        return torch.bmm(self.values, rows.mT).permute(2, 0, 1).contiguous()

    def spellings(self, path: str) -> list[dict[str, Source]]:
        """Return the one way in which a checkpoint holds it."""
        return [{f"{path}.weight": Source(self.weight, self.stored)}]


class LatentAttention(Layer):
    """x [N, H] -> [N, H]. Queries are one product, or two with a norm between them, as the spec says."""

    def __init__(self, spec: ModelSpec, layer: int, rotary: torch.Tensor | None) -> None:
        super().__init__()
        latent = spec.latent
        assert latent is not None
        assert rotary is not None  # the spec of such a model rotates in every layer
        hidden, bias, dtype = spec.hidden_size, spec.attention_bias, getattr(torch, spec.dtype)
        if latent.query_rank:
            self.q_a_proj = Linear(hidden, latent.query_rank, bias=bias, dtype=dtype)
            self.q_a_layernorm = RMSNorm(latent.query_rank, _EPS, dtype=dtype)
            self.q_b_proj = Linear(latent.query_rank, spec.q_size, dtype=dtype)
        else:
            self.q_proj = Linear(hidden, spec.q_size, dtype=dtype)
        self.ranked = latent.query_rank > 0
        self.kv_a_proj_with_mqa = Linear(hidden, latent.width, bias=bias, dtype=dtype)
        self.kv_a_layernorm = RMSNorm(latent.rank, _EPS, dtype=dtype)
        self.kv_b_proj = LatentHeads(spec)
        self.o_proj = Linear(spec.num_heads * latent.value_dim, hidden, bias=bias, dtype=dtype)
        self.layer = layer
        self.rotary = rotary
        self.head_shape = (-1, spec.num_heads, latent.head_dim)
        self.nope, self.rank, self.width = latent.nope_dim, latent.rank, latent.width
        self.out_shape = (-1, spec.num_heads * latent.value_dim)
        self.interleaved = latent.interleaved
        self.scale = spec.attention_scale

    def forward(self, x: Input, position: torch.Tensor, ctx: AttentionContext) -> torch.Tensor:
        projected: torch.Tensor = self.o_proj(self.attend(x, position, ctx))
        return projected

    def add_to(self, residual: torch.Tensor, x: Input, position: torch.Tensor, ctx: AttentionContext) -> Left:
        """Add the output to the residual [N, H], or return it: then the next norm adds it."""
        return self.o_proj.add_to(residual, self.attend(x, position, ctx))

    def leads_to(self, norm: RMSNorm) -> None:
        """Say that what comes after `add_to` is this norm of the residual."""
        self.o_proj.leads_to(norm)

    def attend(self, x: Input, position: torch.Tensor, ctx: AttentionContext) -> torch.Tensor:
        """Return the heads' values side by side: [N, heads * value_dim]."""
        q = self.queries(x).view(self.head_shape)
        latent, rope = self.kv_a_proj_with_mqa(x).split((self.rank, self.width - self.rank), 1)
        self.kv_a_layernorm.in_place(latent)
        absorbed = q.new_empty((*q.shape[:2], self.width))
        absorbed[..., : self.rank] = self.kv_b_proj.of_queries(q[..., : self.nope])
        absorbed[..., self.rank :] = q[..., self.nope :]
        ops.rope(absorbed[..., self.rank :], rope.unsqueeze(1), position, self.rotary, self.interleaved)
        attended = ctx.attend_latent(self.layer, absorbed, latent, rope, scale=self.scale)
        return self.kv_b_proj.of_attention(attended).reshape(self.out_shape)

    def queries(self, x: Input) -> torch.Tensor:
        """Return the queries of all heads side by side: [N, heads * head_dim]."""
        out: torch.Tensor
        if self.ranked:
            down = self.q_a_proj(x)
            self.q_a_layernorm.in_place(down)
            out = self.q_b_proj(down)
        else:
            out = self.q_proj(x)
        return out
