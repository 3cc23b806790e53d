"""Llama 1 to 3.x (Touvron et al., 2023): pre-norm, grouped-query attention, gated SiLU, rotary positions.

Module names are the checkpoint's, so the loader finds every tensor by name.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn

from octavo.hf_config import ModelSpec
from octavo.layers.attention import Attention, AttentionContext
from octavo.layers.embedding import Embedding, Head
from octavo.layers.latent import LatentAttention
from octavo.layers.layer import Layer
from octavo.layers.mlp import FeedForward, GatedMLP
from octavo.layers.norm import Left, RMSNorm, tensor_of
from octavo.layers.rope import layer_tables


class LlamaDecoderLayer(Layer):
    """x [N, H] is what the layer before has left to add to the residual [N, H], or None."""

    attention_class: type[Attention | LatentAttention] = Attention

    def __init__(self, spec: ModelSpec, layer: int, rotary: torch.Tensor | None) -> None:
        super().__init__()
        dtype = getattr(torch, spec.dtype)
        self.input_layernorm = RMSNorm(spec.hidden_size, spec.rms_eps, dtype=dtype)
        self.self_attn = self.attention_class(spec, layer, rotary)
        self.post_attention_layernorm = RMSNorm(spec.hidden_size, spec.rms_eps, dtype=dtype)
        self.mlp = self.feed_forward(spec, layer)
        if isinstance(self.mlp, GatedMLP):  # experts take their input as a tensor
            self.self_attn.leads_to(self.post_attention_layernorm)

    @staticmethod
    def feed_forward(spec: ModelSpec, layer: int) -> FeedForward:
        """Make the layer's second half."""
        return GatedMLP(spec)

    def forward(self, x: Left, residual: torch.Tensor, position: torch.Tensor, ctx: AttentionContext) -> Left:
        x = self.self_attn.add_to(residual, self.input_layernorm.of(x, residual), position, ctx)
        return self.mlp.add_to(residual, self.post_attention_layernorm.of(x, residual))


class LlamaModel(Layer):
    layer_class: type[Layer] = LlamaDecoderLayer

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.embed_tokens = Embedding(spec)
        self.layers = nn.ModuleList(
            self.layer_class(spec, layer, rotary) for layer, rotary in enumerate(layer_tables(spec))
        )
        for layer, following in pairwise(self.layers):
            if isinstance(layer, LlamaDecoderLayer) and isinstance(following, LlamaDecoderLayer):
                layer.mlp.leads_to(following.input_layernorm)
        self.norm = RMSNorm(
            spec.hidden_size, spec.rms_eps, dtype=getattr(torch, spec.dtype), offset=spec.norm_offset
        )

    def forward(self, token_id: torch.Tensor, position: torch.Tensor, ctx: AttentionContext) -> torch.Tensor:
        residual = self.embed_tokens(token_id)
        x: Left = None
        for layer in self.layers:
            x = layer(x, residual, position, ctx)
        return tensor_of(self.norm.of(x, residual))


class LlamaForCausalLM(Layer):
    """A language model. See octavo.models.registry.CausalLM for what its methods take and return."""

    model_class: type[LlamaModel] = LlamaModel

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.model = self.model_class(spec)
        self.lm_head = Head(spec, self.model.embed_tokens if spec.tie_embeddings else None)

    def forward(self, token_id: torch.Tensor, position: torch.Tensor, ctx: AttentionContext) -> torch.Tensor:
        hidden: torch.Tensor = self.model(token_id, position, ctx)
        return hidden

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.lm_head(hidden)
        return logits
