"""Bamba (IBM, Princeton and UIUC, 2024): Mamba2 mixers, a few layers of attention, gated SiLU in each.

Module names are the checkpoint's, so the loader finds every tensor by name.
"""

from __future__ import annotations

import torch
from torch import nn

from octavo.hf_config import ModelSpec
from octavo.layers.attention import Attention, AttentionContext
from octavo.layers.embedding import Embedding, Head
from octavo.layers.layer import Layer
from octavo.layers.mamba import Mamba2Mixer
from octavo.layers.mlp import GatedMLP
from octavo.layers.norm import Left, RMSNorm, tensor_of
from octavo.layers.rope import rotary_table


class BambaDecoderLayer(Layer):
    """x [N, H] is what the layer before has left to add to the residual [N, H], or None."""

    mamba: Mamba2Mixer | None
    self_attn: Attention | None

    def __init__(self, spec: ModelSpec, layer: int, rotary: torch.Tensor) -> None:
        super().__init__()
        dtype = getattr(torch, spec.dtype)
        attends = layer in spec.attention_layers
        self.input_layernorm = RMSNorm(spec.hidden_size, spec.rms_eps, dtype=dtype)
        self.self_attn = Attention(spec, layer, rotary) if attends else None
        self.mamba = None if attends else Mamba2Mixer(spec, layer)
        self.pre_ff_layernorm = RMSNorm(spec.hidden_size, spec.rms_eps, dtype=dtype)
        self.feed_forward = GatedMLP(spec)

    def forward(self, x: Left, residual: torch.Tensor, position: torch.Tensor, ctx: AttentionContext) -> Left:
        normed = self.input_layernorm.of(x, residual)
        if self.self_attn is not None:
            x = self.self_attn.add_to(residual, normed, position, ctx)
        else:
            assert self.mamba is not None  # a layer has one or the other
            x = self.mamba.add_to(residual, normed, ctx)
        return self.feed_forward.add_to(residual, self.pre_ff_layernorm.of(x, residual))


class BambaModel(Layer):
    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        rotary = rotary_table(spec)
        self.embed_tokens = Embedding(spec)
        self.layers = nn.ModuleList(
            BambaDecoderLayer(spec, layer, rotary) for layer in range(spec.num_layers)
        )
        self.final_layernorm = RMSNorm(spec.hidden_size, spec.rms_eps, dtype=getattr(torch, spec.dtype))

    def forward(self, token_id: torch.Tensor, position: torch.Tensor, ctx: AttentionContext) -> torch.Tensor:
        residual = self.embed_tokens(token_id)
        x: Left = None
        for layer in self.layers:
            x = layer(x, residual, position, ctx)
        return tensor_of(self.final_layernorm.of(x, residual))


class BambaForCausalLM(Layer):
    """A language model. See octavo.models.registry.CausalLM for what its methods take and return."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.model = BambaModel(spec)
        self.lm_head = Head(spec, self.model.embed_tokens if spec.tie_embeddings else None)

    def forward(self, token_id: torch.Tensor, position: torch.Tensor, ctx: AttentionContext) -> torch.Tensor:
        hidden: torch.Tensor = self.model(token_id, position, ctx)
        return hidden

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.lm_head(hidden)
        return logits
