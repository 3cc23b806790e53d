"""The text of Llama 4 (Meta, 2025): layers that attend within a chunk and rotate their heads, and some that
see everything and do not; mixtures of experts whose router weighs an expert's input, beside a shared expert.
"""

from __future__ import annotations

import torch

from octavo import ops
from octavo.hf_config import ModelSpec
from octavo.layers.attention import Attention, AttentionContext
from octavo.layers.layer import Layer
from octavo.layers.mlp import FeedForward, GatedMLP
from octavo.layers.moe import Experts, Router
from octavo.layers.norm import Left, RMSNorm
from octavo.models.llama import LlamaForCausalLM, LlamaModel


class Llama4Attention(Attention):
    """Rotated heads are brought to length one afterwards. Where positions are not written into the heads,
    queries grow with the logarithm of the position, so that far contexts do not flatten attention.
    """

    def __init__(self, spec: ModelSpec, layer: int, rotary: torch.Tensor | None) -> None:
        super().__init__(spec, layer, rotary)
        self.eps = spec.rms_eps
        self.unit: torch.Tensor | None = None
        if spec.unit_heads and rotary is not None:
            self.unit = torch.ones(spec.head_dim, dtype=getattr(torch, spec.dtype))
        # Up to the first step of the logarithm all queries would be multiplied by one.
        steps = spec.temperature is not None and spec.max_model_len >= spec.temperature[1]
        self.temperature = spec.temperature if rotary is None and steps else None

    def prepare(self, q: torch.Tensor, k: torch.Tensor, position: torch.Tensor) -> None:
        if self.rotary is not None:
            ops.rope(q, k, position, self.rotary, True)  # pairs
            if self.unit is not None:
                ops.rms_norm(q, q, self.unit, self.eps)
                ops.rms_norm(k, k, self.unit, self.eps)
        elif self.temperature is not None:
            scale, floor = self.temperature
            steps = torch.floor((position.float() + 1.0) / floor)
            q.mul_((torch.log1p(steps) * scale + 1.0).view(-1, 1, 1))


class Llama4MoE(FeedForward):
    """x [N, H] -> [N, H]: the sigmoid of a router's logit weighs what its expert gets to see."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        assert spec.experts is not None
        self.router = Router(spec)
        self.experts = Experts(spec, parts=None, columns=True, weigh_input=True)
        self.shared_expert = GatedMLP(spec, spec.experts.inner)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.shared_expert(x)
        return out.add_(self.experts(x, self.router(x)))


class Llama4DecoderLayer(Layer):
    """x [N, H] is what the layer before has left to add to the residual [N, H], or None."""

    def __init__(self, spec: ModelSpec, layer: int, rotary: torch.Tensor | None) -> None:
        super().__init__()
        assert spec.experts is not None
        dtype = getattr(torch, spec.dtype)
        self.input_layernorm = RMSNorm(spec.hidden_size, spec.rms_eps, dtype=dtype)
        self.self_attn = Llama4Attention(spec, layer, rotary)
        self.post_attention_layernorm = RMSNorm(spec.hidden_size, spec.rms_eps, dtype=dtype)
        self.feed_forward: FeedForward = Llama4MoE(spec) if spec.experts.layers[layer] else GatedMLP(spec)

    def forward(self, x: Left, residual: torch.Tensor, position: torch.Tensor, ctx: AttentionContext) -> Left:
        x = self.self_attn.add_to(residual, self.input_layernorm.of(x, residual), position, ctx)
        return self.feed_forward.add_to(residual, self.post_attention_layernorm.of(x, residual))


class Llama4Model(LlamaModel):
    layer_class = Llama4DecoderLayer


class Llama4ForCausalLM(LlamaForCausalLM):
    """A Llama 4 of text alone."""

    model_class = Llama4Model


class Llama4ForConditionalGeneration(Llama4ForCausalLM):
    """The text model of a checkpoint that also holds an image encoder, which is not loaded."""
