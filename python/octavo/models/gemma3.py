"""Gemma 3 (Gemma Team, 2025): five layers of a sliding window to one that sees everything.

Beyond Llama's decoder: norms multiply by 1 + w and stand before and after each half of a layer, embeddings
are scaled, query and key heads are normed, layers with a window rotate by an embedding of their own, and the
gate is a tanh GELU. All of it but the place of the norms is in the spec.
"""

from __future__ import annotations

import torch

from octavo.hf_config import ModelSpec
from octavo.layers.attention import Attention, AttentionContext
from octavo.layers.layer import Layer
from octavo.layers.mlp import GatedMLP
from octavo.layers.norm import RMSNorm
from octavo.models.llama import LlamaForCausalLM, LlamaModel


class GemmaDecoderLayer(Layer):
    """x [N, H] is what the layer before adds to the residual [N, H]; the sum is formed inside the norm."""

    def __init__(self, spec: ModelSpec, layer: int, rotary: torch.Tensor | None) -> None:
        super().__init__()
        self.input_layernorm = _norm(spec)
        self.self_attn = Attention(spec, layer, rotary)
        self.post_attention_layernorm = _norm(spec)
        self.pre_feedforward_layernorm = _norm(spec)
        self.mlp = GatedMLP(spec)
        self.post_feedforward_layernorm = _norm(spec)

    def forward(
        self, x: torch.Tensor | None, residual: torch.Tensor, position: torch.Tensor, ctx: AttentionContext
    ) -> torch.Tensor:
        attended: torch.Tensor = self.self_attn(self.input_layernorm.of(x, residual), position, ctx)
        self.post_attention_layernorm.in_place(attended)
        out: torch.Tensor = self.mlp(self.pre_feedforward_layernorm.add(attended, residual))
        self.post_feedforward_layernorm.in_place(out)
        return out


def _norm(spec: ModelSpec) -> RMSNorm:
    dtype = getattr(torch, spec.dtype)
    return RMSNorm(spec.hidden_size, spec.rms_eps, dtype=dtype, offset=spec.norm_offset)


class GemmaModel(LlamaModel):
    layer_class = GemmaDecoderLayer


class Gemma3ForCausalLM(LlamaForCausalLM):
    """A Gemma 3 of text alone."""

    model_class = GemmaModel


class Gemma3ForConditionalGeneration(Gemma3ForCausalLM):
    """The text model of a checkpoint that also holds an image encoder, which is not loaded."""
