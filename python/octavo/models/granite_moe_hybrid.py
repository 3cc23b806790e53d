"""Granite 4.0 H (IBM, 2025), the models without experts: Mamba2 mixers and a few layers of attention without
positions, multipliers on embeddings, residuals, scores and logits.
"""

from __future__ import annotations

import torch

from octavo.hf_config import ModelSpec
from octavo.layers.attention import Attention, AttentionContext
from octavo.layers.layer import Layer
from octavo.layers.linear import Linear
from octavo.layers.mamba import Mamba2Mixer
from octavo.layers.norm import RMSNorm
from octavo.models.llama import LlamaForCausalLM, LlamaModel


class SharedMLP(Layer):
    """The gated block that experts would stand beside; the checkpoint has gate and up as one tensor."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        dtype, inner = getattr(torch, spec.dtype), spec.intermediate_size
        self.input_linear = Linear(spec.hidden_size, 2 * inner, dtype=dtype)
        self.output_linear = Linear(inner, spec.hidden_size, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.output_linear(self.input_linear.gated(x, "silu"))
        return out


class GraniteMoeHybridDecoderLayer(Layer):
    """x [N, H] is what the layer before adds to the residual [N, H]; the sum is formed inside the norm."""

    mamba: Mamba2Mixer | None
    self_attn: Attention | None

    def __init__(self, spec: ModelSpec, layer: int, rotary: torch.Tensor | None) -> None:
        super().__init__()
        dtype = getattr(torch, spec.dtype)
        attends = layer in spec.attention_layers
        self.input_layernorm = RMSNorm(spec.hidden_size, spec.rms_eps, dtype=dtype)
        self.self_attn = Attention(spec, layer, rotary) if attends else None
        self.mamba = None if attends else Mamba2Mixer(spec, layer)
        self.post_attention_layernorm = RMSNorm(spec.hidden_size, spec.rms_eps, dtype=dtype)
        self.shared_mlp = SharedMLP(spec)
        self.scale = spec.residual_scale

    def forward(
        self, x: torch.Tensor | None, residual: torch.Tensor, position: torch.Tensor, ctx: AttentionContext
    ) -> torch.Tensor:
        normed = self.input_layernorm.of(x, residual)
        if self.self_attn is not None:
            mixed = self.self_attn(normed, position, ctx)
        else:
            assert self.mamba is not None  # a layer has one or the other
            mixed = self.mamba(normed, ctx)
        out: torch.Tensor = self.shared_mlp(
            self.post_attention_layernorm.add(mixed.mul_(self.scale), residual)
        )
        return out.mul_(self.scale)


class GraniteMoeHybridModel(LlamaModel):
    layer_class = GraniteMoeHybridDecoderLayer


class GraniteMoeHybridForCausalLM(LlamaForCausalLM):
    """A language model. See octavo.models.registry.CausalLM for what its methods take and return."""

    model_class = GraniteMoeHybridModel

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec)
        self.logits_scale = spec.logits_scale

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return super().logits(hidden).float().div_(self.logits_scale)
